"""What is not there, not there any more, or not there yet: said as such, and never for longer than it is true."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import Gateway, files_node
from specimens import specimen, uid
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.simulators._directory import Directory
from gateway.simulators._peer import Peer, PeerOptions
from gateway.simulators.dicomweb import DicomwebOptions, DicomwebSimulator
from gateway.simulators.dimse import DimseSimulator

STUDY, SERIES, INSTANCE = uid("s"), uid("s", "1"), uid("s", "1", 1)
BELOW = (
    "series/1.2.3",
    "series/1.2.3/metadata",
    f"series/{SERIES}/instances/1.2.3",
    f"series/{SERIES}/instances/1.2.3/metadata",
    f"series/{SERIES}/instances/1.2.3/frames/1",
    f"series/{SERIES}/instances/{INSTANCE}/bulkdata/00420011",
)


def dimse_node(simulator: DimseSimulator, **more: Any) -> dict[str, Any]:
    connection = {"host": "127.0.0.1", "port": simulator.port, "called_ae_title": "SIM"}
    return {"id": "pacs", "name": "pacs", "adapter": "dimse", "connection": connection, **more}


def dicomweb_node(identifier: str, url: str, **more: Any) -> dict[str, Any]:
    return {"id": identifier, "name": identifier, "adapter": "dicomweb", "connection": {"url": url}, **more}


@pytest.fixture
def black_hole() -> Iterator[dict[str, Any]]:
    """A node that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        yield dicomweb_node("hole", f"http://127.0.0.1:{port}", search_deadline=0.3, quirks=[])


def look_again(*peers: DicomwebSimulator | DimseSimulator) -> None:
    """Simulators read their directory once: this is their archive having changed."""
    for peer in peers:
        if isinstance(peer, DicomwebSimulator):
            peer.directory = Directory(peer.directory.root)
        else:
            peer.archive.scan()


def parts(response: httpx.Response) -> int:
    return response.content.count(b"\r\nContent-Type: application/dicom")


def test_what_a_study_does_not_have_is_404_where_all_answered_and_503_where_one_is_silent(
    tmp_path: Path, black_hole: dict[str, Any]
) -> None:
    specimen(tmp_path, "P", "s")
    with DimseSimulator(tmp_path, ae_title="SIM") as pacs, DicomwebSimulator(tmp_path) as web:
        for node in (files_node("f", tmp_path), dicomweb_node("w", web.url), dimse_node(pacs)):
            for nodes, status in (([node], 404), ([node, black_hole], 503)):
                with Gateway(nodes) as gateway:
                    for below in BELOW:
                        response = gateway.get(f"/dicom-web/studies/{STUDY}/{below}")
                        assert response.status_code == status, (node["adapter"], below, response.text)
                        assert ("hole" in response.text) is (status == 503)


def test_a_series_that_only_the_silent_holder_of_a_split_study_has_is_503(tmp_path: Path) -> None:
    specimen(tmp_path / "a", "P", "s", "1")
    specimen(tmp_path / "b", "P", "s", "2", 2)
    with DicomwebSimulator(tmp_path / "b") as web:
        nodes = [
            files_node("a", tmp_path / "a", patient_id_issuer="I"),
            dicomweb_node("b", web.url, patient_id_issuer="I", quirks=[]),
        ]
        with Gateway(nodes, find_ttl=0) as gateway:
            assert parts(gateway.get(f"/dicom-web/studies/{STUDY}")) == 2
            web.stop()
            for path in (f"series/{uid('s', '2')}", f"series/{uid('s', '2')}/metadata"):
                assert gateway.get(f"/dicom-web/studies/{STUDY}/{path}").status_code == 503


def test_a_study_that_was_deleted_is_404_although_its_place_is_remembered(tmp_path: Path) -> None:
    specimen(tmp_path, "P", "s")
    with DicomwebSimulator(tmp_path) as web, Gateway([dicomweb_node("w", web.url)], find_ttl=0) as gateway:
        assert gateway.get(f"/dicom-web/studies/{STUDY}").status_code == 200
        for file in tmp_path.iterdir():
            file.unlink()
        look_again(web)
        for path in (f"/dicom-web/studies/{STUDY}", f"/dicom-web/studies/{STUDY}"):
            assert gateway.get(path).status_code == 404


