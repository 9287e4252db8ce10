"""Instances stored through the gateway at every kind of peer, and sent to it by clients that nobody here wrote."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dicomweb_client import DICOMwebClient
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    RLELossless,
)

from gateway.simulators.dicomweb import DicomwebSimulator
from gateway.simulators.dimse import DimseSimulator
from tests import peers
from tests.running import Gateway, files_node
from tests.sending import encoded, instance, send, uids

pytestmark = pytest.mark.interop
OTHER_PATIENT = 0xA901
WHOLE = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}


def table(adapter: str, connection: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "archive", "name": "archive", "adapter": adapter, "connection": connection, "store": True, **more}


@contextmanager
def directory(path: Path) -> Iterator[dict[str, Any]]:
    (path / "files").mkdir()
    yield table("files", {"directory": str(path / "files")})


@contextmanager
def dicomweb_simulator(path: Path) -> Iterator[dict[str, Any]]:
    with DicomwebSimulator(path) as simulator:
        yield table("dicomweb", {"url": simulator.url})


@contextmanager
def dimse_simulator(path: Path) -> Iterator[dict[str, Any]]:
    with DimseSimulator(path) as simulator:
        address = {"host": "127.0.0.1", "port": simulator.port, "called_ae_title": simulator.ae_title}
        yield table("dimse", address)


@contextmanager
def orthanc_by_dicomweb(path: Path) -> Iterator[dict[str, Any]]:
    with peers.orthanc() as peer:
        yield table("dicomweb", {"url": peer.dicomweb})


@contextmanager
def orthanc_by_dimse(path: Path) -> Iterator[dict[str, Any]]:
    with peers.orthanc() as peer:
        yield table("dimse", peer.address)


@contextmanager
def dcmqrscp(path: Path) -> Iterator[dict[str, Any]]:
    with peers.dcmqrscp() as peer:
        yield table("dimse", peer.address)


KINDS: list[Callable[[Path], AbstractContextManager[dict[str, Any]]]] = [
    directory, dicomweb_simulator, dimse_simulator, orthanc_by_dicomweb, orthanc_by_dimse, dcmqrscp,
]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway over one empty archive."""
    with request.param(tmp_path_factory.mktemp("archive")) as node, Gateway([node]) as running:
        yield running


def test_what_is_stored_is_found_at_once_and_comes_back(archive: Gateway) -> None:
    made = [instance("1.2.31", SeriesInstanceUID="1.2.31.1") for _ in range(3)]
    search = {"StudyInstanceUID": "1.2.31"}
    assert archive.get("/dicom-web/studies", params=search).json() == []
    answer = send(archive.client, *made)
    assert (answer.status, answer.stored, answer.failed) == (200, uids(made), {})
    assert len(archive.get("/dicom-web/studies", params=search).json()) == 1
    assert len(archive.get("/dicom-web/studies/1.2.31/metadata").json()) == 3
    client = DICOMwebClient(archive.dicomweb)
    received = {str(one.SOPInstanceUID): one for one in client.retrieve_study("1.2.31")}
    assert sorted(received) == sorted(uids(made))
    for one in made:
        assert list(received[one.SOPInstanceUID]) == list(one)


def test_storing_twice_is_harmless(archive: Gateway) -> None:
    one = instance("1.2.32")
    assert [send(archive.client, one).status for _ in range(2)] == [200, 200]
    assert len(archive.get("/dicom-web/studies/1.2.32/metadata").json()) == 1


def test_a_bad_part_among_good_ones_fails_alone(archive: Gateway) -> None:
    good = [instance("1.2.33", SeriesInstanceUID="1.2.33.1") for _ in range(2)]
    answer = send(archive.client, good[0], encoded(instance("1.2.33"))[:-9], b"no DICOM" * 99, good[1])
    assert (answer.status, answer.stored) == (202, uids(good))
    assert (list(answer.failed.values()), answer.others) == ([0xC000], [0xC000])
    assert len(archive.get("/dicom-web/studies/1.2.33/metadata").json()) == 2


def test_a_study_is_not_mixed_with_another_patients(archive: Gateway) -> None:
    assert send(archive.client, instance("1.2.34", patient="A")).status == 200
    other, same = instance("1.2.34", patient="B"), instance("1.2.34", patient="A")
    answer = send(archive.client, other, same)
    assert (answer.status, answer.failed) == (202, {other.SOPInstanceUID: OTHER_PATIENT})
    assert send(archive.client, instance("1.2.34", patient="")).status == 409
    [row] = archive.get("/dicom-web/studies", params={"StudyInstanceUID": "1.2.34"}).json()
    assert row["00100020"]["Value"] == ["A"]


@pytest.mark.parametrize(("first", "second"), [("ONE", "OTHER"), ("ONE", ""), ("", "ONE")])
def test_one_patient_id_of_two_issuers_is_two_patients(archive: Gateway, first: str, second: str) -> None:
    study = f"1.2.35.{len(first)}.{len(second)}"
    assert send(archive.client, instance(study, patient="A", issuer=first)).status == 200
    answer = send(archive.client, instance(study, patient="A", issuer=second))
    assert (answer.status, list(answer.failed.values())) == (409, [OTHER_PATIENT])
    assert send(archive.client, instance(study, patient="A", issuer=first)).status == 200


