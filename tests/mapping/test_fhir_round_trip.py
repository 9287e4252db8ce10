"""A DICOM study written as FHIR by the simulated server, in every version, comes back by its mapping as it was."""

from pathlib import Path
from zoneinfo import ZoneInfo

import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from gateway.mapping.load import load_all
from gateway.mapping.read import Reader
from gateway.model.dataset import text, texts
from gateway.model.moments import started
from gateway.model.patient import PatientKey
from gateway.model.vocabulary import Level, tag
from gateway.simulators import _imagingstudy as write
from gateway.simulators._directory import Directory
from gateway.simulators._facts import Facts, Naming
from gateway.wire.fhirjson import FhirRecord

SHIPPED = load_all()
KVID = "http://fhir.de/sid/gkv/kvid-10"
VERSIONS = [("STU3", ""), ("R4", ""), ("R4B", ""), ("R5", ""), ("R4", "mii")]
STUDY = {
    "StudyInstanceUID": "2.25.1",
    "StudyDate": "20260719",
    "StudyTime": "120330",
    "TimezoneOffsetFromUTC": "+0200",
    "AccessionNumber": "A-17",
    "StudyDescription": "Mammographie beidseits, Übersicht",
    "PatientID": "X999999017",
    "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "PatientBirthDate": "19610504",
    "PatientSex": "O",
}
SERIES = {
    "SeriesInstanceUID": "2.25.1.1",
    "Modality": "MG",
    "SeriesNumber": "3",
    "SeriesDescription": "R CC",
    "BodyPartExamined": "BREAST",
    "Laterality": "R",
    "SeriesDate": "20260719",
    "SeriesTime": "120500",
}
INSTANCE = {"SOPInstanceUID": "2.25.1.1.1", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2", "InstanceNumber": "7"}


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    made = pydicom.Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in {**STUDY, **SERIES, **INSTANCE, "IssuerOfPatientID": "KVNR"}.items():
        setattr(made, keyword, value)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    (study,) = Directory(tmp_path).studies
    return Facts(study, Naming(KVID, "https://hospital.example/accession", {"KVNR": KVID}, ZoneInfo("Europe/Berlin")))


def record_of(facts: Facts, version: str, profile: str) -> FhirRecord:
    shape = write.Shape(version, profile, service_requests=True)
    patient, request = write.patient(facts.patient, shape), write.service_request(facts, shape)
    known = {f"{one['resourceType']}/{one['id']}": one for one in (patient, request)}
    return FhirRecord(write.imaging_study(facts, shape), known.get)


def reader_of(version: str, profile: str) -> Reader:
    name = "mii-bildgebung" if profile else {"R4B": "fhir-r4"}.get(version, f"fhir-{version.lower()}")
    return Reader(SHIPPED[name], "n", "HOSPITAL")


@pytest.mark.parametrize(("version", "profile"), VERSIONS)
def test_every_attribute_comes_back_at_its_level(facts: Facts, version: str, profile: str):
    reader, record = reader_of(version, profile), record_of(facts, version, profile)
    (instance,) = reader.rows(record, Level.IMAGE, study="2.25.1")
    assert {k: text(instance.attributes, tag(k)) for k in {**STUDY, **SERIES, **INSTANCE}} == {
        **STUDY, **SERIES, **INSTANCE
    }  # fmt: skip
    assert instance.uids == ("2.25.1", "2.25.1.1", "2.25.1.1.1")


@pytest.mark.parametrize(("version", "profile"), VERSIONS)
def test_the_study_row_has_its_counts_its_modalities_and_its_moment(facts: Facts, version: str, profile: str):
    row = reader_of(version, profile).row(record_of(facts, version, profile), Level.STUDY)
    assert texts(row.attributes, tag("ModalitiesInStudy")) == ["MG"]
    counts = ("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances")
    assert [text(row.attributes, tag(k)) for k in counts] == ["1", "1"]
    assert text(row.attributes, tag("InstanceAvailability")) == "ONLINE"
    assert started(row.attributes) == "2026-07-19T12:03:30+02:00"


@pytest.mark.parametrize(("version", "profile"), VERSIONS)
def test_the_patient_is_known_by_the_formats_name_of_the_issuer(facts: Facts, version: str, profile: str):
    row = reader_of(version, profile).row(record_of(facts, version, profile), Level.STUDY)
    assert row.patient == PatientKey("KVNR" if profile else KVID, "X999999017")
    assert row.linked == frozenset()
