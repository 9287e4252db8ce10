"""Records become rows: DICOM as it stands but for its entries, FHIR by its entries alone."""

import json
import time

import pytest

from gateway.errors import Unmappable
from gateway.mapping.load import load_all
from gateway.mapping.read import Reader
from gateway.mapping.schema import Issuer
from gateway.model.dataset import attribute, items, text, texts
from gateway.model.matching import decider
from gateway.model.moments import series_started, started
from gateway.model.patient import PatientKey
from gateway.model.query import Query, parse_match
from gateway.model.vocabulary import ISSUER, Level, path, tag
from gateway.wire.dicomjson import DicomRecord
from gateway.wire.fhirjson import FhirRecord

SHIPPED = load_all()
ACCESSION, MODALITY, BODY_PART = tag("AccessionNumber"), tag("Modality"), tag("BodyPartExamined")


def record(**values: object) -> DicomRecord:
    return DicomRecord({tag(k): attribute(tag(k), v if isinstance(v, list) else [v]) for k, v in values.items()})


def with_sequence(base: DicomRecord, name: str, *found: DicomRecord) -> DicomRecord:
    return DicomRecord({**base.dataset, tag(name): {"vr": "SQ", "Value": [one.dataset for one in found]}})


def dicom(mapping, entries: str, node: str = "n") -> Reader:
    head = 'format = "x"\ntitle = "X"\nprotocol = "dicom"\n'
    proof = '[[example]]\ngiven = { StudyInstanceUID = "1.2" }\nexpect = { study = { StudyInstanceUID = "1.2" } }\n'
    return Reader(mapping(head + entries + proof), node, "HOSPITAL")


def test_plain_dicom_is_taken_as_it_is_with_the_nodes_issuer():
    given = record(StudyInstanceUID="1.2", PatientID="7", PatientComments="kept too")
    (row,) = Reader(SHIPPED["dicom"], "n", "HOSPITAL").rows(given, Level.STUDY)
    assert (row.node, row.patient, row.study) == ("n", PatientKey("HOSPITAL", "7"), "1.2")
    assert row.attributes == given.dataset | {ISSUER: {"vr": "LO", "Value": ["HOSPITAL"]}}


def test_an_attribute_at_another_place_takes_the_place_of_its_own(mapping):
    reader = dicom(mapping, '[study.AccessionNumber]\npath = "StudyID"\n')
    row = reader.row(record(StudyInstanceUID="1.2", StudyID="A-7", AccessionNumber="order 9"), Level.STUDY)
    assert text(row.attributes, ACCESSION) == "A-7"


def test_a_source_that_is_empty_gives_an_empty_attribute_and_one_that_is_absent_none(mapping):
    reader = dicom(mapping, '[study.AccessionNumber]\npath = "StudyID"\n')
    empty = reader.row(record(StudyInstanceUID="1.2", StudyID=[], AccessionNumber="x"), Level.STUDY)
    absent = reader.row(record(StudyInstanceUID="1.2", AccessionNumber="x"), Level.STUDY)
    assert empty.attributes[ACCESSION] == {"vr": "SH"}
    assert ACCESSION not in absent.attributes
    query = Query(Level.STUDY, (parse_match(path("AccessionNumber"), "x"),))
    assert decider(query)(empty)[0] is False
    assert decider(query)(absent)[0] is None


def test_an_attribute_may_lie_in_a_sequence_of_a_lower_level(mapping):
    reader = dicom(mapping, '[study.AccessionNumber]\npath = "RequestAttributesSequence.AccessionNumber"\n')
    base = record(StudyInstanceUID="1.2", SeriesInstanceUID="1.2.3")
    row = reader.row(with_sequence(base, "RequestAttributesSequence", record(AccessionNumber="A-7")), Level.SERIES)
    assert text(row.attributes, ACCESSION) == "A-7"


