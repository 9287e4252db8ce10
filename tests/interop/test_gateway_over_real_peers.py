"""The gateway over Orthanc (DICOMweb and DIMSE), dcmqrscp, sekmet-fhir, a directory and a node that is down."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import httpx
import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.uid import UID

from tests import peers
from tests.interop.conftest import HOLDERS, node
from tests.running import Gateway
from tests.shelf import HeldFile, HeldStudy, Shelf

pytestmark = pytest.mark.interop

ANY = "application/dicom; transfer-syntax=*"
ANY_PARTS = 'multipart/related; type="application/dicom"; transfer-syntax=*'
ANY_FRAMES = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
# PatientID of people whose names are raw bytes in the files, and the character set of those.
NAMED = {
    "12345": "ISO_IR 101", "99990000028": "ISO_IR 101", "T-0007": "ISO_IR 126", "SCSGREEK": "ISO_IR 126",
    "48013990025": "ISO_IR 144", "SCSRUSS": "ISO_IR 144", "8000000033": "ISO_IR 100", "DEMO000000000017": "ISO_IR 192",
    "H31EXAMPLE": "ISO 2022 IR 87", "X1EXAMPLE": "ISO_IR 192",
}  # fmt: skip


def plain(name: str) -> str:
    """A name as someone without its keyboard types it."""
    decomposed = unicodedata.normalize("NFD", name.translate(str.maketrans("łŁ", "lL")))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def alphabetic(row: dict[str, Any]) -> str:
    return str(row["00100010"]["Value"][0]["Alphabetic"])


def uid_of(row: dict[str, Any]) -> str:
    return str(row["0020000D"]["Value"][0])


def parts_of(answer: httpx.Response) -> list[bytes]:
    """The bodies of a multipart answer, by its delimiters alone."""
    boundary = answer.headers["content-type"].split("boundary=")[1].split(";")[0].strip('"').encode()
    first, *pieces, last = (b"\r\n" + answer.content).split(b"\r\n--" + boundary)
    assert (first.strip(), last[:2]) == (b"", b"--")
    return [piece.split(b"\r\n\r\n", 1)[1] for piece in pieces]


def root(name: str) -> str:
    return f"/nodes/{name}/dicom-web"


def path(file: HeldFile) -> str:
    return f"/studies/{file.study}/series/{file.series}/instances/{file.uid}"


# --- names


@pytest.fixture(scope="module")
def reference(orthanc_peer: peers.Orthanc, dcmqrscp_peer: peers.DimsePeer) -> dict[str, str]:
    """The name of each study as findscu's bytes have it: both peers say the same."""
    found = []
    for peer in (orthanc_peer, dcmqrscp_peer):
        rows = peers.findscu(peer, StudyInstanceUID="", PatientName="", PatientID="")
        found.append({row.PatientID: peers.raw_text(row, "PatientName").rstrip("=") for row in rows})
    assert {key: found[0][key] for key in NAMED} == {key: found[1][key] for key in NAMED}
    return found[0]


@pytest.mark.parametrize("patient", NAMED)
def test_a_name_is_found_however_it_is_typed_and_comes_back_as_the_peers_have_it(
    patient: str, gateway: Gateway, shelf: Shelf, reference: dict[str, str]
) -> None:
    study, name = shelf.of_patient(patient), reference[patient].split("=")[0]
    assert name == study.name.split("=")[0]
    typed = {name, plain(name), name.upper(), plain(name).upper(), name.lower(), plain(name).lower(), f"{name[:-2]}*"}
    for holder in HOLDERS:
        for query in sorted(typed):
            answer = gateway.get(root(holder) + "/studies", params={"PatientName": query})
            assert answer.status_code == 200, (holder, query)
            # Other tests store copies of their own into the same peers.
            found = [(uid_of(row), alphabetic(row)) for row in answer.json() if uid_of(row) in shelf.uids]
            assert found == [(study.uid, name)], (holder, query)


