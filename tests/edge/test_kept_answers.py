"""Answers given again from memory: byte for byte the same, to nobody else, and as well guarded and recorded as the first."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from specimens import specimen, uid
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import gateway.edge
from gateway import telemetry
from gateway.cache import bodies, freshness
from gateway.cache.bodies import Bodies, Grounds
from gateway.cache.client import Cache
from gateway.edge.context import revalidated
from gateway.edge.kept import SHAPING, KeptAnswers, canonical
from gateway.federation.federate import Federation
from gateway.model.dataset import Dataset
from gateway.model.vocabulary import PATIENT_NAME
from gateway.pipeline import Pipeline
from gateway.privacy.view import PlainView, View
from gateway.security.caller import Caller
from tests.running import Gateway, files_node
from tests.security.conftest import TestIssuer, issuer_beside

JSON = {"Accept": "application/dicom+json"}
STUDIES = "/dicom-web/studies"


@pytest.fixture(scope="module")
def issuer() -> Iterator[TestIssuer]:
    with issuer_beside() as running:
        yield running


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two nodes; the second is asked for treatment only."""
    directory = tmp_path_factory.mktemp("hospitals")
    for patient, study in (("A1", "one"), ("A2", "two"), ("A3", "three")):
        specimen(directory / "a", patient, study)
    specimen(directory / "b", "B1", "four")
    nodes = [files_node("a", directory / "a", patient_id_issuer="urn:a")]
    return [*nodes, files_node("b", directory / "b", patient_id_issuer="urn:b", purposes=["TREAT"])]


class Masked(PlainView):
    """Shows no names."""

    def dataset(self, dataset: Dataset) -> Dataset:
        return {tag: value for tag, value in dataset.items() if tag != PATIENT_NAME}


@dataclass
class ViewsBySubject:
    """Who is called a researcher sees no names."""

    def of(self, caller: Caller) -> View:
        return Masked("masked", is_plain=False) if caller.subject == "researcher" else PlainView()


@dataclass
class Served:
    """A gateway with an issuer and an audit file."""

    gateway: Gateway
    issuer: TestIssuer
    audit: Path

    def get(self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, **claims: Any):  # type: ignore[no-untyped-def]
        claims = {"purpose_of_use": "TREAT", **claims}
        plain = {**JSON, "Accept-Encoding": "identity"}
        sent = {**plain, "Authorization": self.issuer.bearer(**claims), **(headers or {})}
        return self.gateway.client.request(method, path, headers=sent)

    @property
    def kept(self) -> Bodies:
        assert self.gateway.app is not None
        kept: Bodies = self.gateway.app.state.bodies
        return kept

    @property
    def federation(self) -> Federation:
        assert self.gateway.app is not None
        pipeline: Pipeline = self.gateway.app.state.estate.pipeline
        return pipeline.federation

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        """In the gateway's own loop."""
        asyncio.run_coroutine_threadsafe(work, self.gateway.loop).result(30)

    def records(self, least: int) -> list[dict[str, Any]]:
        """The audit once it has this many records: they are written beside the requests."""
        for _ in range(500):
            lines = self.audit.read_bytes().splitlines()
            if len(lines) >= least:
                break
            threading.Event().wait(0.01)
        return [json.loads(line) for line in lines]


@pytest.fixture
def served(issuer: TestIssuer, hospitals: list[dict[str, Any]], tmp_path: Path) -> Iterator[Served]:
    audit = tmp_path / "audit"
    with Gateway(
        hospitals, views=ViewsBySubject(), oidc_issuer=issuer.issuer, audit=audit, log_level="INFO"
    ) as running:
        yield Served(running, issuer, audit)


def is_kept(response: httpx.Response) -> bool:
    """Whether nothing was planned, asked or merged for it."""
    return "plan;dur=" not in response.headers["server-timing"]


def lasting(response: httpx.Response) -> dict[str, str]:
    """The headers that are the same each time."""
    passing = ("date", "age", "x-request-id", "server-timing", "cache-control")
    return {name: value for name, value in response.headers.items() if name not in passing}