CODES = '[codes.modality]\nMAMMO = "MG"\nTOMO = "MG"\n[study.ModalitiesInStudy]\ncodes = "modality"\n[series.Modality]\ncodes = "modality"\n'


def test_local_codes_are_read_as_their_terms_and_others_stay(mapping):
    reader = dicom(mapping, CODES)
    study = reader.row(record(StudyInstanceUID="1.2", ModalitiesInStudy=["MAMMO", "TOMO", "SR"]), Level.STUDY)
    series = reader.row(record(StudyInstanceUID="1.2", SeriesInstanceUID="1.2.3", Modality="MAMMO"), Level.SERIES)
    assert texts(study.attributes, tag("ModalitiesInStudy")) == ["MG", "SR"]
    assert text(series.attributes, MODALITY) == "MG"


def test_a_default_stands_where_the_table_lists_nothing(mapping):
    reader = dicom(mapping, '[codes.c]\na = "BREAST"\n[study.BodyPartExamined]\ncodes = "c"\ndefault = "WHOLEBODY"\n')
    read = [text(reader.row(given, Level.STUDY).attributes, BODY_PART) for given in (
        record(StudyInstanceUID="1.2", BodyPartExamined="a"),
        record(StudyInstanceUID="1.2", BodyPartExamined="b"),
        record(StudyInstanceUID="1.2"),
    )]  # fmt: skip
    assert read == ["BREAST", "WHOLEBODY", "WHOLEBODY"]


def test_a_default_does_not_stand_in_for_what_a_lower_level_leaves_out(mapping):
    reader = dicom(mapping, '[study.AccessionNumber]\npath = "StudyID"\ndefault = "none"\n')
    row = reader.row(record(StudyInstanceUID="1.2", SeriesInstanceUID="1.2.3"), Level.SERIES)
    assert ACCESSION not in row.attributes


def test_a_fixed_value_of_a_series_does_not_show_on_the_study(mapping):
    reader = dicom(mapping, '[series.BodyPartExamined]\nfixed = "BREAST"\n')
    series = reader.row(record(StudyInstanceUID="1.2", SeriesInstanceUID="1.2.3"), Level.SERIES)
    assert text(series.attributes, BODY_PART) == "BREAST"
    assert BODY_PART not in reader.row(record(StudyInstanceUID="1.2"), Level.STUDY).attributes


def test_a_coded_term_becomes_an_item_of_its_sequence(mapping):
    entries = '[codes.p]\nMAMMO = { system = "SCT", code = "71651007", display = "Mammography" }\n'
    reader = dicom(
        mapping, entries + '[study.ProcedureCodeSequence]\npath = "StudyDescription"\ncodes = "p"\ndefault = ""\n'
    )
    row = reader.row(record(StudyInstanceUID="1.2", StudyDescription="MAMMO"), Level.STUDY)
    (item,) = items(row.attributes, tag("ProcedureCodeSequence"))
    assert [text(item, tag(k)) for k in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")] == [
        "71651007", "SCT", "Mammography"
    ]  # fmt: skip


def test_an_issuer_is_known_by_all_its_names():
    reader = Reader(SHIPPED["dicom-latin2-pl"], "n", "SZPITAL")
    oid = "2.16.840.1.113883.3.4424.1.1.616"
    by_oid = reader.row(record(StudyInstanceUID="1.2", PatientID="7", IssuerOfPatientID=oid), Level.STUDY)
    base = record(StudyInstanceUID="1.2", PatientID="7")
    by_qualifiers = reader.row(
        with_sequence(base, "IssuerOfPatientIDQualifiersSequence", record(UniversalEntityID=oid)), Level.STUDY
    )
    by_other_id = reader.row(
        with_sequence(base, "OtherPatientIDsSequence", record(PatientID="9", IssuerOfPatientID=oid)), Level.STUDY
    )
    assert by_oid.patient == by_qualifiers.patient == PatientKey("PESEL", "7")
    assert by_other_id.patient == PatientKey("SZPITAL", "7")
    assert by_other_id.linked == {PatientKey("PESEL", "9")}
    assert reader.patient(by_oid.attributes, "x") == PatientKey("PESEL", "7")


