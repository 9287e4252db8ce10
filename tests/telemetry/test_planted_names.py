"""No name, id or accession number of a patient leaves by a side door: log, metrics, node states, headers, spans, error bodies.

A real server process at log level DEBUG is asked everything, in order and out of order, over nodes that are well, that
fail, and that quote patients while they fail. Then everything it let out, but for the answers themselves, is searched.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx
import pydicom
import pytest

from gateway.cli import demonodes
from gateway.simulators import corpus as corpora
from gateway.simulators.corpus import Corpus
from gateway.simulators.dicomweb import DicomwebOptions, DicomwebSimulator
from gateway.simulators.dimse import DimseOptions, DimseSimulator
from gateway.simulators.fhir import FhirOptions, FhirSimulator
from gateway.telemetry import LOGGABLE
from tests import peers
from tests.conformance.national_nodes import node_tables
from tests.running import TRUST
from tests.telemetry import gossips
from tests.telemetry.collector import Collector
from tests.telemetry.gossips import IDENTIFIER, NAME, PLANTED
from tests.telemetry.sabotaged import TRIGGER

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)
_KEYWORDS = (
    "PatientName", "PatientID", "AccessionNumber", "PatientBirthDate", "OtherPatientIDs", "PatientBirthName",
    "ReferringPhysicianName", "StudyID", "PatientComments", "PatientAddress", "PatientTelephoneNumbers",
)  # fmt: skip
# What pydicom's files have for names, and every answer has for words.
_WORDS = {"test", "none", "study", "anonymous", "demo", "first", "last", "name", "patient"}
ANY = {"Accept": "*/*"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpora.build(tmp_path_factory.mktemp("corpus"), scale="small")


@pytest.fixture(scope="module")
def secrets(corpus: Corpus) -> re.Pattern[str]:
    """Everything that must not be let out: what the files say of their patients, and what the tests plant."""
    found = set(PLANTED)
    for instance in (one for study in corpus.studies() for one in study.instances):
        made = pydicom.dcmread(instance.path, stop_before_pixels=True, force=True)
        for keyword in _KEYWORDS:
            found.update(re.split(r"[\^=\\ ,]+", str(made.get(keyword) or "")))
    telling = sorted((word for word in found if _tells(word)), key=len, reverse=True)
    assert len(telling) > 60
    return re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, telling))})(?![\w.-])", re.IGNORECASE)


def _tells(word: str) -> bool:
    """Short numbers and words of the language are everywhere; what is left is a patient's."""
    return len(word) >= (6 if word.isdecimal() else 4) and word.lower() not in _WORDS


def uids_of(corpus: Corpus) -> set[str]:
    found = {study.study_uid for study in corpus.studies()}
    found |= {series.series_uid for study in corpus.studies() for series in study.series}
    return found | {one.sop_instance_uid for study in corpus.studies() for one in study.instances}


@dataclass
class Server:
    """A gateway in a process of its own, and everything that it let out but for the answers that stand."""

    url: str
    log_file: Path
    collector: Collector
    let_out: list[tuple[str, str]] = field(default_factory=list)
    timings: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    def ask(self, path: str, method: str = "GET", **headers: str) -> httpx.Response | None:
        """Sends the path as it is; None when the connection was broken off."""
        request = {name.replace("_", "-"): value.encode() for name, value in headers.items()}
        try:
            answer = httpx.request(method, httpx.URL(self.url + path), headers=request or ANY, timeout=60, verify=TRUST)
        except httpx.HTTPError:
            return None
        self.statuses.append(answer.status_code)
        about = f"{method} {path[:80]} {headers or ''} -> {answer.status_code}"
        self.let_out += [(f"header of {about}", f"{name}: {value}") for name, value in answer.headers.multi_items()]
        self.timings.append(answer.headers.get("server-timing", ""))
        if answer.status_code >= 400 or path.split("?")[0] in ("/nodes", "/metrics", "/", "/live", "/ready"):
            self.let_out.append((f"body of {about}", answer.text))
        return answer

    def send(self, raw: bytes) -> None:
        """Bytes that are no HTTP, or none that a client library sends."""
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(raw)
            connection.settimeout(10)
            answer = b""
            try:
                while chunk := connection.recv(65536):
                    answer += chunk
                    if b"\r\n\r\n" in answer:
                        break
            except OSError:
                pass
        self.let_out.append((f"answer to {raw[:60]!r}", answer.decode("latin-1")))

    @property
    def log(self) -> list[str]:
        return self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()

    def spans(self) -> list[str]:
        """All spans, once those of a last request have come."""
        answer = self.ask("/live")
        assert answer is not None
        self.collector.trace(answer.headers["x-request-id"])
        return [str(request) for request in self.collector.requests]


