"""A catalogue of 168,507 real studies over twenty nodes: how soon its first page comes, and whether a walk misses any study."""

from __future__ import annotations

import itertools
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.bench import asking, idc
from tests.bench.measuring import Bar, Bench, say
from tests.catalogue import CatalogueNodes, catalogue_nodes

JSON, FHIR = "application/dicom+json", "application/fhir+json"
DELAY, MAXIMUM, PROCESSES = 0.05, 1000, 2
PAGES_SECONDS, WALK_SECONDS = 45, 900
_DEADLINE = 60
_YEARS = (1994, 1999, 2001, 2004, 2007, 2010, 2013, 2016, 2019)
_MODALITIES = ("CT", "MR", "PT", "SM", "MG", "SEG")

Row = Mapping[str, Any]


def run(bench: Bench) -> None:
    say("catalogue")
    rows = idc.rows()
    if rows is None:
        return
    with catalogue_nodes(rows, delay=DELAY, processes=PROCESSES) as nodes:
        with bench.attempting("first pages of the catalogue"):
            _first_pages(bench, nodes)
        nodes.change()
        with bench.attempting("the walk over unlimited nodes"):
            _walk_all(bench, nodes, rows)
        nodes.change(maximum=MAXIMUM)
        with bench.attempting("the walk over limited nodes"):
            _walk_limited(bench, nodes, rows)


@contextmanager
def _client(bench: Bench, nodes: CatalogueNodes) -> Iterator[asking.Client]:
    """Of a gateway over all nodes that has just started."""
    tables = nodes.tables(quirks=[], search_deadline=_DEADLINE)
    with (
        bench.gateway(tables, probe="false", search_deadline=_DEADLINE) as served,
        asking.Client(served.url, bench.identity.token) as client,
    ):
        yield client


# --- first pages


def _fhir_queries() -> Iterator[str]:
    yield ""
    yield from (f"&modality={modality}" for modality in _MODALITIES)
    yield from (f"&started=ge{year}-03-01" for year in _YEARS)
    yield from (f"&started=ge{a}-01-01&started=lt{b}-01-01" for a, b in itertools.pairwise(_YEARS))


def _qido_queries() -> Iterator[str]:
    yield ""
    yield from (f"&ModalitiesInStudy={modality}" for modality in _MODALITIES)
    yield from (f"&StudyDate={year}0401-" for year in _YEARS)
    yield from (f"&StudyDate={a}0201-{b}0131" for a, b in itertools.pairwise(_YEARS))


def _first_pages(bench: Bench, nodes: CatalogueNodes) -> None:
    """Each question is asked once: nobody has the answer yet."""
    for what, path, queries, accept in (
        ("FHIR _count=50", "/fhir/ImagingStudy?_count=50", _fhir_queries(), FHIR),
        ("QIDO-RS limit=101", "/dicom-web/studies?limit=101&offset=0", _qido_queries(), JSON),
    ):
        with _client(bench, nodes) as client:
            client.get(f"{path}&{'patient.identifier=nobody' if accept == FHIR else 'PatientID=nobody'}", accept)
            nodes.reset()
            taken = _taken(client, [path + query for query in queries], accept)
        counts = nodes.counts()
        fetched = sum(one.rows for one in counts) / len(taken)
        trip = max(statistics.median(one.seconds) for one in counts if one.seconds) * 1e3
        note = f"median {statistics.median(taken):.0f} ms, {fetched:.0f} rows fetched, {_requests(counts, taken):.1f} calls a node"
        name = f"Catalogue, first page, {what}: p95 of {len(taken)} queries / a round trip of the slowest node"
        bench.count(name, "ms", _p95(taken), trip, Bar("at most", 5), note)


def _taken(client: asking.Client, targets: Sequence[str], accept: str) -> list[float]:
    """Milliseconds of each, in order of size. A refusal counts as the deadline; no more are asked when time is up."""
    taken, ends = [], time.monotonic() + PAGES_SECONDS
    for target in targets:
        if taken and time.monotonic() > ends:
            say(f"  {len(targets) - len(taken)} of {len(targets)} first pages were not asked for any more")
            break
        try:
            taken.append(client.get(target, accept).milliseconds)
        except RuntimeError as error:
            say(f"  {error}")
            taken.append(_DEADLINE * 1e3)
    return sorted(taken)


def _p95(taken: Sequence[float]) -> float:
    return taken[math.ceil(0.95 * len(taken)) - 1]


def _requests(counts: Sequence[Any], taken: Sequence[float]) -> float:
    return sum(one.requests for one in counts) / len(taken) / len(counts)


# --- the whole walk


@dataclass
class Walk:
    """What the pages said: how often each study came, which parts were declared incomplete, whether it came to its end."""

    seen: Counter[str] = field(default_factory=Counter)
    declared: set[str] = field(default_factory=set)
    pages: int = 0
    seconds: float = 0.0
    is_whole: bool = False
    refusal: str = ""

    @property
    def once(self) -> int:
        return sum(times == 1 for times in self.seen.values())

    def __str__(self) -> str:
        rest = "" if self.is_whole else f", broken off: {self.refusal or 'out of time'}"
        return f"{self.pages} pages in {self.seconds:.0f} s, {len(self.seen) - self.once} more than once{rest}"


