"""The FHIR resources made of a study, in the shapes of STU3, R4, R4B, R5 and of the German MII profile (R4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.simulators._directory import Instance, Json, Series, texts
from gateway.simulators._facts import DCM, DICOM_UID, SNOMED, Facts, Patient, body_site
from gateway.simulators._mii import MII, instance_extension, reason_extension, series_extension

FHIR_VERSIONS = {"STU3": "3.0.2", "R4": "4.0.1", "R4B": "4.3.0", "R5": "5.0.0"}
V2_0203 = "http://terminology.hl7.org/CodeSystem/v2-0203"
URI = "urn:ietf:rfc:3986"
KVID = "http://fhir.de/sid/gkv/kvid-10"
NAME_REPRESENTATION = "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"
REPRESENTATIONS = {"Alphabetic": "ABC", "Ideographic": "IDE", "Phonetic": "SYL"}
GENDERS = {"M": "male", "F": "female", "O": "other"}
MODALITIES = {
    "CR": "Computed Radiography",
    "CT": "Computed Tomography",
    "DX": "Digital Radiography",
    "MG": "Mammography",
    "MR": "Magnetic Resonance",
    "NM": "Nuclear Medicine",
    "PT": "Positron emission tomography",
    "SR": "Structured Report",
    "US": "Ultrasound",
}
LATERALITIES = {
    "L": ("7771000", "Left"),
    "R": ("24028007", "Right"),
    "B": ("51440002", "Right and left"),
    "U": ("66459002", "Unilateral"),
}


@dataclass(frozen=True)
class Shape:
    """How this server writes: the version, the profile ('' or 'mii'), and where its pixels can be had."""

    version: str
    profile: str = ""
    dicomweb_url: str | None = None
    endpoint_at: str = "study"
    organization: str = ""
    service_requests: bool = False
    reports: bool = False

    @property
    def mii(self) -> bool:
        return self.profile == "mii"

    @property
    def orders(self) -> bool:
        """Whether the orders behind the accession numbers can be had."""
        return self.service_requests or self.mii

    @property
    def endpoint(self) -> list[Json]:
        return [{"reference": "Endpoint/pacs"}] if self.dicomweb_url else []

    def coded(self, coding: Json) -> Json | None:
        """A Coding up to R4B, a CodeableConcept in R5."""
        if not coding:
            return None
        return {"coding": [coding]} if self.version == "R5" else coding

    def body_site(self, coding: Json) -> Json | None:
        """A Coding up to R4B, a CodeableReference(BodyStructure) in R5."""
        if self.version != "R5":
            return coding or None
        concept = {"coding": [coding]} if "code" in coding else {"text": coding.get("display")}
        return {"concept": concept} if coding else None


def filled(**elements: Any) -> Json:
    """A resource or element without what is empty: FHIR knows no null and no empty list."""
    return {name.rstrip("_"): value for name, value in elements.items() if value not in (None, "", [], {})}


def imaging_study(facts: Facts, shape: Shape) -> Json:
    return _stu3(facts, shape) if shape.version == "STU3" else _r4_and_later(facts, shape)


def _r4_and_later(facts: Facts, shape: Shape) -> Json:
    study = facts.study
    return filled(
        resourceType="ImagingStudy",
        id=facts.id,
        meta={"profile": [MII + "pr-bildgebung-bildgebungsstudie"]} if shape.mii else None,
        extension=reason_extension(facts) if shape.mii else None,
        identifier=_identifiers(facts, shape),
        status="available",
        modality=[shape.coded(_modality(code)) for code in facts.modalities],
        subject=subject(facts.patient, shape),
        started=facts.started.text if facts.started else None,
        basedOn=_based_on(facts, shape),
        endpoint=shape.endpoint if shape.endpoint_at == "study" else None,
        numberOfSeries=len(study.series),
        numberOfInstances=len(study.instances),
        description=study.text("00081030"),
        series=[_series(facts, series, shape) for series in study.series],
    )


def _stu3(facts: Facts, shape: Shape) -> Json:
    study = facts.study
    return filled(
        resourceType="ImagingStudy",
        id=facts.id,
        uid=f"urn:oid:{study.uid}",
        accession=accession(facts),
        availability="ONLINE",
        modalityList=[_modality(code) for code in facts.modalities],
        patient={"reference": f"Patient/{facts.patient.id}"},
        started=facts.started.text if facts.started else None,
        endpoint=shape.endpoint if shape.endpoint_at == "study" else None,
        numberOfSeries=len(study.series),
        numberOfInstances=len(study.instances),
        description=study.text("00081030"),
        series=[_series(facts, series, shape) for series in study.series],
    )


def accession(facts: Facts) -> Json | None:
    """The accession number as an Identifier."""
    if not facts.accession:
        return None
    system, value = facts.accession
    kind = {"coding": [{"system": V2_0203, "code": "ACSN", "display": "Accession ID"}]}
    return {"type": kind, "system": system, "value": value}


def _identifiers(facts: Facts, shape: Shape) -> list[Json]:
    """The study's UID, and the accession number unless the profile leaves it to the order (MII has no slice for it)."""
    study = {"use": "official", "system": DICOM_UID, "value": f"urn:oid:{facts.study.uid}"}
    number = None if shape.mii else accession(facts)
    return [study, number] if number else [study]


