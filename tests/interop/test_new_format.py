"""A new hospital is one [[node]] block, a new national format one TOML file: no code is touched here."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from gateway.simulators.dimse import DimseOptions, DimseSimulator
from tests.running import Gateway

NAME = "Jovanović^Đorđe"
OID = "2.16.688.1.999.4"

# Everything in which Ruritania differs from `dicom.toml`, and nothing else.
FORMAT = f"""
format = "ruritania"
title = "The archives of Ruritania"
protocol = "dicom"
character_set = "ISO_IR 101"
time_zone = "Asia/Kathmandu"

[[issuers]]
issuer = "RURITANIA-ID"
oid = "{OID}"
uri = "https://id.ruritania.example/citizens"

[codes.modality]
MAMMO = "MG"
TOMO = "MG"

[study.AccessionNumber]
path = "StudyID"

[study.PatientID]
path = "OtherPatientIDsSequence.PatientID"

[study.IssuerOfPatientID]
path = "OtherPatientIDsSequence.IssuerOfPatientID"

[study.ModalitiesInStudy]
codes = "modality"

[series.Modality]
codes = "modality"

[[example]]
[example.given]
StudyInstanceUID = "2.25.1"
StudyDate = "20260701"
StudyTime = "0815"
StudyID = "A-7"
AccessionNumber = "LOCAL-1"
ModalitiesInStudy = ["MAMMO", "SR"]
PatientID = "hospital-5"
OtherPatientIDsSequence = [{{ PatientID = "0101990500006", IssuerOfPatientID = "{OID}" }}]

[example.expect.study]
AccessionNumber = "A-7"
ModalitiesInStudy = ["MG", "SR"]
PatientID = "0101990500006"
IssuerOfPatientID = "RURITANIA-ID"
started = "2026-07-01T08:15:00+05:45"
"""

NODE = """
[[node]]
id = "{id}"
name = "{id}"
adapter = "dimse"
mapping = "{mapping}"
patient_id_issuer = "{id}"
[node.connection]
host = "127.0.0.1"
port = {port}
called_ae_title = "SIMULATOR"
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One study as Ruritania writes it: Latin-2 bytes with nothing to say so, the citizen's number among the others."""
    folder = tmp_path_factory.mktemp("ruritania")
    made = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    del made.SpecificCharacterSet, made.TimezoneOffsetFromUTC
    made.StudyInstanceUID, made.SeriesInstanceUID, made.SOPInstanceUID = "2.25.77", "2.25.77.1", "2.25.77.1.1"
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.StudyDate, made.StudyTime, made.Modality = "20260701", "081500", "MAMMO"
    made.StudyID, made.AccessionNumber, made.PatientID = "A-7", "LOCAL-1", "hospital-5"
    number = Dataset()
    number.PatientID, number.IssuerOfPatientID = "0101990500006", OID
    made.OtherPatientIDsSequence = Sequence([number])
    raw = NAME.encode("iso8859_2")
    made.PatientName = "N" * len(raw)
    made.save_as(folder / "one.dcm")
    content = (folder / "one.dcm").read_bytes()
    assert content.count(b"N" * len(raw)) == 1
    (folder / "one.dcm").write_bytes(content.replace(b"N" * len(raw), raw))
    return folder