@contextmanager
def serving(tables: Mapping[str, Mapping[str, Any]], *words: str, **settings: object) -> Iterator[Server]:
    with peers.home() as directory, Collector() as collector:
        demonodes.write(directory / "nodes.toml", tables)
        port = peers.free_port()
        given = {
            "nodes": "nodes.toml", "port": port, "audit": "audit", "spool": directory, "log_level": "DEBUG",
            "otel_endpoint": collector.url, "search_deadline": 8, **settings,
        }  # fmt: skip
        environment = {f"GATEWAY_{name.upper()}": str(value) for name, value in given.items()}
        environment |= {"PYTHONPATH": str(ROOT), "OTEL_BSP_SCHEDULE_DELAY": "200", "PYTHONASYNCIODEBUG": "1"}
        with peers.running([sys.executable, *words], directory, port, **environment):
            yield Server(f"http://127.0.0.1:{port}", directory / "log", collector)


@pytest.fixture(scope="module")
def nodes(corpus: Corpus) -> Iterator[dict[str, Mapping[str, Any]]]:
    """The demo's nodes, and beside them one of each kind that is unwell."""
    sick, berlin = corpus.nodes["es-madrid"].directory, corpus.nodes["de-berlin"].directory
    with ExitStack() as stack:
        tables = {table["id"]: table for table in node_tables(corpus, stack)}
        web = {
            "w-garbage": DicomwebOptions(garbage_json=True),
            "w-500": DicomwebOptions(status_500=True),
            "w-foreign": DicomwebOptions(foreign_study=True),
            "w-cut": DicomwebOptions(truncate_after=2000),
            "w-vr": DicomwebOptions(wrong_vr=True),
            "w-silent": DicomwebOptions(black_hole=True),
            "w-stalls": DicomwebOptions(stall_after=2000),
        }
        for name, options in web.items():
            peer = stack.enter_context(DicomwebSimulator(sick, options))
            tables[name] = node(name, "dicomweb", {"url": peer.url})
        fhir = {
            "f-garbage": {"garbage_json": True},
            "f-500": {"status_500": True},
            "f-foreign": {"foreign_study": True},
        }
        for name, faults in fhir.items():
            server = stack.enter_context(FhirSimulator(berlin, "R4", FhirOptions(**faults)))  # type: ignore[arg-type]
            tables[name] = node(name, "fhir", {"url": server.url, "version": "R4"})
        dimse = {
            "d-garbage": DimseOptions(garbage=True),
            "d-foreign": DimseOptions(foreign_study=True),
            "d-aborts": DimseOptions(abort_after=0),
            "d-refuses": DimseOptions(calling_ae_titles=("SOMEBODY",)),
            "d-silent": DimseOptions(black_hole="association"),
        }
        for name, shortcomings in dimse.items():
            pacs = stack.enter_context(DimseSimulator(sick, options=shortcomings))
            tables[name] = node(name, "dimse", {"host": "127.0.0.1", "port": pacs.port, "called_ae_title": "SIMULATOR"})
        tables["g-web"] = node("g-web", "dicomweb", {"url": stack.enter_context(gossips.http())})
        tables["g-fhir"] = node("g-fhir", "fhir", {"url": stack.enter_context(gossips.http()), "version": "R4"})
        tables["g-nohttp"] = node("g-nohttp", "dicomweb", {"url": stack.enter_context(gossips.no_http())})
        port = stack.enter_context(gossips.dimse())
        tables["g-dimse"] = node("g-dimse", "dimse", {"host": "127.0.0.1", "port": port, "called_ae_title": "GOSSIP"})
        yield tables


def node(name: str, adapter: str, connection: dict[str, Any]) -> dict[str, Any]:
    deadlines = {"connect_deadline": 1.0, "search_deadline": 1.0, "first_byte_deadline": 1.0, "idle_deadline": 1.0}
    return {"id": name, "name": name, "adapter": adapter, "connection": connection, **deadlines}