def test_names_come_back_in_fhir_as_the_peers_have_them(
    gateway: Gateway, shelf: Shelf, reference: dict[str, str]
) -> None:
    for patient in NAMED:
        study = gateway.get(f"/fhir/ImagingStudy/{shelf.of_patient(patient).uid}").json()
        subject = gateway.get("/fhir/" + study["subject"]["reference"]).json()
        family, _, given = reference[patient].split("=")[0].partition("^")
        [name] = [one for one in subject["name"] if one.get("family") == family]
        assert name.get("given", []) == ([given] if given else [])


@pytest.fixture(scope="module")
def latin(latin_orthanc_peer: peers.Orthanc) -> Iterator[Gateway]:
    """Orthanc as Debian ships it. It answers in Latin-1 and leaves out every letter that Latin-1 does not have."""
    nodes = [
        node("web", "dicomweb", {"url": latin_orthanc_peer.dicomweb}),
        node("pacs", "dimse", latin_orthanc_peer.address),
    ]
    with Gateway(nodes) as running:
        yield running


@pytest.mark.parametrize("holder", ["web", "pacs"])
@pytest.mark.parametrize("query", ["Noël^Anaïs", "NOEL^ANAIS", "noel*", "*^anaïs"])
def test_an_orthanc_that_answers_in_latin_1_is_searched_by_latin_1_names(
    latin: Gateway, shelf: Shelf, holder: str, query: str
) -> None:
    rows = latin.get(root(holder) + "/studies", params={"PatientName": query}).json()
    assert [alphabetic(row) for row in rows] == ["Noël^Anaïs"]


@pytest.mark.parametrize("holder", ["web", "pacs"])
def test_an_orthanc_that_answers_in_latin_1_maims_other_names_but_not_the_metadata(
    latin: Gateway, shelf: Shelf, holder: str
) -> None:
    """The named exception: nobody can match letters that the node never sends. By UID the study is whole."""
    study = shelf.of_patient("12345")
    [row] = latin.get(root(holder) + "/studies", params={"StudyInstanceUID": study.uid}).json()
    assert alphabetic(row) == "Dbrowski^Micha"
    described = latin.get(f"{root(holder)}/studies/{study.uid}/metadata").json()
    assert {alphabetic(one) for one in described} == {"Dąbrowski^Michał"}


# --- bytes


def test_a_directory_gives_the_files_exact_bytes(gateway: Gateway, shelf: Shelf) -> None:
    for file in shelf.files:
        answer = gateway.get(root("disk") + path(file), headers={"Accept": ANY})
        assert answer.status_code == 200
        assert answer.content == file.bytes


@pytest.mark.parametrize("holder", ["web", "fhir"])
def test_dicomweb_pixels_are_the_bytes_that_orthanc_itself_gives(
    gateway: Gateway, shelf: Shelf, orthanc_peer: peers.Orthanc, holder: str
) -> None:
    """`fhir` finds the same Orthanc by the Endpoint that sekmet-fhir names."""
    for file in shelf.files:
        answer = gateway.get(root(holder) + path(file), headers={"Accept": ANY})
        direct = httpx.get(orthanc_peer.dicomweb + path(file), headers={"Accept": ANY_PARTS})
        assert answer.status_code == direct.status_code == 200
        assert [answer.content] == parts_of(direct) == [orthanc_peer.file(file.uid)]


@pytest.mark.parametrize("holder", ["pacs", "qr"])
def test_dimse_pixels_are_the_data_set_bytes_of_a_bare_c_get(
    gateway: Gateway, shelf: Shelf, orthanc_peer: peers.Orthanc, dcmqrscp_peer: peers.DimsePeer, holder: str
) -> None:
    peer = orthanc_peer if holder == "pacs" else dcmqrscp_peer
    for file in (study.files[0] for study in shelf.studies):
        if holder == "qr" and UID(file.transfer_syntax).is_encapsulated:
            continue  # dcmqrscp sends no compressed syntax but the one it was started with
        answer = gateway.get(root(holder) + path(file), headers={"Accept": ANY})
        assert answer.status_code == 200
        given = pydicom.dcmread(BytesIO(answer.content), stop_before_pixels=True)
        start = 128 + 4 + 12 + given.file_meta.FileMetaInformationGroupLength
        assert answer.content[start:] == peers.c_get(peer, file.dataset)