def subject(patient: Patient, shape: Shape) -> Json:
    """The reference to a patient, with the identifier where the profile wants it."""
    identifier = patient_identifier(patient, shape) if shape.mii else None
    return filled(reference=f"Patient/{patient.id}", identifier=identifier)


def patient_identifier(patient: Patient, shape: Shape) -> Json | None:
    if not patient.value:
        return None
    kind = {"system": V2_0203, "code": "MR", "display": "Medical record number"}
    if shape.mii and patient.system == KVID:
        kind = {"system": "http://fhir.de/CodeSystem/identifier-type-de-basis", "code": "KVZ10"}
    return {"type": {"coding": [kind]}, "system": patient.system, "value": patient.value}


def _based_on(facts: Facts, shape: Shape) -> list[Json] | None:
    if not (facts.accession and shape.orders):
        return None
    return [filled(reference=f"ServiceRequest/{facts.request_id}", identifier=accession(facts))]


def _series(facts: Facts, series: Series, shape: Shape) -> Json:
    attributes, stu3 = series.attributes, shape.version == "STU3"
    started = facts.moment(attributes, "00080021", "00080031")
    side = LATERALITIES.get(series.text("00200060"))
    return filled(
        extension=series_extension(series) if shape.mii else None,
        uid=f"urn:oid:{series.uid}" if stu3 else series.uid,
        number=_unsigned(series.text("00200011")),
        modality=shape.coded(_modality(series.text("00080060") or "OT")),
        description=series.text("0008103E"),
        numberOfInstances=len(series.instances),
        availability="ONLINE" if stu3 else None,
        endpoint=shape.endpoint if shape.endpoint_at == "series" else None,
        bodySite=shape.body_site(body_site(attributes)),
        laterality=shape.coded({"system": SNOMED, "code": side[0], "display": side[1]}) if side else None,
        started=started.text if started else None,
        instance=[_instance(instance, shape) for instance in series.instances],
    )


def _instance(instance: Instance, shape: Shape) -> Json:
    sop_class = f"urn:oid:{instance.text('00080016')}"
    stu3 = shape.version == "STU3"
    return filled(
        extension=instance_extension(instance) if shape.mii else None,
        uid=f"urn:oid:{instance.uid}" if stu3 else instance.uid,
        sopClass=sop_class if stu3 else {"system": URI, "code": sop_class},
        number=_unsigned(instance.text("00200013")),
        title="\\".join(texts(instance.attributes, "00080008")),
    )


def _modality(code: str) -> Json:
    return filled(system=DCM, code=code, display=MODALITIES.get(code))


def _unsigned(text: str) -> int | None:
    """FHIR's unsignedInt; DICOM numbers may be negative, and are then left out."""
    return int(text) if text.isdecimal() else None


# -- the resources around the study


def patient(who: Patient, shape: Shape) -> Json:
    identifier = patient_identifier(who, shape)
    return filled(
        resourceType="Patient",
        id=who.id,
        identifier=[identifier] if identifier else None,
        name=[name for group, text in who.name.items() if (name := _human_name(group, text, len(who.name) > 1))],
        gender=GENDERS.get(who.sex),
        birthDate=who.birth_date,
    )


def _human_name(group: str, text: str, several: bool) -> Json:
    """One component group of a PN: family, given, middle, prefix, suffix (PS3.5 6.2.1.1)."""
    family, given, middle, prefix, suffix = [part.strip() for part in (text.split("^") + [""] * 5)[:5]]
    representation = [{"url": NAME_REPRESENTATION, "valueCode": REPRESENTATIONS[group]}] if several else None
    name = filled(
        family=family,
        given=[*given.split(), *middle.split()],
        prefix=prefix.split(),
        suffix=suffix.split(),
    )
    return filled(extension=representation) | name if name else {}


def service_request(facts: Facts, shape: Shape) -> Json:
    """The order behind a study; the accession number identifies it."""
    text = facts.study.text("00321060") or facts.study.text("00081030") or "Imaging"
    code: Json = {"text": text}
    return filled(
        resourceType="ServiceRequest",
        id=facts.request_id,
        meta={"profile": [MII + "pr-bildgebung-anforderung-bildgebung"]} if shape.mii else None,
        identifier=[accession(facts)],
        status="completed",
        intent="order",
        category=[{"coding": [{"system": SNOMED, "code": "363679005", "display": "Imaging (procedure)"}]}],
        code={"concept": code} if shape.version == "R5" else code,
        subject=subject(facts.patient, shape),
    )


def endpoint(shape: Shape) -> Json:
    """Where the pixels are: the address is the DICOMweb service root."""
    kind = {"system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type", "code": "dicom-wado-rs"}
    payload = {"text": "DICOM WADO-RS"}
    common = filled(
        resourceType="Endpoint",
        id="pacs",
        status="active",
        name="DICOMweb",
        managingOrganization={"reference": "Organization/hospital"},
        address=shape.dicomweb_url,
    )
    if shape.version == "R5":
        held = [{"type": [payload], "mimeType": ["application/dicom"]}]
        return common | {"connectionType": [{"coding": [kind]}], "payload": held}
    return common | {"connectionType": kind, "payloadType": [payload], "payloadMimeType": ["application/dicom"]}


def organization(shape: Shape) -> Json:
    return filled(resourceType="Organization", id="hospital", active=True, name=shape.organization)