def questions(corpus: Corpus) -> Iterator[str]:
    """Every path of the table of routes: as it should be asked, and with a patient's data where none belongs."""
    asked_name, asked_id = quote(NAME), quote(IDENTIFIER)
    clash = corpus.case("uid-clash").studies[0]
    for held in (corpus.nodes["es-madrid"].studies[0], corpus.nodes["pl-krakow"].studies[0], clash):
        series, instance = held.series[0].series_uid, held.series[0].instances[0].sop_instance_uid
        study = f"studies/{held.study_uid}"
        for path in (
            study, f"{study}/metadata", f"{study}/series", f"{study}/instances", f"{study}/series/{series}/metadata",
            f"{study}/series/{series}/instances/{instance}", f"{study}/series/{series}/instances/{instance}/frames/1",
            f"{study}/series/{series}/instances/{instance}/frames/99", f"{study}/series/{series}/instances/{instance}/bulkdata/7FE00010",
            f"{study}/series/{series}/instances/{instance}/bulkdata/00100010", f"studies?PatientName={quote(held.patient_name)}",
            f"studies?PatientID={quote(held.patient_id)}&includefield=all", f"series?AccessionNumber={quote(held.accession_number)}",
            f"instances?PatientID={quote(held.patient_id)}&limit=1",
        ):  # fmt: skip
            yield f"/dicom-web/{path}"
        for path in (held.study_uid, quote(held.patient_id), quote(held.patient_name)):
            yield f"/fhir/ImagingStudy/{path}"
        for parameter in (
            "patient.identifier",
            "identifier",
            "patient",
            "_id",
            "subject",
            "nonsense",
            "started",
            "bodysite",
        ):
            for value in (held.patient_id, held.patient_name, held.accession_number):
                yield f"/fhir/ImagingStudy?{parameter}={quote(value)}"
    for name in (asked_name, asked_id, f"{asked_name}/{asked_id}", f"..%2f{asked_name}"):
        for prefix in (
            "/", "/nodes/", "/dicom-web/", "/dicom-web/studies/", "/dicom-web/studies/1.2.3/series/", "/fhir/", "/fhir/r4/",
            "/fhir/r5/ImagingStudy/", "/fhir/Patient/", "/fhir/Endpoint/", "/fhir/Organization/", "/fhir/Practitioner/",
            "/dicom-web/studies/1.2.3/series/1.2.4/instances/1.2.5/frames/", "/.well-known/",
            "/dicom-web/studies/1.2.3/series/1.2.4/instances/1.2.5/bulkdata/",
        ):  # fmt: skip
            yield prefix + name
        yield f"/nodes/{name}/dicom-web/studies"
    for query in (
        f"PatientName={asked_name}&PatientName={asked_name}", f"StudyDate={asked_name}", f"StudyInstanceUID={asked_id}",
        f"limit={asked_id}", f"offset={asked_name}", f"includefield={asked_name}", f"fuzzymatching={asked_name}",
        f"{asked_name}=1", f"PatientName={asked_name}%FF", f"node={asked_name}", f"StudyTime={asked_id}", asked_name,
        f"PatientBirthDate={asked_id}", f"00100010={asked_name}&PatientID={asked_id}", f"SeriesNumber={asked_name}",
    ):  # fmt: skip
        yield f"/dicom-web/studies?{query}"
        yield f"/dicom-web/series?{query}"
    for parameter in (
        "_sort", "_count", "_summary", "_include", "_cursor", "_format", "started", "modality", "status", "bodysite", "series",
        "instance", "dicom-class", "endpoint", "subject:identifier", "patient:Patient", "identifier", "node", "_id",
    ):  # fmt: skip
        yield f"/fhir/ImagingStudy?{parameter}={asked_name}"
        yield f"/fhir/r5/ImagingStudy?{parameter}=http://{asked_id}|{asked_name}"
    yield from ("/", "/nodes", "/metrics", "/live", "/ready", "/fhir/metadata", "/.well-known/oauth-protected-resource")


