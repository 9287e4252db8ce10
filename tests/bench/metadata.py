"""Metadata of a series of 400 instances: warm and cold, against Orthanc's own answer and against a bare C-GET of the series."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom

from gateway.simulators.bulk import ct_series
from tests import peers
from tests.bench import asking, getter
from tests.bench.measuring import Bar, Bench, Side, say
from tests.bench.processes import Server, node, simulator

JSON = "application/dicom+json"
INSTANCES = 400


@dataclass(frozen=True)
class Series:
    study: str
    series: str
    tiny: str
    files: list[Path]

    @property
    def path(self) -> str:
        return f"/dicom-web/studies/{self.study}/series/{self.series}/metadata"


def run(bench: Bench) -> None:
    say("metadata of a series")
    with _held() as held, peers.orthanc(held.files) as orthanc:
        web = node("orthanc", "dicomweb", {"url": orthanc.dicomweb}, search_deadline=60)
        with bench.attempting("warm metadata"):
            _warm(bench, web, orthanc, held)
        with bench.attempting("cold metadata of a DICOMweb node"):
            _cold_web(bench, web, orthanc, held)
        with bench.attempting("cold metadata of the simulator"), simulator("dimse", held.files[0].parent) as simulated:
            _cold_dimse(bench, "simulator", simulated.port, "SIMULATOR", held)
        with bench.attempting("cold metadata of Orthanc by DIMSE"):
            _cold_dimse(bench, "Orthanc", orthanc.port, orthanc.ae_title, held)


@contextmanager
def _held() -> Iterator[Series]:
    with peers.home() as home:
        study = ct_series(home, INSTANCES)
        tiny = ct_series(home, 1, rows=16, columns=16, key="tiny")
        files = sorted(home.glob("*.dcm"))
        series = str(pydicom.dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID)
        yield Series(study, series, tiny, files)


def _get(root: str, token: str, path: str, times: int = 1) -> float:
    """Milliseconds of one question, of several on one connection."""
    with asking.Client(root, token) as client:
        return sum(client.get(path, JSON).milliseconds for _ in range(times)) / times


def _warm(bench: Bench, web: dict[str, Any], orthanc: peers.Orthanc, held: Series) -> None:
    with bench.gateway([web]) as served:
        mine = Side("gateway, warm", lambda: 1e3 / _get(served.url, bench.identity.token, held.path, 10), served)
        other = Side("Orthanc", lambda: 1e3 / _get(orthanc.http, "", held.path), bar=Bar("at least", 20))
        bench.run(f"Series metadata, {INSTANCES} instances", "requests/s", [mine], [other])


def _cold_web(bench: Bench, web: dict[str, Any], orthanc: peers.Orthanc, held: Series) -> None:
    mine = Side("gateway, cold (dicomweb)", lambda: _cold(bench, web, held))
    other = Side("Orthanc", lambda: _get(orthanc.http, "", held.path), bar=Bar("at most", 1.3))
    bench.run(f"Series metadata, {INSTANCES} instances", "ms", [mine], [other])


def _cold_dimse(bench: Bench, name: str, port: int, title: str, held: Series) -> None:
    pacs = node("pacs", "dimse", {"host": "127.0.0.1", "port": port, "called_ae_title": title}, search_deadline=60)
    mine = Side("gateway, cold (dimse)", lambda: _cold(bench, pacs, held))
    target = getter.Target(port, title, held.study)
    other = Side("bare C-GET", lambda: getter.run(target).seconds * 1e3, bar=Bar("at most", 1.2))
    bench.run(f"Series metadata, {INSTANCES} instances from {name}", "ms", [mine], [other])


def _cold(bench: Bench, table: dict[str, Any], held: Series) -> float:
    """Of a gateway that has just started and knows nothing but the node, which it met over another study."""
    with bench.gateway([table]) as served:
        _meet(served, bench.identity.token, held)
        return _get(served.url, bench.identity.token, held.path)


def _meet(served: Server, token: str, held: Series) -> None:
    with asking.Client(served.url, token) as client:
        client.get(f"/dicom-web/studies/{held.tiny}/metadata", JSON)
