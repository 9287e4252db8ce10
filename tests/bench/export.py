"""`$export` of a catalogue of 168,507 real studies over twenty nodes, its gateway killed in the middle: whether a line is lost or
comes twice, and what memory it takes."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson

from tests import peers
from tests.bench import idc
from tests.bench.measuring import Bar, Bench, say
from tests.bench.processes import Memory, Server
from tests.catalogue import CatalogueNodes, catalogue_nodes
from tests.export.asking import Export, begin

DELAY, PROCESSES, PAGE = 0.02, 2, 1000
SECONDS = 1800
_KILLED_AT = 95
"""Pages after which the gateway is killed, of about 175: in the middle of a crowded day. Of the three that hold 43 % of the
catalogue one lies before and one behind it, so that the memory of the two halves can be compared."""


def run(bench: Bench) -> None:
    say("export")
    rows = idc.rows()
    if rows is None:
        return
    with (
        catalogue_nodes(rows, delay=DELAY, processes=PROCESSES) as nodes,
        bench.attempting("export of the catalogue"),
        peers.home() as directory,
        httpx.Client(headers={"Authorization": f"Bearer {bench.identity.token}"}, timeout=60) as client,
    ):
        _export(bench, nodes, rows, directory, client)


def _export(
    bench: Bench,
    nodes: CatalogueNodes,
    rows: Sequence[Sequence[Mapping[str, Any]]],
    directory: Path,
    client: httpx.Client,
) -> None:
    began = time.monotonic()
    with _gateway(bench, nodes, directory) as (served, first):
        export = begin(client, f"{served.url}/fhir/$export")
        _follow(export, _KILLED_AT)
        served.process.kill()
        served.process.wait()
    say(f"  killed after: {export.progress[-1]}; memory grew by {first.growth:.0f} MB to {first.most / 1e6:.0f} MB")
    with _gateway(bench, nodes, directory) as (served, second):
        export = Export(client, re.sub(r"^http://[^/]+", served.url, export.url))
        manifest = _follow(export)
        say(
            f"  done after {time.monotonic() - began:.0f} s; memory grew by {second.growth:.0f} MB to {second.most / 1e6:.0f} MB"
        )
        studies, patients = (_ids(client, manifest, type_) for type_ in ("ImagingStudy", "Patient"))
    held = {row["StudyInstanceUID"] for part in rows for row in part}
    people = {row["PatientID"] for part in rows for row in part}
    once = sum(studies[uid] == 1 for uid in held)
    size = sum(path.stat().st_size for path in directory.rglob("*.ndjson")) / 1e6
    note = (
        f"{time.monotonic() - began:.0f} s in all, {size:.0f} MB in {len(manifest['output'])} files, "
        f"{len(studies) - once} else, {len(manifest['error'])} files of errors; begun again at: {export.progress[0]}"
    )
    bench.count(
        "Export of the catalogue, killed in the middle: studies exported once / held",
        "studies",
        once,
        len(held),
        Bar("equal"),
        note,
    )
    lone = sum(times == 1 for times in patients.values())
    bench.count(
        "Export of the catalogue, killed in the middle: patients exported once / held",
        "patients",
        lone,
        len(people),
        Bar("equal"),
    )
    name = f"Export of the catalogue: most memory over the pages after the kill / over the {_KILLED_AT} before it"
    days = Counter(row["StudyDate"] for part in rows for row in part)
    note = f"more pages take no more; the largest day of the catalogue has {max(days.values()):,} studies"
    bench.count(name, "MB", second.most / 1e6, first.most / 1e6, Bar("at most", 1.3), note)


@contextmanager
def _gateway(bench: Bench, nodes: CatalogueNodes, directory: Path) -> Iterator[tuple[Server, Memory]]:
    """One that keeps its exports, and the memory that it takes meanwhile."""
    kept = {
        "export_directory": directory / "kept",
        "export_page": PAGE,
        "secret": "the same for all of them",
        "store": directory / "store",
    }
    tables = nodes.tables(quirks=[], search_deadline=60)
    with (
        bench.gateway(tables, probe="false", search_deadline=60, **kept) as served,
        Memory(served.process) as memory,
    ):
        yield served, memory


def _follow(export: Export, until: int | None = None) -> dict[str, Any]:
    """The manifest when it is over, or {} after so many pages; says now and then how far it has come."""
    ends, told = time.monotonic() + SECONDS, 0.0
    while time.monotonic() < ends:
        answer = export.poll()
        if answer.status_code == 200:
            return dict(answer.json())
        if answer.status_code not in (202, 429):
            raise RuntimeError(answer.text)
        if export.progress and time.monotonic() - told > 15:
            told = time.monotonic()
            say(f"  {export.progress[-1]}")
        pages = re.search(r"in (\d+) pages", export.progress[-1]) if export.progress else None
        if until and pages and int(pages.group(1)) >= until:
            return {}
        time.sleep(1.0)
    raise RuntimeError("the export did not end in time")


def _ids(client: httpx.Client, manifest: Mapping[str, Any], type_: str) -> Counter[str]:
    """How often each id comes, a line at a time."""
    found: Counter[str] = Counter()
    for file in manifest["output"]:
        if file["type"] == type_:
            with client.stream("GET", file["url"]) as answer:
                found.update(orjson.loads(line)["id"] for line in answer.iter_lines())
    return found