def test_a_study_that_moved_to_another_node_is_found_there(tmp_path: Path) -> None:
    specimen(tmp_path / "a", "P", "s")
    (tmp_path / "b").mkdir()
    with DicomwebSimulator(tmp_path / "a") as a, DicomwebSimulator(tmp_path / "b") as b:
        nodes = [dicomweb_node(name, web.url, patient_id_issuer="I") for name, web in (("a", a), ("b", b))]
        with Gateway(nodes, find_ttl=0) as gateway:
            assert gateway.get(f"/dicom-web/studies/{STUDY}").status_code == 200
            for file in (tmp_path / "a").iterdir():
                file.rename(tmp_path / "b" / file.name)
            look_again(a, b)
            assert parts(gateway.get(f"/dicom-web/studies/{STUDY}")) == 1


def test_metadata_that_was_asked_for_too_early_is_not_missing_for_an_hour(tmp_path: Path) -> None:
    specimen(tmp_path, "P", "s", "1")
    later = uid("s", "2")
    with DicomwebSimulator(tmp_path) as web, Gateway([dicomweb_node("w", web.url)], find_ttl=0) as gateway:
        path = f"/dicom-web/studies/{STUDY}/series/{later}/metadata"
        assert gateway.get(path).status_code == 404
        specimen(tmp_path, "P", "s", "2", 2)
        look_again(web)
        assert gateway.get(path).status_code == 200


@pytest.mark.parametrize("adapter", ["dicomweb", "dimse"])
def test_metadata_follows_a_series_that_grows(tmp_path: Path, adapter: str) -> None:
    specimen(tmp_path, "P", "s", "1", 1)
    with DicomwebSimulator(tmp_path) as web, DimseSimulator(tmp_path, ae_title="SIM") as pacs:
        node = dicomweb_node("w", web.url) if adapter == "dicomweb" else dimse_node(pacs)
        with Gateway([node], find_ttl=0, location_ttl=0) as gateway:
            path = f"/dicom-web/studies/{STUDY}/series/{SERIES}/metadata"
            assert len(gateway.get(path).json()) == 1
            specimen(tmp_path, "P", "s", "1", 2)
            look_again(web, pacs)
            assert len(gateway.get(path).json()) == 2


@pytest.mark.parametrize("adapter", ["dicomweb", "dimse"])
def test_metadata_follows_a_patient_id_that_was_corrected(tmp_path: Path, adapter: str) -> None:
    specimen(tmp_path, "WRONG", "s")
    with DicomwebSimulator(tmp_path) as web, DimseSimulator(tmp_path, ae_title="SIM") as pacs:
        node = dicomweb_node("w", web.url) if adapter == "dicomweb" else dimse_node(pacs)
        with Gateway([node], find_ttl=0, location_ttl=0) as gateway:
            path = f"/dicom-web/studies/{STUDY}/metadata"
            assert gateway.get(path).json()[0]["00100020"]["Value"] == ["WRONG"]
            for file in tmp_path.iterdir():
                file.unlink()
            specimen(tmp_path, "RIGHT", "s")
            look_again(web, pacs)
            for _ in range(2):
                response = gateway.get(path)
                assert response.status_code == 200, response.text
                assert response.json()[0]["00100020"]["Value"] == ["RIGHT"]


class FhirServer(Peer):
    """One study, whose two series have an Endpoint each."""

    def __init__(self, places: dict[str, str]) -> None:
        super().__init__(PeerOptions())
        self._places = places

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/metadata", self._metadata), Route("/ImagingStudy", self._studies)])

    async def _metadata(self, _: Request) -> Response:
        parameters = [{"name": "identifier", "type": "token"}, {"name": "_id", "type": "token"}]
        resource = {"type": "ImagingStudy", "searchParam": parameters, "searchInclude": ["ImagingStudy:endpoint"]}
        statement = {"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1", "rest": [{"resource": [resource]}]}
        return JSONResponse(statement)

    async def _studies(self, _: Request) -> Response:
        kind = {"system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type", "code": "dicom-wado-rs"}
        endpoints: list[dict[str, Any]] = [
            {"resourceType": "Endpoint", "id": f"e{number}", "status": "active", "connectionType": kind, "address": url}
            for number, url in enumerate(self._places.values())
        ]
        series = [
            {"uid": series, "modality": {"code": "OT"}, "endpoint": [{"reference": f"Endpoint/e{number}"}]}
            for number, series in enumerate(self._places)
        ]
        identifier = [{"system": "urn:dicom:uid", "value": f"urn:oid:{STUDY}"}]
        subject = {"identifier": {"system": "urn:x", "value": "P"}}
        study = {"resourceType": "ImagingStudy", "id": "1", "status": "available", "identifier": identifier}
        entries = [{"resource": {**study, "subject": subject, "series": series}, "search": {"mode": "match"}}]
        entries += [{"resource": endpoint, "search": {"mode": "include"}} for endpoint in endpoints]
        return JSONResponse({"resourceType": "Bundle", "type": "searchset", "entry": entries})