def test_an_answer_is_given_again_byte_for_byte(served: Served) -> None:
    for path in (STUDIES, f"{STUDIES}/{uid('one')}/series", f"/fhir/ImagingStudy/{uid('one')}", "/fhir/ImagingStudy"):
        headers = {"Accept": "application/fhir+json"} if path.startswith("/fhir") else JSON
        first, second = served.get(path, headers=headers), served.get(path, headers=headers)
        assert (first.status_code, is_kept(first), is_kept(second)) == (200, False, True), path
        assert first.content == second.content
        assert lasting(first) == lasting(second)
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
        assert int(second.headers["age"]) >= 0


def test_an_answer_is_put_away_after_it_has_left_and_given_again_before(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.edge.kept._AFTER", 60)
    first = served.get(STUDIES)
    assert len(served.kept) == 0
    second = served.get(STUDIES)
    assert is_kept(second)
    assert second.content == first.content
    assert len(served.kept) == 1


def test_what_was_purged_before_an_answer_was_put_away_is_asked_anew(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.edge.kept._AFTER", 60)
    served.get(STUDIES)
    served.run(served.federation.answers.purge_node("a"))
    assert not is_kept(served.get(STUDIES))


def test_metadata_is_given_again_too(served: Served) -> None:
    path = f"{STUDIES}/{uid('one')}/metadata"
    first, second = served.get(path), served.get(path)
    assert (is_kept(first), is_kept(second)) == (False, True)
    assert first.content == second.content


def test_callers_of_other_rights_do_not_share_an_answer(served: Served) -> None:
    everything = served.get(STUDIES)
    of_b = served.get(STUDIES, nodes=["b"])
    research = served.get(STUDIES, purpose_of_use="HRESCH")
    assert [len(answer.json()) for answer in (everything, of_b, research)] == [4, 1, 3]
    for again, claims in ((everything, {}), (of_b, {"nodes": ["b"]}), (research, {"purpose_of_use": "HRESCH"})):
        answer = served.get(STUDIES, **claims)
        assert is_kept(answer)
        assert answer.content == again.content
    refused = served.get(STUDIES, scope="system/Patient.rs")
    assert (refused.status_code, refused.json()["code"]) == (403, "GW104")
    assert served.get(STUDIES, headers={"Authorization": ""}).status_code == 401
    assert served.get(STUDIES, aud="another").status_code == 401


def test_callers_of_other_views_do_not_share_an_answer(served: Served) -> None:
    for _ in range(2):
        assert "Specimen^A1" in served.get(STUDIES).text
        assert "Specimen^A1" not in served.get(STUDIES, sub="researcher").text
    assert is_kept(served.get(STUDIES, sub="researcher"))


def test_callers_of_the_same_rights_share_an_answer_and_each_is_in_the_audit(served: Served) -> None:
    path = f"{STUDIES}?PatientID=A*&node=a"
    first, second = served.get(path, sub="dr-a"), served.get(path, sub="dr-b", client_id="other")
    assert is_kept(second)
    written = served.records(2)
    assert [record["request_id"] for record in written] == [
        first.headers["x-request-id"],
        second.headers["x-request-id"],
    ]
    assert [(record["subject"], record["client"]) for record in written] == [("dr-a", "viewer"), ("dr-b", "other")]
    assert [list(record) for record in written] == [list(written[0])] * 2
    for record in written:
        assert record.pop("time").endswith("+00:00")
        assert record.pop("seconds") >= 0
        del record["request_id"], record["subject"], record["client"]
    assert written[0] == written[1]
    assert written[0]["studies"] == sorted(map(uid, ("one", "two", "three")))
    assert (written[0]["count"], written[0]["outcome"], written[0]["nodes"]) == (3, "success", ["a"])
    assert written[0]["match"]["PatientID"].startswith("hmac:")


def test_nothing_is_given_again_while_the_audit_cannot_be_written(served: Served) -> None:
    served.get(STUDIES)
    served.records(1)  # a sink that has just written does not fail
    assert served.gateway.app is not None
    served.gateway.app.state.estate.pipeline.audit._sink.failing = True
    refused = served.get(STUDIES)
    assert (refused.status_code, refused.json()["code"]) == (503, "GW110")
    assert "Specimen" not in refused.text
    served.gateway.app.state.estate.pipeline.audit._sink.failing = False


def test_an_answer_of_a_node_whose_configuration_has_changed_is_not_given_again(served: Served) -> None:
    served.get(STUDIES)
    node = served.federation.nodes["a"]
    before, node.digest = node.digest, node.digest + "0"
    assert not is_kept(served.get(STUDIES))
    assert is_kept(served.get(STUDIES))
    node.digest = before


def test_different_questions_have_different_answers(served: Served) -> None:
    other = {"Host": "other.example:8080"}
    asked: list[tuple[str, dict[str, str]]] = [
        (STUDIES, {}),
        (f"{STUDIES}?limit=1", {}),
        (f"{STUDIES}?node=a", {}),
        ("/nodes/a/dicom-web/studies", {}),
        ("/nodes/b/dicom-web/studies", {}),
        (STUDIES, {"Accept": "application/json"}),
        (STUDIES, other),
        ("/fhir/r4/ImagingStudy", {"Accept": "*/*"}),
        ("/fhir/r5/ImagingStudy", {"Accept": "*/*"}),
        ("/fhir/ImagingStudy", {"Accept": "application/fhir+json; fhirVersion=5.0"}),
        ("/fhir/ImagingStudy?_sort=_id&_count=1", {"Accept": "*/*"}),
        ("/fhir/ImagingStudy?_count=1&_sort=_id", {"Accept": "*/*"}),
    ]
    first = [served.get(path, headers=headers) for path, headers in asked]
    assert not any(map(is_kept, first))
    assert {answer.status_code for answer in first} == {200}
    again = [served.get(path, headers=headers) for path, headers in asked]
    assert all(map(is_kept, again))
    assert [one.content for one in first] == [one.content for one in again]
    assert "other.example:8080" in again[6].text
    assert len({(one.content, one.headers["content-type"]) for one in first}) == len(asked)


def test_the_order_of_a_search_s_parameters_makes_no_other_question(served: Served) -> None:
    first = served.get(f"{STUDIES}?limit=2&offset=0&includefield=00081030")
    second = served.get(f"{STUDIES}?includefield=00081030&offset=0&limit=2")
    assert is_kept(second)
    assert first.content == second.content


def test_a_first_page_from_memory_begins_a_walk_of_the_caller_s_own(served: Served) -> None:
    path = f"{STUDIES}?limit=2&offset="
    served.get(path + "0", sub="dr-a")
    first = served.get(path + "0", sub="dr-b")
    second = served.get(path + "2", sub="dr-b")
    assert (is_kept(first), is_kept(second)) == (True, False)
    assert "additional results" in first.headers["warning"]
    assert len({study["0020000D"]["Value"][0] for study in (*first.json(), *second.json())}) == 4
    assert "may repeat" not in second.headers.get("warning", "")
    assert "may repeat" in served.get(path + "2", sub="dr-c").headers["warning"]
    assert not is_kept(served.get(path + "2", sub="dr-b")), "where it begins is the caller's own affair"


def test_parameters_stay_in_order_where_it_could_matter() -> None:
    for query in (b"accept=b&accept=a", b"b=1&%61=2", b"b", b""):
        assert canonical(b"/dicom-web/studies", query) == query
    assert canonical(b"/fhir/ImagingStudy", b"b=1&a=2") == b"b=1&a=2"
    assert canonical(b"/dicom-web/studies", b"b=1&a=2") == b"a=2&b=1"


def test_a_partial_answer_is_never_kept(issuer: TestIssuer, hospitals: list[dict[str, Any]], tmp_path: Path) -> None:
    silent = {"id": "gone", "name": "gone", "adapter": "dicomweb", "connection": {"url": "http://127.0.0.1:9"}}
    with Gateway([*hospitals, silent], oidc_issuer=issuer.issuer, audit=tmp_path / "audit") as running:
        served = Served(running, issuer, tmp_path / "audit")
        for path in (STUDIES, "/fhir/ImagingStudy"):
            for _ in range(2):
                answer = served.get(path, headers={"Accept": "*/*"})
                assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
                assert not is_kept(answer)
        assert len(served.kept) == 0


def test_refusals_are_not_kept(served: Served) -> None:
    for path in (f"{STUDIES}?limit=x", f"{STUDIES}/1.2.3/metadata", "/fhir/ImagingStudy/1.2.3", "/nothing/here"):
        assert served.get(path).status_code >= 400
    assert len(served.kept) == 0


PURGES: dict[str, Callable[[Cache], Coroutine[Any, Any, int]]] = {
    "node": lambda cache: cache.purge_node("a"),
    "study": lambda cache: cache.purge_study(uid("one")),
    "patient": lambda cache: cache.purge_patient("urn:a", "A1"),
}


@pytest.mark.parametrize("purge", PURGES)
def test_a_purge_has_the_nodes_asked_anew(served: Served, purge: str) -> None:
    touched = (f"{STUDIES}?PatientID=A1&node=a", f"{STUDIES}/{uid('one')}/metadata", "/fhir/ImagingStudy?node=a")
    other = f"{STUDIES}?PatientID=B1&node=b"
    for path in (*touched, other):
        served.get(path, headers={"Accept": "*/*"})
        assert is_kept(served.get(path, headers={"Accept": "*/*"}))
    served.run(PURGES[purge](served.federation.answers._cache))
    for path in touched:
        assert not is_kept(served.get(path, headers={"Accept": "*/*"}))
    assert is_kept(served.get(other, headers={"Accept": "*/*"}))


def test_that_there_is_nothing_is_purged_with_what_was_asked_for(served: Served) -> None:
    path = f"{STUDIES}?StudyInstanceUID=1.2.3"
    served.get(path)
    assert is_kept(served.get(path))
    served.run(served.federation.answers._cache.purge_study("1.2.3"))
    assert not is_kept(served.get(path))


def test_a_study_that_is_not_where_it_was_is_not_shown_from_memory(served: Served) -> None:
    path = f"{STUDIES}?StudyInstanceUID={uid('one')}"
    served.get(path)
    assert is_kept(served.get(path))
    served.run(served.federation.forget(uid("one"), list(served.federation.nodes.values())))
    assert not is_kept(served.get(path))


def test_head_is_answered_from_what_get_has_left(served: Served) -> None:
    whole, head = served.get(STUDIES), served.get(STUDIES, method="HEAD")
    assert is_kept(head)
    assert (head.status_code, head.content) == (200, b"")
    assert lasting(head) == lasting(whole)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("form", ["{}", "W/{}", '"another", {}', "*"])
def test_a_caller_that_has_the_answer_gets_304(served: Served, form: str, kept: bool) -> None:
    tag = served.get(STUDIES).headers["etag"]
    if not kept:
        served.kept.clear()
    answer = served.get(STUDIES, headers={"If-None-Match": form.format(tag)})
    assert (answer.status_code, answer.content, answer.headers["etag"], is_kept(answer)) == (304, b"", tag, kept)
    assert not [name for name in answer.headers if name.startswith("content-")]
    assert is_kept(served.get(STUDIES)), "a 304 leaves the whole answer behind"
    other = served.get(STUDIES, headers={"If-None-Match": '"another"'})
    assert (other.status_code, is_kept(other)) == (200, True)


def test_a_caller_may_ask_for_an_answer_made_anew(served: Served) -> None:
    served.get(STUDIES)
    for wish in ("no-cache", "max-age=0", "No-Cache, foo", "no-store"):
        assert not is_kept(served.get(STUDIES, headers={"Cache-Control": wish})), wish
    assert is_kept(served.get(STUDIES, headers={"Cache-Control": "max-age=05"}))
    served.kept.clear()
    served.get(STUDIES, headers={"Cache-Control": "no-store"})
    assert len(served.kept) == 0


def test_what_is_given_again_is_logged_counted_and_guarded_like_the_first(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(telemetry, "_request_lines", telemetry.Lines(written))
    before = _counted(served)
    answers = [served.get(STUDIES) for _ in range(3)]
    assert _counted(served) == before + 3
    lines = [line for line in map(json.loads, written.getvalue().splitlines()) if line["route"] == "search"]
    assert [line["request_id"] for line in lines] == [answer.headers["x-request-id"] for answer in answers]
    for line in lines:
        assert (line["event"], line["method"], line["status"]) == ("request", "GET", 200)
    assert [(line["cache"], line["bytes"]) for line in lines[1:]] == [("kept", len(answers[0].content))] * 2
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "total;dur=" in answer.headers["server-timing"]


def _counted(served: Served) -> float:
    text = served.get("/metrics").text
    found = re.search(r'gateway_requests_total{method="GET",route="search",status="200"} (\S+)', text)
    return float(found[1]) if found else 0.0


def test_what_was_asked_takes_room_too(served: Served) -> None:
    long_names = "x/" + "y" * 20_000
    for headers in ({"Accept": f"{JSON['Accept']}, {long_names}"}, {"Prefer": long_names}):
        before = served.kept.bytes
        assert served.get(STUDIES, headers=headers).status_code == 200
        assert is_kept(served.get(STUDIES, headers=headers))
        assert served.kept.bytes > before + len(long_names), headers
    before, asked = (
        served.kept.bytes,
        f"{STUDIES}?StudyInstanceUID={','.join(f'1.2.{number}' for number in range(1000, 3000))}",
    )
    assert served.get(asked).status_code == 200
    assert is_kept(served.get(asked))
    assert served.kept.bytes > before + len(asked)


def test_nothing_is_kept_where_there_is_no_cache(hospitals: list[dict[str, Any]]) -> None:
    for off in ({"cache": False}, {"kept_bytes": 0}, {"find_ttl": 0}):
        with Gateway(hospitals[:1], **off) as running:
            for _ in range(2):
                assert not is_kept(running.get(STUDIES, headers=JSON))


KEYS = st.sampled_from(["PatientID=A*", "PatientID=A1", "StudyDate=20260101-", "Modality=OT", "PatientName=spec*"])
PAGES = st.sampled_from(
    ["limit=1", "limit=2", "offset=1", "includefield=all", "fuzzymatching=true", "node=a", "node=a,b"]
)
FHIR = st.sampled_from(["_count=1", "_summary=count", "_sort=_id", "started=ge2026", "_include=ImagingStudy:patient"])
PATHS = st.sampled_from([STUDIES, "/dicom-web/series", f"{STUDIES}/{uid('one')}/series", "/nodes/a/dicom-web/studies"])
TYPES = st.sampled_from(["application/dicom+json", "application/json", "*/*", "application/json;q=0.5, */*;q=0.1"])


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    if draw(st.booleans()):
        path, pieces = draw(PATHS), draw(st.lists(st.one_of(KEYS, PAGES), max_size=3, unique=True))
        return f"{path}?{'&'.join(pieces)}", {"Accept": draw(TYPES)}
    path = draw(st.sampled_from(["/fhir/ImagingStudy", "/fhir/r5/ImagingStudy"]))
    return f"{path}?{'&'.join(draw(st.lists(FHIR, max_size=2, unique=True)))}", {"Accept": "*/*"}


@pytest.fixture(scope="module")
def open_gateway(hospitals: list[dict[str, Any]]) -> Iterator[Gateway]:
    with Gateway(hospitals, open_purpose="TREAT") as running:
        yield running


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=requests())
def test_whatever_is_asked_a_kept_answer_is_what_a_fresh_one_would_be(
    open_gateway: Gateway, asked: tuple[str, dict[str, str]]
) -> None:
    path, headers = asked
    first = open_gateway.get(path, headers=headers)
    kept = open_gateway.get(path, headers=headers)
    fresh = open_gateway.get(path, headers={**headers, "Cache-Control": "no-cache"})
    assert is_kept(kept) or first.status_code != 200 or first.headers["cache-control"] == "no-store" or "offset" in path
    if first.status_code == 200:
        assert first.content == kept.content == fresh.content
        assert lasting(kept) == lasting(fresh)
    assert first.status_code == kept.status_code == fresh.status_code


# How long: over a stand-in for the application, whose node answers are as fresh as the test says.


class Anyone:
    """A pipeline that lets everybody have everything."""

    def access(self, caller: object) -> str:
        return ""

    def again(self, caller: object, grounds: Grounds, started: float) -> bool:
        return True


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def stand_in(clock: Clock, age: float, remaining: float, *, stale: bool = False) -> tuple[httpx.AsyncClient, list[str]]:
    """An application whose one answer was made from a node answer of this age, with as much time left."""
    made: list[str] = []

    async def answer(request: Request) -> Response:
        made.append(request.url.path)
        freshness.current().note(age, remaining, stale=stale)
        making = bodies.current()
        assert making is not None
        making.give_grounds(Grounds("ImagingStudy", "s", (), (), b""))
        control = f"private, max-age={int(remaining)}, must-revalidate"
        return revalidated(
            request, Response(b"[]", headers={"ETag": '"1"', "Cache-Control": control, "Age": f"{age:.0f}"})
        )

    kept = Bodies(100_000, clock)
    app = Starlette(routes=[Route("/", answer)], middleware=[Middleware(_As), Middleware(KeptAnswers, kept, 30.0)])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway"), made


class _As:
    """Authentication's and the residence's part: names the caller, and gives the pipeline."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["caller"], scope["estate"] = Caller(), SimpleNamespace(pipeline=Anyone())
        await self._app(scope, receive, send)


async def test_an_answer_is_kept_no_longer_than_the_node_answers_it_was_made_from() -> None:
    clock = Clock()
    client, made = stand_in(clock, 5, 7)
    async with client:
        await client.get("/")
        clock.now += 6.9
        await client.get("/")
        assert len(made) == 1
        clock.now += 0.2
        await client.get("/")
        assert len(made) == 2


async def test_age_goes_on_while_an_answer_is_kept_and_max_age_stands() -> None:
    clock = Clock()
    client, _ = stand_in(clock, 5, 20)
    async with client:
        first = await client.get("/")
        clock.now += 3.5
        later = await client.get("/")
        revalidated_ = await client.get("/", headers={"If-None-Match": '"1"'})
    assert (first.headers["age"], first.headers["cache-control"]) == ("5", "private, max-age=20, must-revalidate")
    for answer in (later, revalidated_):
        assert answer.headers.get_list("age") == ["8"]
        (control,) = answer.headers.get_list("cache-control")
        assert control == "private, max-age=20, must-revalidate"
    assert revalidated_.status_code == 304


async def test_a_stale_answer_is_not_kept() -> None:
    client, made = stand_in(Clock(), 50, 0, stale=True)
    async with client:
        await client.get("/")
        await client.get("/")
    assert len(made) == 2


def test_the_edge_reads_no_header_that_an_answer_s_key_leaves_out() -> None:
    """What is read of a request's headers is in the key, or does not shape the body of an answer that is kept."""
    source = "\n".join(path.read_text() for path in Path(gateway.edge.__file__).parent.rglob("*.py"))
    read = {name.lower() for name in re.findall(r'headers\.get(?:list)?\(f?"([\w{}-]+)"', source)}
    read |= {name.lower() for name in re.findall(r'"([\w-]+)" in \w+(?:\.\w+)*\.headers', source)}
    read |= {name.lower() for name in re.findall(r'sent\(scope, b"([\w-]+)"', source)}
    assert {"accept", "prefer", "if-none-match", "authorization"} <= read
    elsewhere = {"authorization", "if-none-match", "traceparent", "forwarded", "x-forwarded-{part}", "etag"}
    of_a_body = {"content-type", "content-length", "content-encoding"}  # the answer to a POST is never kept
    assert read - elsewhere - of_a_body <= {name.decode() for name in SHAPING}
