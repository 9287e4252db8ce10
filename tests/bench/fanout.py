"""Searches that no cache answers, over many nodes: against the slowest node's own clock, and against a bare threaded C-FIND."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from gateway.simulators.bulk import ct_series
from tests import peers
from tests.bench import asking, finder
from tests.bench.fetcher import Fetcher
from tests.bench.measuring import Bar, Bench, Side, say
from tests.bench.processes import node, processor_seconds, simulators
from tests.catalogue import catalogue_nodes
from tests.specimens import uid

JSON = "application/dicom+json"
DELAY = 0.05
DIMSE_NODES, DIMSE_PER_PROCESS = 20, 5
_BARS = {(20, 20): Bar("plus", 15, "ms"), (50, 20): Bar("plus", 40, "ms")}
_DAYS = itertools.count()
_PATIENT = {"search_deadline": 60, "first_byte_deadline": 60, "idle_deadline": 60}


def run(bench: Bench) -> None:
    say(f"fan-out, a DICOMweb node takes {DELAY * 1e3:g} ms and is a process of its own")
    for nodes in (20, 50):
        for rows in (20, 100, 1000):
            with bench.attempting(f"{nodes} DICOMweb nodes, {rows} rows each"):
                _dicomweb(bench, nodes, rows)
    for rows in (20, 100):
        with bench.attempting(f"{DIMSE_NODES} DIMSE nodes, {rows} rows each"):
            _dimse(bench, rows)


def _changing() -> str:
    """A range that takes in every study and was never asked for before."""
    day = next(_DAYS)
    return f"19000101-{2100 + day // 336}{1 + day // 28 % 12:02d}{1 + day % 28:02d}"


def _dicomweb(bench: Bench, count: int, rows: int) -> None:
    held = [[_study(number, row) for row in range(rows)] for number in range(count)]
    requests: list[int] = []
    spent: list[float] = []
    bare: list[float] = []
    with (
        catalogue_nodes(held, delay=DELAY, processes=count) as nodes,
        Fetcher([table["connection"]["url"] for table in nodes.tables()]) as fetcher,
        bench.gateway(nodes.tables(quirks=[], **_PATIENT), probe=False, search_deadline=60) as served,
        asking.Client(served.url, bench.identity.token) as client,
    ):

        def slowest() -> float:
            return max(second for one in nodes.counts() for second in one.seconds) * 1e3

        def measure() -> tuple[float, float]:
            nodes.reset()
            bare.append(fetcher.milliseconds(f"StudyDate={_changing()}", count * rows) - slowest())
            nodes.reset()
            before = processor_seconds(served.port)
            answer = client.get(f"/dicom-web/studies?StudyDate={_changing()}", JSON)
            spent.append((processor_seconds(served.port) - before) * 1e3)
            _check(answer.body, count * rows)
            requests.append(sum(one.requests for one in nodes.counts()))
            return answer.milliseconds, slowest()

        bench.pairs(
            f"Fan-out, {count} DICOMweb nodes, {rows} rows each: gateway / the slowest node's own clock",
            "ms",
            measure,
            _BARS.get((count, rows)),
            lambda: (
                f"{statistics.mean(requests) / count:g} requests a node, "
                f"processor time of the gateway {statistics.median(spent):.0f} ms, "
                f"a bare client that only sorts: + {statistics.median(bare):.1f} ms"
            ),
        )


def _study(number: int, row: int) -> dict[str, Any]:
    return {
        "StudyDate": f"20{row % 25:02d}{1 + row % 12:02d}{1 + number % 28:02d}",
        "StudyTime": "101500",
        "AccessionNumber": f"F{number:03d}-{row:04d}",
        "ModalitiesInStudy": ["CT"],
        "ReferringPhysicianName": "Referrer^Ada",
        "PatientName": f"Fanout^N{number}R{row}",
        "PatientID": f"F{number:03d}{row:04d}",
        "PatientBirthDate": "19700101",
        "PatientSex": "O",
        "StudyInstanceUID": uid("fan-out", number, row),
        "StudyID": str(row),
        "StudyDescription": "CT of the chest",
        "NumberOfStudyRelatedSeries": 2,
        "NumberOfStudyRelatedInstances": 120,
    }


def _check(body: bytes, expected: int) -> None:
    found = len(json.loads(body or b"[]"))
    if found != expected:
        raise RuntimeError(f"{found} studies where there are {expected}")


def _dimse(bench: Bench, rows: int) -> None:
    """The PACS share four processes, five each: twenty Python processes would have two cores to themselves."""
    with peers.home() as home:
        directories = [_archive(home / f"{number:02d}", rows) for number in range(DIMSE_NODES)]
        with simulators("dimse", directories, DIMSE_PER_PROCESS) as ports:
            tables = [
                node(f"n{number:02d}", "dimse", {"host": "127.0.0.1", "port": port, "called_ae_title": "SIMULATOR"})
                for number, port in enumerate(ports)
            ]
            with (
                bench.gateway(tables, probe=False) as served,
                asking.Client(served.url, bench.identity.token) as client,
            ):

                def mine() -> float:
                    answer = client.get(f"/dicom-web/studies?StudyDate={_changing()}", JSON)
                    _check(answer.body, rows * DIMSE_NODES)
                    return answer.milliseconds

                def theirs() -> float:
                    found = finder.run(_changing(), "SIMULATOR", ports)
                    assert found.rows == rows * DIMSE_NODES
                    return found.seconds * 1e3

                bar = Bar("at most", 1.3) if rows == 20 else None
                case = f"Fan-out, {DIMSE_NODES} DIMSE nodes, {rows} rows each"
                bench.run(case, "ms", [Side("gateway", mine)], [Side("bare threaded C-FINDs", theirs, bar=bar)])


def _archive(directory: Path, studies: int) -> Path:
    for number in range(studies):
        ct_series(directory, 1, rows=4, columns=4, key=f"{directory.name}-{number}")
    return directory