def test_a_study_whose_series_lie_at_two_addresses_is_given_whole(tmp_path: Path) -> None:
    for series, number in (("1", 1), ("2", 2)):
        specimen(tmp_path / series, "P", "s", series, number)
    with DicomwebSimulator(tmp_path / "1") as one, DicomwebSimulator(tmp_path / "2") as two:
        server = FhirServer({uid("s", "1"): one.url, uid("s", "2"): two.url})
        node = {"id": "f", "name": "f", "adapter": "fhir", "allow": [one.url, two.url]}
        with server, Gateway([{**node, "connection": {"url": server.url}}]) as gateway:
            response = gateway.get(f"/dicom-web/studies/{STUDY}")
            assert response.status_code == 200, response.text
            assert parts(response) == 2
            assert len(gateway.get(f"/dicom-web/studies/{STUDY}/metadata").json()) == 2


# --- silence, and holders that fail


def test_frames_and_bulk_data_name_the_silent_nodes_too(tmp_path: Path, black_hole: dict[str, Any]) -> None:
    specimen(tmp_path, "P", "s")
    with Gateway([files_node("f", tmp_path), black_hole]) as gateway:
        for path in ("frames/1", "bulkdata/7FE00010"):
            response = gateway.get(f"/dicom-web/studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}/{path}")
            assert response.status_code == 200
            assert "hole" in response.headers["warning"]
            assert response.headers["cache-control"] == "no-store"


def test_frames_come_from_the_other_holder_when_the_first_does_not_give_them(tmp_path: Path) -> None:
    specimen(tmp_path, "P", "s")
    ill = DicomwebOptions(
        status_500=True, faulty_operations=frozenset({"frames", "series_metadata", "retrieve_series"})
    )
    with DicomwebSimulator(tmp_path, ill) as web:
        nodes = [
            dicomweb_node("w", web.url, patient_id_issuer="I", priority=1),
            files_node("f", tmp_path, patient_id_issuer="I", priority=2),
        ]
        with Gateway(nodes) as gateway:
            response = gateway.get(f"/dicom-web/studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}/frames/1")
    assert response.status_code == 200, response.text


def test_a_read_counts_nothing_while_a_holder_does_not_tell_what_it_has(tmp_path: Path) -> None:
    specimen(tmp_path / "a", "P", "s", "1")
    specimen(tmp_path / "b", "P", "s", "2", 2)
    with DicomwebSimulator(tmp_path / "b") as web:
        nodes = [
            files_node("a", tmp_path / "a", patient_id_issuer="I"),
            dicomweb_node("b", web.url, patient_id_issuer="I", quirks=[]),
        ]
        with Gateway(nodes, find_ttl=0) as gateway:
            whole = gateway.get(f"/fhir/ImagingStudy/{STUDY}").json()
            assert (whole["numberOfSeries"], whole["numberOfInstances"], len(whole["series"])) == (2, 2, 2)
            web.options = DicomwebOptions(status_500=True)
            response = gateway.get(f"/fhir/ImagingStudy/{STUDY}")
    assert response.status_code == 200
    assert "numberOfSeries" not in response.json()
    assert "numberOfInstances" not in response.json()
    assert len(response.json()["series"]) == 1
    assert "node b" in response.headers["warning"]


def test_a_node_that_never_answers_is_shown_as_down(tmp_path: Path, black_hole: dict[str, Any]) -> None:
    specimen(tmp_path, "P", "s")
    with Gateway([files_node("f", tmp_path), black_hole]) as gateway:
        gateway.get("/dicom-web/studies")
        states = {node["id"]: node["state"] for node in gateway.get("/nodes").json()["nodes"]}
    assert states == {"f": "up", "hole": "down"}


def test_a_patient_id_that_is_not_known_any_more_is_not_an_empty_answer(tmp_path: Path) -> None:
    """Ids are kept in memory: after a restart a patient with studies must not seem to have none."""
    specimen(tmp_path, "P", "s")
    with Gateway([files_node("f", tmp_path)]) as gateway:
        bundle = gateway.get("/fhir/ImagingStudy", params={"patient": "Patient/" + "0" * 32})
    assert bundle.status_code == 200
    assert "total" not in bundle.json()
    (outcome,) = bundle.json()["entry"]
    assert "patient.identifier" in outcome["resource"]["issue"][0]["diagnostics"]
    assert bundle.headers["cache-control"] == "no-store"
