"""What one sick node may do to an answer: be named in it, and delay it by its deadline. Nothing more, and nothing for long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pydicom
import pytest
from pydicom.data import get_testdata_file

from gateway.simulators.dicomweb import DicomwebOptions, DicomwebSimulator
from gateway.simulators.dimse import DimseOptions, DimseSimulator
from gateway.simulators.fhir import FhirOptions, FhirSimulator
from tests.interop.conftest import ISSUER, node
from tests.peers import BlackHole
from tests.running import Gateway, files_node
from tests.shelf import Shelf

DEADLINE = 1.0
SLACK = 1.0  # for a machine that is busy with other tests
ANY_PARTS = 'multipart/related; type="application/dicom"; transfer-syntax=*'


def dimse_node(name: str, simulator: Any, **more: Any) -> dict[str, Any]:
    connection = {"host": "127.0.0.1", "port": simulator.port, "called_ae_title": "SIMULATOR"}
    return node(name, "dimse", connection, **more)


# --- one question each


@pytest.fixture(scope="module")
def over_a_hundred_studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hundred")
    made = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    del made.PixelData
    for number in range(120):  # a round number might be a maximum
        made.StudyInstanceUID, made.SeriesInstanceUID = f"1.2.7.{number}", f"1.2.7.{number}.1"
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"1.2.7.{number}.1.1"
        made.PatientID, made.PatientName = f"P{number}", f"Person^{number}"
        made.save_as(folder / f"{number}.dcm")
    return folder


@pytest.mark.parametrize(
    "address", ["/dicom-web/studies", "/dicom-web/studies?PatientName=person*", "/fhir/ImagingStudy?_count=100"]
)
def test_a_search_over_a_hundred_studies_is_one_c_find_at_each_dimse_node(
    over_a_hundred_studies: Path, address: str
) -> None:
    with DimseSimulator(over_a_hundred_studies) as one, DimseSimulator(over_a_hundred_studies) as other:
        nodes = [dimse_node("one", one), dimse_node("other", other, patient_id_issuer="OTHER")]
        with Gateway(nodes) as gateway:
            before = [dict(simulator.operations) for simulator in (one, other)]
            answer = gateway.get(address)
            found = answer.json()["entry"] if "fhir" in address else answer.json()
            assert len(found) == (100 if "fhir" in address else 240)
            for simulator, was in zip((one, other), before, strict=True):
                asked = {name: count - was.get(name, 0) for name, count in simulator.operations.items()}
                assert {name: count for name, count in asked.items() if name.startswith("C-") and count} == {
                    "C-FIND STUDY": 1
                }


# --- silence


@dataclass
class Silent:
    """A gateway over a directory and, for each protocol, a node that takes connections and never answers."""

    gateway: Gateway
    dimse: DimseSimulator
    ports: tuple[int, ...]
    of_others: frozenset[threading.Thread]

    def measure(self) -> dict[str, Any]:
        """What requests may hold, as it stands now."""
        nodes = self.gateway.app.state.estate.pipeline.federation.nodes.values()  # type: ignore[union-attr]
        return {
            "permits": {one.id: one.config.at_once - one.guard.permits._value for one in nodes},
            "tasks": asyncio.run_coroutine_threadsafe(_tasks(), self.gateway.loop).result(5),
            "associations": self.dimse.open_associations,
            "connections": _connections(self.ports),
            "threads": sorted(one.name for one in self._threads() if one.name.startswith("dimse-")),
        }

    def _threads(self) -> set[threading.Thread]:
        return set(threading.enumerate()) - self.of_others


async def _tasks() -> int:
    return len(asyncio.all_tasks())


def _connections(ports: tuple[int, ...]) -> int:
    established = (one for one in psutil.Process().net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED)
    return sum(bool(one.raddr) and one.raddr.port in ports for one in established)


@pytest.fixture
def silent(shelf: Shelf, tmp_path: Path) -> Iterator[Silent]:
    (tmp_path / "none").mkdir()
    others = frozenset(threading.enumerate())
    pacs = DimseSimulator(tmp_path / "none", options=DimseOptions(black_hole="association"))
    web = DicomwebSimulator(tmp_path / "none", DicomwebOptions(black_hole=True))
    server = FhirSimulator(tmp_path / "none", "R4", FhirOptions(black_hole=True))
    with pacs, web, server, BlackHole() as deaf:
        nodes = [
            files_node("disk", shelf.directory, patient_id_issuer=ISSUER),
            dimse_node("pacs", pacs, search_deadline=DEADLINE),
            dimse_node("deaf", deaf, search_deadline=DEADLINE),
            node("web", "dicomweb", {"url": web.url}, search_deadline=DEADLINE),
            node("fhir", "fhir", {"url": server.url}, search_deadline=DEADLINE),
        ]
        with Gateway(nodes, cache=False) as gateway:
            yield Silent(gateway, pacs, (pacs.port, web.port, server.port, deaf.port), others)


def test_nodes_that_never_answer_delay_an_answer_by_their_deadline_and_are_named(silent: Silent, shelf: Shelf) -> None:
    began = time.monotonic()
    answer = silent.gateway.get("/dicom-web/studies")
    assert time.monotonic() - began < DEADLINE + SLACK
    assert answer.status_code == 200
    assert {row["0020000D"]["Value"][0] for row in answer.json()} == {study.uid for study in shelf.studies}
    for name in ("pacs", "deaf", "web", "fhir"):
        assert f"node {name}: did not" in answer.headers["warning"]


def test_two_hundred_requests_to_nodes_that_never_answer_leave_nothing_behind(silent: Silent, shelf: Shelf) -> None:
    silent.gateway.get("/dicom-web/studies")  # what is started once and kept is no leak
    before = silent.measure()
    with ThreadPoolExecutor(50) as callers:
        took = list(callers.map(lambda number: _one(silent, number), range(200)))
    assert max(took) < DEADLINE + 10 * SLACK  # fifty at once, on a machine that has other things to do
    ends = time.monotonic() + 20
    while (left := _left(silent.measure(), before)) and time.monotonic() < ends:
        time.sleep(0.2)
    assert left == {}


def _one(silent: Silent, number: int) -> float:
    """A question that no other caller asks, so that nobody shares its answer; every fourth caller does not wait."""
    address = f"{silent.gateway.url}/dicom-web/studies?StudyDate=2025{number % 12 + 1:02d}{number % 28 + 1:02d}&StudyID={number}"
    began = time.monotonic()
    try:
        answer = httpx.get(address, timeout=0.3 if number % 4 == 0 else 30)
        assert answer.status_code == 200
    except httpx.ReadTimeout:
        assert number % 4 == 0
    return time.monotonic() - began


def _left(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What is held that was not held before: permits, tasks, associations, connections, threads."""
    kept = {
        "permits": now["permits"] != dict.fromkeys(now["permits"], 0),
        "tasks": now["tasks"] > before["tasks"],
        "associations": now["associations"],
        "connections": now["connections"],
        "threads": len(now["threads"]) > 10,  # two pools of four associations, and one more each, wait for work
    }
    return {name: now[name] for name, is_kept in kept.items() if is_kept}


