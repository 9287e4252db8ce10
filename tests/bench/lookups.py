"""Cached look-ups on 16 connections by one worker: against Orthanc, against a PACS from PyPI, and FHIR against DICOMweb."""

from __future__ import annotations

from contextlib import ExitStack

from gateway.simulators.bulk import ct_series
from tests import peers
from tests.bench import load, peer_server
from tests.bench.measuring import Bar, Bench, Side, say
from tests.bench.processes import Server, node

JSON, FHIR = "application/dicom+json", "application/fhir+json"
STUDIES = 101
OHIF = f"limit={STUDIES}&offset=0&fuzzymatching=true&includefield=00081030,00080060,00080090,00100030"
"""The study list of OHIF, as it asks when it is opened."""


def run(bench: Bench) -> None:
    say(f"look-ups, asked by {load.client()}")
    with peers.home() as home, ExitStack() as stack:
        uids = [ct_series(home / str(n), 1, rows=16, columns=16, key=f"study-{n}") for n in range(STUDIES)]
        files = sorted(home.rglob("*.dcm"))
        orthanc = stack.enter_context(peers.orthanc(files))
        served = stack.enter_context(
            bench.gateway([node("orthanc", "dicomweb", {"url": orthanc.dicomweb})], find_ttl=3600, location_ttl=3600)
        )
        one, first = f"StudyInstanceUID={uids[0]}", OHIF
        for what, query, bar in (("one study", one, 8.0), ("OHIF's first page of 101", first, 60.0)):
            mine = _side(bench, "gateway, cached", f"{served.url}/dicom-web/studies?{query}", JSON, served)
            other = _side(bench, "Orthanc", f"{orthanc.dicomweb}/studies?{query}", JSON, bar=Bar("at least", bar))
            bench.run(f"QIDO-RS {what}", "requests/s", [mine], [other])
        _fhir(bench, served, uids[0])
        _beside(bench, served, stack, files, one)


def _fhir(bench: Bench, served: Server, uid: str) -> None:
    root = served.url
    for what, search, query in (
        ("one study", f"identifier=urn:dicom:uid|urn:oid:{uid}", f"StudyInstanceUID={uid}"),
        (f"{STUDIES} studies", f"_count={STUDIES}", f"limit={STUDIES}&offset=0"),
    ):
        mine = _side(bench, "FHIR", f"{root}/fhir/ImagingStudy?{search}", FHIR, served)
        other = _side(bench, "our QIDO-RS", f"{root}/dicom-web/studies?{query}", JSON, bar=Bar("at least", 0.6))
        bench.run(f"ImagingStudy search, {what}", "requests/s", [mine], [other])


def _beside(bench: Bench, served: Server, stack: ExitStack, files: list, one: str) -> None:
    peer = stack.enter_context(peer_server.tiny_pacs(files))
    if peer is None:
        return
    for what, query in (("one study", one), (f"{STUDIES} studies", f"limit={STUDIES}&offset=0")):
        mine = _side(bench, "gateway, cached", f"{served.url}/dicom-web/studies?{query}", JSON, served)
        other = _side(bench, "tiny-pacs", f"{peer.dicomweb}/studies?{query}", JSON)
        bench.run(f"QIDO-RS {what}", "requests/s", [mine], [other])


def _side(
    bench: Bench, name: str, url: str, accept: str, process: Server | None = None, bar: Bar | None = None
) -> Side:
    asked = load.Load([url], accept, bench.identity.token, bench.seconds)
    return Side(name, asked.rate, process, bar, asked.cost)