@pytest.fixture(scope="module")
def gateway(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The same archive twice: by the new format, and by the one that knows nothing of Ruritania."""
    mappings = tmp_path_factory.mktemp("mappings")
    (mappings / "ruritania.toml").write_text(FORMAT, encoding="utf-8")
    with DimseSimulator(archive, options=DimseOptions(omit_character_set=True)) as pacs:
        blocks = NODE.format(id="new", mapping="ruritania", port=pacs.port)
        blocks += NODE.format(id="plain", mapping="dicom", port=pacs.port)
        with Gateway(tomllib.loads(blocks)["node"], mappings=mappings) as running:
            yield running


def study(gateway: Gateway, node: str, **keys: str) -> Any:
    answer = gateway.get(f"/nodes/{node}/dicom-web/studies", params=keys)
    assert answer.status_code == 200
    return answer.json()


def first(row: dict[str, Any], tag: str) -> Any:
    values = row.get(tag, {}).get("Value", [None])
    return values[0]["Alphabetic"] if isinstance(values[0], dict) else values[0]


DIFFERENCES = {
    "the patient's number": ("00100020", "0101990500006", "hospital-5"),
    "its issuer": ("00100021", "RURITANIA-ID", "plain"),
    "the accession number": ("00080050", "A-7", "LOCAL-1"),
    "the modality": ("00080061", "MG", "MAMMO"),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_one_toml_file_changes_what_qido_says(gateway: Gateway, difference: str) -> None:
    tag, new, plain = DIFFERENCES[difference]
    assert first(study(gateway, "new")[0], tag) == new
    assert first(study(gateway, "plain")[0], tag) == plain


def test_one_toml_file_changes_the_letters_of_a_name(gateway: Gateway) -> None:
    assert first(study(gateway, "new")[0], "00100010") == NAME
    assert first(study(gateway, "plain")[0], "00100010") != NAME


SEARCHES = [
    {"PatientID": "0101990500006"},
    {"PatientID": "0101990500006", "IssuerOfPatientID": "RURITANIA-ID"},
    {"AccessionNumber": "A-7"},
    {"ModalitiesInStudy": "MG"},
    {"PatientName": "Jovanović*"},
    {"PatientName": "JOVANOVIC^DORDE"},
]


@pytest.mark.parametrize("keys", SEARCHES, ids=lambda keys: "+".join(keys) + "=" + keys[next(iter(keys))])
def test_searches_go_the_other_way_through_the_same_file(gateway: Gateway, keys: dict[str, str]) -> None:
    assert [first(row, "0020000D") for row in study(gateway, "new", **keys)] == ["2.25.77"]
    assert study(gateway, "plain", **keys) == []


@pytest.mark.parametrize(
    "keys", [{"PatientID": "hospital-5"}, {"AccessionNumber": "LOCAL-1"}, {"ModalitiesInStudy": "MAMMO"}]
)
def test_what_the_format_replaces_is_not_found_any_more(gateway: Gateway, keys: dict[str, str]) -> None:
    assert study(gateway, "new", **keys) == []
    assert len(study(gateway, "plain", **keys)) == 1


def test_a_series_has_the_formats_modality(gateway: Gateway) -> None:
    [row] = gateway.get("/nodes/new/dicom-web/studies/2.25.77/series").json()
    assert first(row, "00080060") == "MG"


def test_every_difference_is_seen_in_fhir(gateway: Gateway) -> None:
    found = gateway.get("/fhir/ImagingStudy?node=new&_include=ImagingStudy:patient").json()["entry"]
    resource, patient = found[0]["resource"], found[1]["resource"]
    accession = [one["value"] for one in resource["identifier"] if one.get("system") != "urn:dicom:uid"]
    assert accession == ["A-7"]
    assert [one["code"] for one in resource["modality"]] == ["MG"]
    assert resource["started"] == "2026-07-01T08:15:00+05:45"
    [plain] = gateway.get("/fhir/ImagingStudy?node=plain").json()["entry"]
    assert plain["resource"]["started"] == "2026-07-01"
    assert {"https://id.ruritania.example/citizens", f"urn:oid:{OID}"} & {
        one["system"] for one in patient["identifier"]
    }
    assert patient["identifier"][0]["value"] == "0101990500006"
    assert patient["name"][0]["family"] == "Jovanović"


def test_a_moment_is_searched_in_the_formats_time_zone(gateway: Gateway) -> None:
    """02:30 in Kathmandu's morning is the hour it began; 08:15 of Greenwich is not."""
    for moment, count in (("2026-07-01T02:30:00Z", 1), ("2026-07-01T08:15:00Z", 0)):
        found = gateway.get("/fhir/ImagingStudy", params={"node": "new", "started": moment}).json()
        assert len(found.get("entry", [])) == count


def test_fhir_finds_by_the_formats_identifier_system(gateway: Gateway) -> None:
    for system in (f"urn:oid:{OID}", "https://id.ruritania.example/citizens"):
        found = gateway.get(f"/fhir/ImagingStudy?node=new&patient.identifier={system}|0101990500006").json()
        # The other node shows the study as another patient's: its id tells of that, once both were shown.
        studies = [entry["resource"]["identifier"] for entry in found["entry"]]
        uids = [[one["value"] for one in listed if one.get("system") == "urn:dicom:uid"] for listed in studies]
        assert uids == [["urn:oid:2.25.77"]]
