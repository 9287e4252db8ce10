"""The rows of the mapping of DICOM to FHIR ImagingStudy (M), in R4 and R5, each shown by a study that is read."""

from __future__ import annotations

from typing import Any

from conformance_table import shows
from fhir_rows import ROOTS, matches, read
from small_hospital import ACCESSION_ISSUER, CT, MULLER, YAMADA, Small

from tests.specimens import uid

Json = dict[str, Any]
DCM, SCT = "http://dicom.nema.org/resources/ontology/DCM", "http://snomed.info/sct"


def whole(hospital: Small, query: str, root: str) -> Json:
    """The one study that a search finds, read."""
    (one,) = matches(read(hospital, f"ImagingStudy?node=files&{query}", root))
    return read(hospital, f"ImagingStudy/{one['id']}?node=files", root)


def both(hospital: Small, query: str = "identifier=ACC-1") -> list[tuple[bool, Json]]:
    """The study in R4 and in R5, and whether it is in R5."""
    return [(root.endswith("r5"), whole(hospital, query, root)) for root in ROOTS]


def coded(coding: Json, *, is_r5: bool) -> Json:
    """Coding in R4, CodeableConcept in R5."""
    return {"coding": [coding]} if is_r5 else coding


@shows("M1")
def study_uid(hospital: Small) -> None:
    for _, study in both(hospital):
        assert study["identifier"][0] == {"system": "urn:dicom:uid", "value": f"urn:oid:{uid(MULLER)}"}


@shows("M2")
def accession(hospital: Small) -> None:
    system = f"urn:oid:{ACCESSION_ISSUER}"
    for _, study in both(hospital):
        identifier = study["identifier"][1]
        assert (identifier["system"], identifier["value"]) == (system, "ACC-1")
        assert identifier["type"]["coding"][0]["code"] == "ACSN"
        assert study["basedOn"] == [{"type": "ServiceRequest", "identifier": identifier}]
    for _, study in both(hospital, "started=2026-04-01"):
        assert "basedOn" not in study


@shows("M4")
def study_status(hospital: Small) -> None:
    assert [study["status"] for _, study in both(hospital)] == ["available", "available"]


@shows("M5")
def modalities(hospital: Small) -> None:
    for is_r5, study in both(hospital, "identifier=ACC-2"):
        told = [each["coding"][0] if is_r5 else each for each in study["modality"]]
        assert sorted(each["code"] for each in told) == ["CT", "MR"]
        assert {each["system"] for each in told} == {DCM}


@shows("M6")
def subject(hospital: Small) -> None:
    for (is_r5, study), root in zip(both(hospital), ROOTS, strict=True):
        assert is_r5 == root.endswith("r5")
        assert study["subject"]["identifier"]["value"] == "P1"
        patient = read(hospital, study["subject"]["reference"], root)
        assert patient["identifier"] == [study["subject"]["identifier"]]
        assert (patient["name"][0]["family"], patient["name"][0]["given"]) == ("Müller", ["Hans"])
        assert (patient["birthDate"], patient["gender"]) == ("1960-02-29", "male")


@shows("M7")
def started(hospital: Small) -> None:
    assert {study["started"] for _, study in both(hospital)} == {"2026-03-01T10:15:00+01:00"}
    assert {study["started"] for _, study in both(hospital, "started=2026-04-01")} == {"2026-04-01"}


@shows("M9")
def referrer(hospital: Small) -> None:
    assert [study["referrer"] for _, study in both(hospital)] == [{"display": "Jörg Weiß"}] * 2


@shows("M11")
def counts(hospital: Small) -> None:
    for _, study in both(hospital):
        assert (study["numberOfSeries"], study["numberOfInstances"]) == (1, 2)


@shows("M15")
def description(hospital: Small) -> None:
    assert [study["description"] for _, study in both(hospital)] == ["Thorax"] * 2
    assert all("description" not in study for _, study in both(hospital, "identifier=ACC-2"))


@shows("M16")
def series(hospital: Small) -> None:
    for _, study in both(hospital):
        (one,) = study["series"]
        assert (one["uid"], one["number"]) == (uid(MULLER, "1"), 7)


@shows("M17")
def series_modality(hospital: Small) -> None:
    for is_r5, study in both(hospital):
        assert study["series"][0]["modality"] == coded({"system": DCM, "code": "CT"}, is_r5=is_r5)


@shows("M18")
def series_description(hospital: Small) -> None:
    for _, study in both(hospital):
        (one,) = study["series"]
        assert (one["description"], one["numberOfInstances"]) == ("Lung", 2)


@shows("M19")
def body_site(hospital: Small) -> None:
    coding = {"system": SCT, "code": "51185008", "display": "CHEST"}
    (_, r4), (_, r5) = both(hospital)
    assert r4["series"][0]["bodySite"] == coding
    assert r5["series"][0]["bodySite"] == {"concept": {"coding": [coding], "text": "CHEST"}}


@shows("M20")
def laterality(hospital: Small) -> None:
    for is_r5, study in both(hospital):
        assert study["series"][0]["laterality"] == coded({"system": SCT, "code": "7771000"}, is_r5=is_r5)


@shows("M22")
def series_started(hospital: Small) -> None:
    assert {study["series"][0]["started"] for _, study in both(hospital)} == {"2026-03-01T10:14:00+01:00"}


@shows("M24")
def instances(hospital: Small) -> None:
    for _, study in both(hospital):
        told = sorted(study["series"][0]["instance"], key=lambda each: each["number"])
        assert [each["uid"] for each in told] == [uid(MULLER, "1", number) for number in (1, 2)]
        assert [each["number"] for each in told] == [1, 2]
        assert {each["sopClass"]["code"] for each in told} == {f"urn:oid:{CT}"}
        assert {each["sopClass"]["system"] for each in told} == {"urn:ietf:rfc:3986"}


@shows("M26a")
def endpoint(hospital: Small) -> None:
    for (is_r5, study), root in zip(both(hospital), ROOTS, strict=True):
        assert study["endpoint"] == [{"reference": "Endpoint/files"}]
        told = read(hospital, "Endpoint/files", root)
        assert told["address"] == f"{hospital.gateway.url}/nodes/files/dicom-web"
        connection = told["connectionType"][0]["coding"][0] if is_r5 else told["connectionType"]
        assert connection["code"] == "dicom-wado-rs"


@shows("M27")
def what_is_required(hospital: Small) -> None:
    """Also of the study that hardly says anything."""
    for _, study in both(hospital, "started=2026-04-01"):
        assert study["status"]
        assert study["subject"]["identifier"]["value"] == "P3"
        for one in study["series"]:
            assert one["uid"] == uid(YAMADA, "1")
            assert one["modality"]
            assert all(each["uid"] and each["sopClass"] for each in one["instance"])