def requests(corpus: Corpus, nodes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Path, method and headers: the healthy nodes all at once, each node alone, and what belongs into no header."""
    well = ",".join(name for name in corpus.nodes if name in nodes)
    for path in questions(corpus):
        narrowed = path + ("&" if "?" in path else "?") + f"node={well}"
        is_wide = path.startswith(("/dicom-web", "/fhir/Im")) and "node=" not in path
        yield narrowed if is_wide else path, "GET", {}
    held, berlin = corpus.nodes["es-madrid"].studies[0], corpus.nodes["de-berlin"].studies[0]
    for name in nodes:
        uid = berlin.study_uid if name.startswith("f-") else held.study_uid
        one = f"studies?PatientID={quote(held.patient_id)}"
        for number in range(6 if name.startswith("g-") else 1):
            for path in (f"studies?PatientName=*&limit={number}", f"studies/{uid}", f"studies/{uid}/metadata", one):
                yield f"/nodes/{name}/dicom-web/{path}", "GET", {}
        yield f"/fhir/ImagingStudy?node={name}&patient.identifier={quote(held.patient_id)}", "GET", {}
    for path in (
        "dicom-web/studies",
        f"dicom-web/studies/{held.study_uid}",
        "fhir/ImagingStudy",
        "fhir/r5/ImagingStudy",
    ):
        yield f"/{path}", "GET", {}
    for header in (
        "accept", "authorization", "traceparent", "tracestate", "baggage", "x_forwarded_host", "forwarded", "origin", "range",
        "if_none_match", "user_agent", "x_request_id", "prefer", "cookie", "content_type", "accept_charset",
    ):  # fmt: skip
        for value in (NAME, f"Bearer {NAME}", f'application/dicom+json; x="{IDENTIFIER}"'):
            yield "/dicom-web/studies?limit=1&node=ee-tartu", "GET", {header: value}
    for method in ("POST", "DELETE", "OPTIONS", "HEAD", "PUT"):
        yield f"/dicom-web/studies/{quote(NAME)}?PatientID={quote(IDENTIFIER)}", method, {}
        yield f"/fhir/ImagingStudy/{quote(NAME)}", method, {}


NO_HTTP = (
    f"GET /{NAME} HTTP/1.1\r\nHost: {NAME} {IDENTIFIER}\r\nConnection: close\r\n\r\n",
    f"{NAME} / HTTP/1.1\r\nHost: x\r\n\r\n",
    f"GET /dicom-web/studies?PatientName={NAME} HTTP/9.9\r\n\r\n",
    f"GET / HTTP/1.1\r\n{NAME}\r\n\r\n",
    f"GET /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Length: {NAME}\r\n\r\n",
    f"{NAME}\0{IDENTIFIER}\r\n\r\n",
)


@pytest.fixture(scope="module")
def server(corpus: Corpus, nodes: dict[str, Mapping[str, Any]]) -> Iterator[Server]:
    """A gateway that has been asked everything."""
    with serving(nodes, "-m", "gateway", "serve") as running:
        with ThreadPoolExecutor(6) as callers:
            list(callers.map(lambda one: running.ask(one[0], one[1], **one[2]), requests(corpus, nodes)))
        for raw in NO_HTTP:
            running.send(raw.encode())
        running.ask("/metrics")
        running.ask("/nodes")
        yield running


@pytest.fixture(scope="module")
def sabotaged(corpus: Corpus) -> Iterator[Server]:
    """A gateway with faults of its own, its Redis gone; it has been made to fail in every way."""
    directory = corpus.nodes["ee-tartu"].directory
    tables = {name: node(name, "files", {"directory": str(directory)}) for name in ("well", "sabotaged")}
    with serving(
        tables, "-m", "tests.telemetry.sabotaged", redis_url=f"redis://:{IDENTIFIER}@127.0.0.1:{peers.free_port()}/0"
    ) as running:
        uid = corpus.nodes["ee-tartu"].studies[0].study_uid
        for path in (
            f"/dicom-web/studies?StudyID={TRIGGER}",
            f"/dicom-web/studies/{uid}?node=well",
            "/dicom-web/studies",
            "/nodes/sabotaged/dicom-web/studies",
        ):
            running.ask(path)
        running.ask("/metrics")
        yield running


def leaks(secrets: re.Pattern[str], let_out: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> list[str]:
    """Where a secret stands, in whatever disguise it has on the web: percent-encoded, escaped, in another case."""
    found = []
    for where, text in let_out:
        for shown in {text, unquote(text), re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), text)}:
            if match := secrets.search(shown):
                found.append(f"{where}: {match[0]!r} in {shown[max(0, match.start() - 60) : match.end() + 60]!r}")
    return sorted(set(found))


def test_the_server_was_asked_in_earnest(server: Server, corpus: Corpus) -> None:
    """What is searched below is there: all kinds of answers, a log, spans; and a name is found where one is."""
    assert {200, 400, 404, 405, 406, 409, 502, 503, 504} <= set(server.statuses)
    assert len(server.statuses) > 400
    assert sum('"node failed"' in line for line in server.log) > 20
    assert len(server.spans()) > 10
    answer = httpx.get(f"{server.url}/nodes/es-madrid/dicom-web/studies", timeout=60)
    assert corpus.nodes["es-madrid"].studies[0].patient_name.split("^")[0] in answer.text


def test_no_header_and_no_body_of_an_error_names_a_patient(server: Server, secrets: re.Pattern[str]) -> None:
    assert leaks(secrets, server.let_out) == []


def test_the_log_names_no_patient_and_has_only_its_own_keys(server: Server, secrets: re.Pattern[str]) -> None:
    assert leaks(secrets, [("log", line) for line in server.log]) == []
    for line in server.log:
        if line.startswith("{"):
            assert set(json.loads(line)) <= LOGGABLE
        else:
            assert line.startswith("imaging-gateway: serving nodes.toml on http"), line


def test_metrics_node_states_and_timings_have_neither_a_name_nor_a_uid(
    server: Server, secrets: re.Pattern[str], corpus: Corpus
) -> None:
    texts = [text for where, text in server.let_out if "/metrics" in where or "/nodes " in where] + server.timings
    assert any("gateway_requests_total" in text for text in texts)
    assert any('"cache"' in text for text in texts)
    everything = "\n".join(texts)
    assert leaks(secrets, [("text", everything)]) == []
    assert {uid for uid in uids_of(corpus) if uid in everything} == set()
    assert not re.search(r'="[^"]*(?:1\.2\.3|/)', everything), "a UID or a path is a label"


def test_spans_have_neither_a_name_nor_a_uid_nor_an_address(
    server: Server, secrets: re.Pattern[str], corpus: Corpus
) -> None:
    spans = server.spans()
    assert leaks(secrets, [("span", text) for text in spans]) == []
    everything = "\n".join(spans)
    assert {uid for uid in uids_of(corpus) if uid in everything} == set()
    for span in server.collector.spans:
        assert set(span.attributes) <= LOGGABLE
        assert (span.events, span.message) == (0, "")
        assert not any(mark in f"{span.name} {span.attributes}" for mark in ("http:", "/", "?", "1.2.3"))


def test_a_fault_of_ours_and_the_noise_of_libraries_name_no_patient(
    sabotaged: Server, secrets: re.Pattern[str]
) -> None:
    ends = time.monotonic() + 20
    while not any("unraisable" in line for line in sabotaged.log) and time.monotonic() < ends:
        time.sleep(0.1)
    assert leaks(secrets, sabotaged.let_out) == []
    assert leaks(secrets, [("log", line) for line in sabotaged.log]) == []
    assert leaks(secrets, [("span", text) for text in sabotaged.spans()]) == []
    told = [json.loads(line) for line in sabotaged.log if line.startswith("{")]
    assert all(set(record) <= LOGGABLE for record in told)
    loggers = {record["logger"] for record in told if record["event"] == "library"}
    assert {"asyncio", "thread", "unraisable", "warnings", "redis", "uvicorn.error", "root"} <= loggers
    never_retrieved = [
        record for record in told if record.get("logger") == "asyncio" and record.get("kind") == "ValueError"
    ]
    assert [record["reason"].split(":")[0] for record in never_retrieved] == ["sabotaged.py"]
    assert {record["kind"] for record in told if record["event"] == "fault"} >= {"ValueError"}
    assert 500 in sabotaged.statuses


def test_what_ends_the_process_is_told_by_its_kind_and_place() -> None:
    """Typer puts a hook of its own in before, which prints what the exception says."""
    ends = (
        "import sys, typer; from gateway import telemetry; from gateway.cli.libraries import restrain\n"
        "def serve():\n telemetry.configure('INFO'); restrain(); {}['ZIZKA']\n"
        "app = typer.Typer(pretty_exceptions_enable=False); app.command()(serve); app([])\n"
    )
    ended = subprocess.run([sys.executable, "-c", ends], capture_output=True, text=True, timeout=60, check=False)
    (told,) = map(json.loads, ended.stderr.splitlines())
    assert (ended.returncode, told["logger"], told["kind"], told["reason"]) == (1, "process", "KeyError", "<string>:3")
    assert "ZIZKA" not in ended.stderr