# --- nonsense

FAULTS: dict[str, dict[str, Any]] = {
    "a DICOMweb node whose JSON breaks off": {"web": DicomwebOptions(garbage_json=True)},
    "a DICOMweb node that answers with another study": {"web": DicomwebOptions(foreign_study=True)},
    "a DICOMweb node that fails": {"web": DicomwebOptions(status_500=True)},
    "a FHIR node whose JSON breaks off": {"fhir": FhirOptions(garbage_json=True)},
    "a FHIR node that answers with another study": {"fhir": FhirOptions(foreign_study=True)},
    "a FHIR node that fails": {"fhir": FhirOptions(status_500=True)},
    "a DIMSE node whose values are not of their VR": {"pacs": DimseOptions(garbage=True)},
}


class Sick:
    """A gateway over a healthy directory and a node of each protocol that can be made to fail while it runs."""

    def __init__(self, gateway: Gateway, simulators: dict[str, Any]) -> None:
        self.gateway, self.simulators = gateway, simulators

    @contextmanager
    def by(self, faults: dict[str, Any]) -> Iterator[Gateway]:
        healthy = {name: self.simulators[name].options for name in faults}
        for name, options in faults.items():
            self.simulators[name].options = options
        try:
            yield self.gateway
        finally:
            for name, options in healthy.items():
                self.simulators[name].options = options


