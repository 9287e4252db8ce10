"""Sixty ways in which an ImagingStudy can be wrong, one fault each: the oracles that accept our bodies reject every one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import fhirkit
import pytest
from fhir.resources import get_fhir_model_class as r5_class
from fhir.resources.R4B import get_fhir_model_class as r4b_class
from fhir_rules import faults
from pyfhircheck import Validator
from pyfhircheck.config import ValidatorConfig

Resource = dict[str, Any]
Fault = Callable[[Resource], None]
DCM, SCT = "http://dicom.nema.org/resources/ontology/DCM", "http://snomed.info/sct"
R4_CHECK = Validator(ValidatorConfig.load_dict({"fhirVersion": "4.0.1"}))


def good(version: str) -> Resource:
    def coded(system: str, code: str) -> Resource:
        coding = {"system": system, "code": code}
        return {"coding": [coding]} if version == "R5" else coding

    accession = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]}
    return {
        "resourceType": "ImagingStudy",
        "id": "1.2.3",
        "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}, {"type": accession, "value": "A1"}],
        "status": "available",
        "modality": [coded(DCM, "CT")],
        "subject": {"reference": "Patient/p1", "type": "Patient", "identifier": {"system": "urn:oid:1.2", "value": "12345"}},
        "started": "2025-01-01T10:00:00+01:00",
        "referrer": {"display": "Dr A"},
        "endpoint": [{"reference": "Endpoint/a"}],
        "numberOfSeries": 1,
        "numberOfInstances": 1,
        "description": "x",
        "series": [{
            "uid": "1.2.3.4", "number": 1, "modality": coded(DCM, "CT"), "numberOfInstances": 1, "laterality": coded(SCT, "7771000"),
            "started": "2025-01-01",
            "instance": [{"uid": "1.2.3.4.5", "sopClass": {"system": "urn:ietf:rfc:3986", "code": "urn:oid:1.2.840.10008.5.1.4.1.1.2"}, "number": 1}],
        }],
    }  # fmt: skip


def put(*path_and_value: Any) -> Fault:
    *path, value = path_and_value

    def change(resource: Any) -> None:
        for step in path[:-1]:
            resource = resource[step]
        resource[path[-1]] = value

    return change


def drop(*path: Any) -> Fault:
    def change(resource: Any) -> None:
        for step in path[:-1]:
            resource = resource[step]
        del resource[path[-1]]

    return change


FIRST = ("series", 0)
INSTANCE = (*FIRST, "instance", 0)
FAULTS: dict[str, Fault] = {
    "no type": drop("resourceType"),
    "a type that there is not": put("resourceType", "ImagingStudies"),
    "an id with other characters": put("id", "a_b/c"),
    "an id of 65 characters": put("id", "1" * 65),
    "an id that is a number": put("id", 7),
    "an empty id": put("id", ""),
    "meta that is a list": put("meta", []),
    "a tag that is no list": put("meta", {"tag": {"code": "x"}}),
    "no status": drop("status"),
    "a status outside the binding": put("status", "done"),
    "a status that is a number": put("status", 1),
    "a status that is a list": put("status", ["available"]),
    "an empty status": put("status", ""),
    "no subject": drop("subject"),
    "a subject that is a text": put("subject", "Patient/p1"),
    "a subject that is a list": put("subject", [{"display": "x"}]),
    "a reference that is a number": put("subject", "reference", 1),
    "a subject that is an Endpoint": put("subject", "reference", "Endpoint/a"),
    "a referrer who is a Patient": put("referrer", {"reference": "Patient/1"}),
    "an endpoint that is a Patient": put("endpoint", [{"reference": "Patient/1"}]),
    "a started that is a word": put("started", "yesterday"),
    "a thirteenth month": put("started", "2025-13-01"),
    "a thirty-first of February": put("started", "2025-02-31"),
    "a time without an offset": put("started", "2025-01-01T10:00:00"),
    "a DICOM date": put("started", "20250101"),
    "a negative count": put("numberOfSeries", -1),
    "a count that is a text": put("numberOfSeries", "1"),
    "a count that is a fraction": put("numberOfInstances", 1.5),
    "a count that is true": put("numberOfInstances", True),
    "a series without a UID": drop(*FIRST, "uid"),
    "a series without a modality": drop(*FIRST, "modality"),
    "series that are no list": put("series", {"uid": "1.2"}),
    "a series UID that is a number": put(*FIRST, "uid", 1),
    "a negative series number": put(*FIRST, "number", -1),
    "a series that started at noon": put(*FIRST, "started", "noon"),
    "a laterality that is a text": put(*FIRST, "laterality", "L"),
    "an empty list of series": put("series", []),
    "a series that is null": put("series", [None]),
    "an empty list of identifiers": put("identifier", []),
    "identifiers that are no list": put("identifier", {"value": "x"}),
    "a system with white space": put("identifier", 0, "system", "a b"),
    "an instance without a UID": drop(*INSTANCE, "uid"),
    "an instance without a SOP class": drop(*INSTANCE, "sopClass"),
    "a SOP class that is a text": put(*INSTANCE, "sopClass", "1.2"),
    "an empty list of instances": put(*FIRST, "instance", []),
    "an instance number in words": put(*INSTANCE, "number", "one"),
    "an element that a study has not": put("accession", "A1"),
    "an element that a series has not": put(*FIRST, "bodypart", "x"),
    "an element that an instance has not": put(*INSTANCE, "rows", 3),
    "a modality that is a text": put("modality", ["CT"]),
    "a modality that is no list": put("modality", {"code": "CT"}),
    "a code that is a number": put("modality", [{"code": 1}]),
    "a description that is null": put("description", None),
    "a description that is a list": put("description", ["x"]),
    "an empty description": put("description", ""),
    "an extension without a URL": put("extension", [{"valueString": "x"}]),
    "an extension of two values": put("extension", [{"url": "http://x", "valueString": "x", "valueCode": "y"}]),
    "an extension of nothing": put("extension", [{"url": "http://x"}]),
    "a contained resource without a type": put("contained", [{"id": "x"}]),
    "an empty subject": put("subject", {}),
    "an identifier's use outside the binding": put("identifier", 0, "use", "mine"),
    "an empty identifier": put("identifier", [{}]),
    "a language that is none": put("language", "a b c!"),
}
OURS_IN_R4 = {
    "an empty subject",
    "an identifier's use outside the binding",
    "an empty identifier",
    "a language that is none",
}
"""What none of the three oracles of R4 sees, and our own rules do."""


def oracles_reject(version: str, body: Resource) -> bool:
    find = r5_class if version == "R5" else r4b_class
    try:
        find("ImagingStudy").model_validate(body)
    except ValueError:
        return True
    if version == "R5":
        return False
    return bool(fhirkit.validate(body) or R4_CHECK.validate_resource(body).errors)


@pytest.mark.parametrize("version", ["R4", "R5"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_body_with_one_fault_is_rejected(version: str, fault: str) -> None:
    body = copy.deepcopy(good(version))
    FAULTS[fault](body)
    rejected = oracles_reject(version, body)
    assert rejected or faults(body), fault
    if version == "R4":
        assert rejected == (fault not in OURS_IN_R4)


@pytest.mark.parametrize("version", ["R4", "R5"])
def test_the_body_without_a_fault_is_accepted(version: str) -> None:
    assert not oracles_reject(version, good(version))
    assert faults(good(version)) == []


def test_there_are_enough_of_them() -> None:
    assert len(FAULTS) >= 60