def test_a_node_may_name_its_own_issuer_in_the_formats_terms():
    known = SHIPPED["fhir-r4"].knowing([Issuer(issuer="MRN", uri="https://hospital.example/mrn")])
    given = study(subject={"identifier": {"system": "https://hospital.example/mrn", "value": "7"}})
    assert Reader(known, "n", "X").row(given, Level.STUDY).patient == PatientKey("MRN", "7")
    assert Reader(SHIPPED["fhir-r4"], "n", "X").row(given, Level.STUDY).patient.issuer == "https://hospital.example/mrn"


def study(**elements: object) -> FhirRecord:
    series = [
        {"uid": f"1.2.{n}", "modality": {"code": code}, "instance": [{"uid": f"1.2.{n}.{i}", "sopClass": {"code": "1.9"}} for i in range(n)]}
        for n, code in ((1, "MG"), (2, "SR"))
    ]  # fmt: skip
    base = {"resourceType": "ImagingStudy", "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2"}]}
    return FhirRecord({**base, "series": series, **elements})


def fhir(node: str = "n") -> Reader:
    return Reader(SHIPPED["fhir-r4"], node, "HOSPITAL")


def test_a_fhir_study_brings_its_series_as_children_with_its_patient():
    row = fhir().row(study(subject={"identifier": {"value": "7"}}), Level.STUDY)
    assert row.patient == PatientKey("HOSPITAL", "7")
    assert texts(row.attributes, tag("ModalitiesInStudy")) == ["MG", "SR"]
    assert [(child.uids, child.patient) for child in row.children] == [
        (("1.2", "1.2.1", ""), row.patient),
        (("1.2", "1.2.2", ""), row.patient),
    ]


def test_the_same_record_gives_its_series_or_its_instances_with_all_above_them():
    series = fhir().rows(study(description="Both sides"), Level.SERIES, study="1.2")
    assert [text(row.attributes, MODALITY) for row in series] == ["MG", "SR"]
    assert {text(row.attributes, tag("StudyDescription")) for row in series} == {"Both sides"}
    instances = fhir().rows(study(), Level.IMAGE, study="1.2", series="1.2.2")
    assert [row.instance for row in instances] == ["1.2.2.0", "1.2.2.1"]
    assert {text(row.attributes, MODALITY) for row in instances} == {"SR"}


def test_what_belongs_together_stays_together_when_elements_are_left_out():
    series = [{"uid": "1.2.1", "modality": {"code": "MG"}}, {"uid": "1.2.2", "number": 2, "modality": {"code": "SR"}}]
    rows = fhir().rows(study(series=series), Level.SERIES)
    number = tag("SeriesNumber")
    assert [(row.series, text(row.attributes, number)) for row in rows] == [("1.2.1", ""), ("1.2.2", "2")]


def test_the_patients_id_and_its_issuer_come_from_the_same_identifier():
    patient = {"resourceType": "Patient", "identifier": [
        {"system": "urn:x:old"}, {"value": "8"}, {"type": {"coding": [{"code": "MR"}]}, "system": "urn:x:mr", "value": "7"}
    ]}  # fmt: skip
    given = FhirRecord({**study().resource, "subject": {"reference": "Patient/1"}}, {"Patient/1": patient}.get)
    assert fhir().row(given, Level.STUDY).patient == PatientKey("urn:x:mr", "7")
    del patient["identifier"][2]
    assert fhir().row(given, Level.STUDY).patient == PatientKey("HOSPITAL", "8")