# --- what comes back agrees with the files


def frames_of(dataset: pydicom.Dataset) -> list[bytes]:
    count = int(dataset.get("NumberOfFrames") or 1)
    if UID(dataset.file_meta.TransferSyntaxUID).is_encapsulated:
        return list(generate_frames(dataset.PixelData, number_of_frames=count))
    size = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
    return [dataset.PixelData[start : start + size] for start in range(0, count * size, size)]


def held(study: HeldStudy) -> dict[str, HeldFile]:
    return {file.uid: file for file in study.files}


@pytest.mark.parametrize("holder", [*HOLDERS, ""])
@pytest.mark.parametrize("patient", ["99990000028", "DEMO000000000017", "48013990025"])
def test_studies_series_metadata_and_frames_agree_with_the_files(
    gateway: Gateway, shelf: Shelf, holder: str, patient: str
) -> None:
    """At every node alone, and at all of them together."""
    study = shelf.of_patient(patient)
    service = root(holder) if holder else "/dicom-web"
    whole = gateway.get(f"{service}/studies/{study.uid}", headers={"Accept": ANY_PARTS})
    assert whole.status_code == 200
    _are_the_files(parts_of(whole), held(study))
    described = gateway.get(f"{service}/studies/{study.uid}/metadata").json()
    assert sorted(one["00080018"]["Value"][0] for one in described) == sorted(held(study))
    for series, files in study.series.items():
        below = f"{service}/studies/{study.uid}/series/{series}"
        rows = gateway.get(f"{below}/instances").json()
        assert sorted(row["00080018"]["Value"][0] for row in rows) == sorted(file.uid for file in files)
        _are_the_files(parts_of(gateway.get(below, headers={"Accept": ANY_PARTS})), {file.uid: file for file in files})
        _has_the_frames(gateway, service, files[0])


def _are_the_files(bodies: list[bytes], files: dict[str, HeldFile]) -> None:
    given = [pydicom.dcmread(BytesIO(body)) for body in bodies]
    assert sorted(one.SOPInstanceUID for one in given) == sorted(files)
    for one in given:
        assert one == files[one.SOPInstanceUID].dataset


def _has_the_frames(gateway: Gateway, service: str, file: HeldFile) -> None:
    if "PixelData" in file.dataset:
        wanted = frames_of(file.dataset)
        listed = ",".join(str(number) for number in range(len(wanted), 0, -1))
        answer = gateway.get(f"{service}{path(file)}/frames/{listed}", headers={"Accept": ANY_FRAMES})
        assert answer.status_code == 200
        assert parts_of(answer) == wanted[::-1]


@pytest.mark.parametrize("holder", [one for one in HOLDERS if one != "disk"])
def test_every_holder_gives_the_same_pixels_rendered_and_decoded(gateway: Gateway, shelf: Shelf, holder: str) -> None:
    """As the directory has them, whose rendering is held against pydicom's elsewhere."""
    seen = set()
    for study in shelf.studies:
        for file in (files[0] for files in study.series.values()):
            if "PixelData" not in file.dataset or not _gives(gateway, holder, study):
                continue
            seen.add(file.transfer_syntax)
            image, frame = (
                [
                    gateway.get(f"{root(name)}{path(file)}/{what}", headers={"Accept": accept})
                    for name in (holder, "disk")
                ]
                for what, accept in (("rendered", "image/png"), ("frames/1", "application/octet-stream"))
            )
            assert [answer.status_code for answer in (*image, *frame)] == [200] * 4, (
                file.path.name,
                image[0].text[:200],
            )
            assert image[0].content == image[1].content, file.path.name
            assert frame[0].content == frame[1].content, file.path.name
    assert len(seen) > (3 if holder != "qr" else 0)