def walk(client: asking.Client, path: str) -> Walk:
    """Follows the next links of a FHIR search from its first page."""
    done, began = Walk(), time.monotonic()
    target: str | None = path
    while target and time.monotonic() - began < WALK_SECONDS:
        try:
            bundle = orjson.loads(client.get(target, FHIR).body)
        except RuntimeError as error:
            done.refusal = str(error)[:60]
            break
        done.pages += 1
        for entry in bundle.get("entry", ()):
            resource = entry["resource"]
            if resource["resourceType"] == "ImagingStudy":
                done.seen[resource["id"]] += 1
            elif resource["resourceType"] == "OperationOutcome":
                done.declared |= set(_texts(resource))
        target = next((link["url"] for link in bundle["link"] if link["relation"] == "next"), None)
    done.seconds, done.is_whole = time.monotonic() - began, target is None
    return done


def _texts(outcome: Mapping[str, Any]) -> Iterator[str]:
    for issue in outcome["issue"]:
        details = issue.get("details", {})
        if any(coding.get("code") == "GW209" for coding in details.get("coding", ())):
            yield issue.get("diagnostics") or details.get("text", "")


def _walked(bench: Bench, nodes: CatalogueNodes) -> Walk:
    with _client(bench, nodes) as client:
        return walk(client, "/fhir/ImagingStudy?_count=1000")


def _walk_all(bench: Bench, nodes: CatalogueNodes, rows: Sequence[Sequence[Row]]) -> None:
    done = _walked(bench, nodes)
    held = {row["StudyInstanceUID"] for part in rows for row in part}
    once = sum(done.seen[uid] == 1 for uid in held)
    name = "Catalogue, the whole walk, unlimited nodes: studies seen exactly once / held"
    bench.count(name, "studies", once, len(held), Bar("equal"), str(done))


def _walk_limited(bench: Bench, nodes: CatalogueNodes, rows: Sequence[Sequence[Row]]) -> None:
    done = _walked(bench, nodes)
    segments = [segment_of(text) for text in done.declared]
    ids = [table["id"] for table in nodes.tables()]
    missing = [(node, row) for node, part in zip(ids, rows, strict=True) for row in part if not _is_seen(done, row)]
    whole = {segment.node for segment in segments if segment.is_whole}
    named = sum(any(one.covers(node, row) and not one.is_whole for one in segments) for node, row in missing)
    declared = sum(any(one.covers(node, row) for one in segments) for node, row in missing) if done.is_whole else 0
    total = sum(map(len, rows))
    note = (
        f"{done}; {len(missing)} not shown, {named} of them in {len(segments) - len(whole)} declared segments, "
        f"{declared - named} at {len(whole)} nodes declared as a whole"
    )
    name = f"Catalogue, the whole walk, nodes of {MAXIMUM} rows: studies seen once or declared missing / held"
    bench.count(name, "studies", done.once + declared, total, Bar("equal"), note)


def _is_seen(done: Walk, row: Row) -> bool:
    return row["StudyInstanceUID"] in done.seen


@dataclass(frozen=True)
class Segment:
    """A part of a node that an answer declared incomplete; without any condition it is the whole node."""

    node: str
    dates: tuple[str, str] | None = None
    times: tuple[str, str] | None = None
    modality: str | None = None
    patient: str | None = None
    is_undated: bool = False

    @property
    def is_whole(self) -> bool:
        return not (self.dates or self.times or self.modality or self.patient is not None or self.is_undated)

    def covers(self, node: str, row: Row) -> bool:
        return (
            node == self.node
            and (self.dates is None or (bool(row["StudyDate"]) and self.dates[0] <= row["StudyDate"] <= self.dates[1]))
            and (self.times is None or self.times[0] <= row.get("StudyTime", "") <= self.times[1] + "9")
            and (self.modality is None or self.modality in row["ModalitiesInStudy"])
            and (self.patient is None or row["PatientID"].startswith(self.patient))
            and (not self.is_undated or not row["StudyDate"])
        )


_DECLARED = re.compile(r"node (\S+): stopped at its maximum[^;]*(?:; not all is shown of (.+))?")


def segment_of(text: str) -> Segment:
    """Reads 'node n: stopped at its maximum number of results; not all is shown of StudyDate 20000101-20000131, Modality CT, PatientID A*'.

    Another text about a node's maximum is about the whole node.
    """
    found = _DECLARED.match(text)
    if found is None:
        raise ValueError("an issue that says GW209 but no node")
    said = found.group(2) or ""
    values = dict(re.findall(r"(StudyDate|StudyTime|Modality|PatientID) (\S+?)(?=,|;|$)", said))
    return Segment(
        found.group(1),
        _ends(values.get("StudyDate")),
        _ends(values.get("StudyTime")),
        values.get("Modality"),
        values["PatientID"].removesuffix("*") if "PatientID" in values else None,
        "without a StudyDate" in said,
    )


def _ends(span: str | None) -> tuple[str, str] | None:
    """'a-b', 'a', 'a-' or '-b'."""
    if span is None:
        return None
    first, dash, last = span.partition("-")
    return first, (last or "99999999") if dash else first