@pytest.fixture(scope="module")
def sick(shelf: Shelf) -> Iterator[Sick]:
    web, pacs = DicomwebSimulator(shelf.directory), DimseSimulator(shelf.directory)
    server = FhirSimulator(shelf.directory, "R4", FhirOptions())
    with web, pacs, server:
        nodes = [
            files_node("disk", shelf.directory, patient_id_issuer=ISSUER),
            node("web", "dicomweb", {"url": web.url}),
            dimse_node("pacs", pacs),
            node("fhir", "fhir", {"url": server.url}),
        ]
        with Gateway(nodes, cache=False) as gateway:
            for one in ("web", "pacs", "fhir"):
                assert gateway.get(f"/nodes/{one}/dicom-web/studies").status_code == 200
            yield Sick(gateway, {"web": web, "pacs": pacs, "fhir": server})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_node_that_answers_out_of_protocol_is_named_and_the_others_answers_stand(
    fault: str, sick: Sick, shelf: Shelf
) -> None:
    study, [name] = shelf.of_patient("ID1"), FAULTS[fault]
    with sick.by(FAULTS[fault]) as gateway:
        web = gateway.get("/dicom-web/studies", params={"StudyInstanceUID": study.uid})
        fhir = gateway.get("/fhir/ImagingStudy", params={"identifier": f"urn:dicom:uid|urn:oid:{study.uid}"}).json()
        alone = gateway.get(f"/nodes/{name}/dicom-web/studies", params={"StudyInstanceUID": study.uid})
    assert web.status_code == 200
    assert {row["0020000D"]["Value"][0] for row in web.json()} == {study.uid}
    assert "disk" in web.json()[0]["00080054"]["Value"]
    assert f"node {name}:" in web.headers["warning"]
    [outcome] = [entry["resource"] for entry in fhir["entry"] if entry["search"]["mode"] == "outcome"]
    assert {issue["details"]["coding"][0]["code"] for issue in outcome["issue"]} == {"GW205"}
    assert alone.status_code == 502


@pytest.mark.parametrize("name", ["web", "pacs"])
def test_a_node_that_sends_another_study_than_asked_is_not_passed_on(name: str, sick: Sick, shelf: Shelf) -> None:
    study = shelf.of_patient("ID1")
    fault = replace(sick.simulators[name].options, foreign_study=True)
    with sick.by({name: fault}) as gateway:
        answer = gateway.get(f"/nodes/{name}/dicom-web/studies/{study.uid}", headers={"Accept": ANY_PARTS})
    assert answer.status_code == 502
    assert "GW205" in answer.text


TRUNCATED = {"web": {"truncate_after": 30_000}, "pacs": {"abort_after": 3}}


@pytest.mark.parametrize("name", TRUNCATED)
def test_a_retrieve_that_breaks_off_at_the_node_breaks_the_connection_and_never_ends_neatly(
    name: str, sick: Sick, shelf: Shelf
) -> None:
    study = shelf.of_patient("48013990025")
    fault = replace(sick.simulators[name].options, **TRUNCATED[name])
    received: list[bytes] = []
    with sick.by({name: fault}) as gateway:
        address = f"/nodes/{name}/dicom-web/studies/{study.uid}"
        with gateway.client.stream("GET", address, headers={"Accept": ANY_PARTS}) as answer:
            assert answer.status_code == 200
            boundary = answer.headers["content-type"].split("boundary=")[1].strip('"').encode()
            with pytest.raises(httpx.RemoteProtocolError):
                received.extend(answer.iter_raw())
    assert b"DICM" in b"".join(received)
    assert b"--" + boundary + b"--" not in b"".join(received)


def test_a_node_is_itself_again_as_soon_as_it_is_well(sick: Sick, shelf: Shelf) -> None:
    answer = sick.gateway.get("/dicom-web/studies", params={"StudyInstanceUID": shelf.of_patient("ID1").uid})
    assert "warning" not in answer.headers
    assert {name for row in answer.json() for name in row["00080054"]["Value"]} == {"disk", "web", "pacs", "fhir"}