def _gives(gateway: Gateway, holder: str, study: HeldStudy) -> bool:
    """dcmqrscp fails sub-operations of C-GET where a study is stored in more than one transfer syntax."""
    try:
        answer = gateway.get(f"{root(holder)}/studies/{study.uid}", headers={"Accept": ANY_PARTS})
    except httpx.RemoteProtocolError:
        assert holder == "qr"
        return False
    assert holder == "qr" or answer.status_code == 200
    return answer.status_code == 200


# --- all of them at once


def test_every_study_is_found_once_with_all_its_holders_and_the_dead_node_is_named(
    gateway: Gateway, shelf: Shelf
) -> None:
    answer = gateway.get("/dicom-web/studies")
    assert answer.status_code == 200
    assert "node dead: cannot be reached" in answer.headers["warning"]
    ours = {study.uid: study for study in shelf.studies}
    rows = [row for row in answer.json() if uid_of(row) in ours]
    named = [row for row in rows if row.get("00100020")]
    assert sorted(uid_of(row) for row in named) == sorted(uid for uid in ours if ours[uid].text("PatientID"))
    for row in named:
        study = ours[uid_of(row)]
        assert sorted(row["00080054"]["Value"]) == sorted(HOLDERS)
        assert row["00201208"]["Value"] == [len(study.files)]
        assert set(row["00080061"]["Value"]) == study.modalities
    # Nobody can tell whether a patient without an id at one node is the one without an id at another.
    assert len(rows) - len(named) == len(HOLDERS)


def test_fhir_search_and_read_reach_every_node(gateway: Gateway, shelf: Shelf) -> None:
    study = shelf.of_patient("99990000028")
    found = gateway.get("/fhir/ImagingStudy", params={"identifier": f"urn:dicom:uid|urn:oid:{study.uid}"}).json()
    [entry] = [entry for entry in found["entry"] if entry["search"]["mode"] == "match"]
    [outcome] = [entry["resource"] for entry in found["entry"] if entry["search"]["mode"] == "outcome"]
    assert "node dead" in outcome["issue"][0]["diagnostics"]
    resource = entry["resource"]
    assert sorted(one["reference"] for one in resource["endpoint"]) == sorted(f"Endpoint/{name}" for name in HOLDERS)
    read = gateway.get(f"/fhir/ImagingStudy/{study.uid}").json()
    assert {one["uid"]: len(one["instance"]) for one in read["series"]} == {
        uid: len(files) for uid, files in study.series.items()
    }
    for name in HOLDERS:
        assert gateway.get(f"/fhir/Endpoint/{name}").json()["address"].endswith(root(name))


# --- the cache


@contextmanager
def over(nodes: list[dict[str, Any]], **settings: Any) -> Iterator[Gateway]:
    with Gateway(
        nodes, file={"same_patient_domain": [{"issuers": ["ALLIANCE", "PESEL", "CIP-SNS"]}]}, **settings
    ) as it:
        yield it


def test_a_real_redis_gives_the_same_answers_as_the_embedded_one_and_is_not_missed_when_it_is_killed(
    gateway: Gateway, real_nodes: list[dict[str, Any]], shelf: Shelf, redis_peer: peers.Redis
) -> None:
    study = shelf.of_patient("99990000028").uid
    asked = [
        "/dicom-web/studies?PatientID=T-0007&IssuerOfPatientID=EU-SCREEN-TRIAL",
        f"/dicom-web/studies/{study}/series",
    ]
    asked.append(f"/nodes/qr/dicom-web/studies/{study}/metadata")
    embedded = [_body(gateway, one) for one in asked]
    with over(real_nodes, redis_url=redis_peer.url, cache_timeout=1.0) as other:
        assert other.get("/nodes").json()["cache"] == "up"
        for _ in range(2):
            assert [_body(other, one) for one in asked] == embedded
        redis_peer.kill()
        for _ in range(3):
            assert [_body(other, one) for one in asked] == embedded
        assert other.get("/nodes").json()["cache"] != "up"


def _body(gateway: Gateway, address: str) -> str:
    answer = gateway.get(address)
    assert answer.status_code == 200
    return answer.text.replace(gateway.url, "")