@pytest.mark.parametrize(
    ("of_study", "of_series", "expected"),
    [
        ("2026-07-01T23:30:00+02:00", "2026-07-01T22:31:00Z", "2026-07-02T00:31:00+02:00"),
        ("2026-07-01T23:30:00+02:00", "2026-07-01T23:31:00+02:00", "2026-07-01T23:31:00+02:00"),
        ("2026-07-01T23:30:00+02:00", "2026-07-02", "2026-07-02"),
        ("2026-07-01", "2026-07-01T22:31:00Z", "2026-07-01T22:31:00+00:00"),
    ],
)
@pytest.mark.parametrize("format_", ["fhir-r4", "fhir-r5", "fhir-stu3", "mii-bildgebung"])
def test_a_series_begins_when_it_says_at_whatever_offset(format_, of_study, of_series, expected):
    given = {**study().resource, "uid": "urn:oid:2.25.1", "started": of_study}
    given["series"] = [{**given["series"][0], "started": of_series}]
    reader = Reader(SHIPPED[format_], "n", "HOSPITAL")
    (child,) = reader.row(FhirRecord(given), Level.STUDY).children
    for row in (child, reader.row(FhirRecord(given), Level.SERIES)):
        assert series_started(row.attributes) == expected
    if "T" in of_study:
        assert started(row.attributes) == of_study


@pytest.mark.parametrize("format_", ["fhir-r4", "fhir-r5", "fhir-stu3", "mii-bildgebung"])
def test_a_number_that_a_patient_no_longer_has_does_not_name_them(format_):
    """FHIR's `old`: no longer valid, or never was. After two records were put together, the number that is gone is one."""
    number = {"type": {"coding": [{"code": "MR"}]}, "system": "urn:x:mr"}
    patient = {"resourceType": "Patient", "identifier": [
        {**number, "use": "old", "value": "1"}, {**number, "use": "usual", "value": "2"}
    ]}  # fmt: skip
    subject = "patient" if format_ == "fhir-stu3" else "subject"
    given = {**study().resource, "uid": "urn:oid:2.25.1", subject: {"reference": "Patient/1"}}
    reader = Reader(SHIPPED[format_], "n", "HOSPITAL")
    row = reader.row(FhirRecord(given, {"Patient/1": patient}.get), Level.STUDY)
    assert row.patient == PatientKey("urn:x:mr", "2")
    assert row.linked == {PatientKey("urn:x:mr", "1")}
    del patient["identifier"][1]
    assert not reader.row(FhirRecord(given, {"Patient/1": patient}.get), Level.STUDY).patient.is_named


@pytest.mark.parametrize("elements", [{"identifier": []}, {"series": [{"number": 1}]}])
def test_a_record_without_a_uid_is_unmappable_and_its_content_is_not_told(elements):
    with pytest.raises(Unmappable) as caught:
        fhir().rows(study(description="secret", **elements), Level.STUDY)
    assert "InstanceUID" in caught.value.detail
    assert "secret" not in caught.value.detail


def test_one_row_is_asked_for_only_where_there_is_one():
    with pytest.raises(Unmappable):
        fhir().row(study(), Level.SERIES)


def test_the_nodes_time_zone_goes_before_the_formats():
    assert Reader(SHIPPED["dicom-greek"], "n", "X").time_zone == "Europe/Athens"
    assert Reader(SHIPPED["dicom-greek"], "n", "X", time_zone="Asia/Nicosia").time_zone == "Asia/Nicosia"


def test_reading_a_plain_dicom_row_is_cheap():
    given = record(StudyInstanceUID="1.2", PatientID="7", StudyDate="20260101", PatientName="A^B")
    reader = Reader(SHIPPED["dicom"], "n", "HOSPITAL")
    best = min(_seconds(lambda: reader.rows(given, Level.STUDY)) for _ in range(5))
    assert best < 50e-6, "20 us on a quiet machine; the margin is for a busy one"


def _seconds(work, times: int = 500) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def test_the_rows_of_a_real_size_study_are_plain_json():
    assert json.dumps([row.attributes for row in fhir().rows(study(), Level.IMAGE)])