def test_many_studies_of_many_patients_in_one_request(archive: Gateway) -> None:
    made = [instance(f"1.2.36.{number % 4}", patient=f"P{number % 4}") for number in range(12)]
    answer = send(archive.client, *made)
    assert (answer.status, answer.stored) == (200, uids(made))
    for number in range(4):
        [row] = archive.get("/dicom-web/studies", params={"StudyInstanceUID": f"1.2.36.{number}"}).json()
        assert row["00100020"]["Value"] == [f"P{number}"]


SPECIMENS = ["CT_small.dcm", "JPEG2000.dcm", "JPEG-lossy.dcm", "rtplan.dcm", "MR_small_RLE.dcm", "reportsi.dcm"]


@pytest.mark.parametrize("name", SPECIMENS)
def test_every_kind_of_instance_comes_back_as_it_was(archive: Gateway, name: str) -> None:
    path = Path(get_testdata_file(name))
    original = dcmread(path)
    answer = send(archive.client, path.read_bytes())
    if answer.failed and archive.get("/nodes").json()["nodes"][0]["adapter"] == "dimse":
        assert answer.failed == {original.SOPInstanceUID: 0xC122}, "dcmqrscp takes some compressed syntaxes only"
        assert original.file_meta.TransferSyntaxUID in (JPEGExtended12Bit, RLELossless)
        return
    assert (answer.status, answer.stored) == (200, [original.SOPInstanceUID])
    client = DICOMwebClient(archive.dicomweb, permissive_uid=True)
    address = (original.StudyInstanceUID, original.SeriesInstanceUID, original.SOPInstanceUID)
    received = client.retrieve_instance(*map(str, address))
    assert received.get("PixelData") == original.get("PixelData")
    assert received.SOPInstanceUID == original.SOPInstanceUID


# --- clients


def test_dicomweb_client_stores_instances(archive: Gateway) -> None:
    client = DICOMwebClient(archive.dicomweb)
    made = [instance("1.2.37", SeriesInstanceUID="1.2.37.1") for _ in range(3)]
    told = client.store_instances(made)
    assert [item.ReferencedSOPInstanceUID for item in told.ReferencedSOPSequence] == uids(made)
    assert "FailedSOPSequence" not in told
    told = client.store_instances([made[0], instance("1.2.38")], study_instance_uid="1.2.37")
    assert [item.FailureReason for item in told.FailedSOPSequence] == [0xA900]
    assert len(client.search_for_instances("1.2.37")) == 3


def test_orthanc_sends_by_its_dicomweb_plugin(tmp_path: Path) -> None:
    """Orthanc as the client: its plugin's own stow, in its own multipart."""
    made = [instance("1.2.39", SeriesInstanceUID="1.2.39.1") for _ in range(12)]
    paths = []
    for number, one in enumerate(made):
        paths.append(tmp_path / f"{number}.dcm")
        paths[-1].write_bytes(encoded(one))
    (tmp_path / "archive").mkdir()
    with ExitStack() as stack:
        gateway = stack.enter_context(Gateway([files_node("disk", tmp_path / "archive", store=True)]))
        orthanc = stack.enter_context(peers.orthanc(paths))
        _call(orthanc, "PUT", "/dicom-web/servers/gateway", {"Url": f"{gateway.dicomweb}/"})
        study = _call(orthanc, "POST", "/tools/lookup", "1.2.39")[0]["ID"]
        _call(orthanc, "POST", "/dicom-web/servers/gateway/stow", {"Resources": [study], "Synchronous": True})
        assert len(gateway.get("/dicom-web/studies/1.2.39/metadata").json()) == len(made)
    stored = sorted(path.read_bytes() for path in (tmp_path / "archive").rglob("*.dcm"))
    assert stored == sorted(path.read_bytes() for path in paths)


def _call(orthanc: peers.Orthanc, method: str, path: str, body: Any) -> Any:
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    request = urllib.request.Request(f"{orthanc.http}{path}", content, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        told = answer.read()
    return json.loads(told) if told else None


# --- coercion


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def wanting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway over an archive that wants every patient id to name its issuer."""
    with request.param(tmp_path_factory.mktemp("archive")) as node:
        needs = {"patient_id_issuer": "HOSPITAL", "store": {"default": True, "set_issuer": True}}
        with Gateway([node | needs]) as running:
            yield running


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_what_is_changed_is_said_in_the_stored_instance(wanting: Gateway, syntax: str) -> None:
    one = instance(syntax=syntax)
    answer = send(wanting.client, one)
    assert (answer.status, answer.warned) == (202, {one.SOPInstanceUID: 0xB000})
    response = wanting.get(f"/dicom-web/studies/{one.StudyInstanceUID}", headers=WHOLE)
    [part] = response.content.split(b"--" + response.headers["content-type"].rpartition("boundary=")[2].encode())[1:-1]
    stored = dcmread(BytesIO(part.partition(b"\r\n\r\n")[2][:-2]))
    assert stored.IssuerOfPatientID == "HOSPITAL"
    [change] = stored.OriginalAttributesSequence
    assert change.ReasonForTheAttributeModification == "COERCE"
    assert change.ModifyingSystem == "IMAGING-GATEWAY"
    assert change.AttributeModificationDateTime
    assert change.ModifiedAttributesSequence[0]["IssuerOfPatientID"].is_empty
    del stored.IssuerOfPatientID, stored.OriginalAttributesSequence
    assert sorted(stored.keys()) == sorted(one.keys())


def test_who_names_an_issuer_is_not_changed(wanting: Gateway) -> None:
    answer = send(wanting.client, instance("1.2.41", issuer="ELSEWHERE"))
    assert (answer.status, answer.warned) == (200, {})
