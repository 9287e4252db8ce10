"""Results as FHIR resources, R4 (4.0.1) and R5: plain dicts straight from the model, no pydantic on the hot path.

Element mapping: FHIR R4 and R5 ImagingStudy, DICOM mappings; what differs between the versions is in `Renderer._coded` and
its neighbours, nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.edge.fhir.identifiers import DICOM_UID, Issuers, names_study, study_id
from gateway.edge.fhir.periods import instant
from gateway.edge.fhir.shown import SUBSETTED
from gateway.model.anatomy import LATERALITIES, concept_of
from gateway.model.answer import Found
from gateway.model.dataset import Dataset, items, text, texts, values, whole_number
from gateway.model.moments import parse_date, series_started, started
from gateway.model.patient import PatientKey
from gateway.model.vocabulary import (
    INSTANCE_AVAILABILITY,
    MODALITIES_IN_STUDY,
    MODALITY,
    SERIES_INSTANCE_COUNT,
    SOP_CLASS_UID,
    STUDY_INSTANCE_COUNT,
    STUDY_SERIES_COUNT,
    tag,
    uid_name,
)
from gateway.outgoing import StudyTree
from gateway.pipeline import NodeState
from gateway.store.patients import PatientIds

Resource = dict[str, Any]

DCM = "http://dicom.nema.org/resources/ontology/DCM"
SCT = "http://snomed.info/sct"
V2_0203 = "http://terminology.hl7.org/CodeSystem/v2-0203"
_MOST = 2**31 - 1
_ABSENT = [{"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": "unknown"}]
_SUBSETTED = {"tag": [SUBSETTED]}
_STATUS = {
    "": "available",
    "ONLINE": "available",
    "NEARLINE": "available",
    "OFFLINE": "available",
    "UNAVAILABLE": "unknown",
}
_AVAILABILITY = "http://hl7.org/fhir/3.0/StructureDefinition/extension-ImagingStudy.availability"
_NOT_AT_HAND = ("NEARLINE", "OFFLINE", "UNAVAILABLE")
GENDERS = {"M": "male", "F": "female", "O": "other"}

ACCESSION, ACCESSION_ISSUER = tag("AccessionNumber"), tag("IssuerOfAccessionNumberSequence")
UNIVERSAL_ID, LOCAL_ID = tag("UniversalEntityID"), tag("LocalNamespaceEntityID")
STUDY_DESCRIPTION, SERIES_DESCRIPTION = tag("StudyDescription"), tag("SeriesDescription")
SERIES_NUMBER, INSTANCE_NUMBER = tag("SeriesNumber"), tag("InstanceNumber")
BODY_PART, LATERALITY = tag("BodyPartExamined"), tag("Laterality")
REFERRER, PATIENT_NAME = tag("ReferringPhysicianName"), tag("PatientName")
BIRTH_DATE, SEX = tag("PatientBirthDate"), tag("PatientSex")


@dataclass(frozen=True, slots=True)
class Renderer:
    """Makes resources of one FHIR version. `base` is the gateway's URL; `zones` the nodes' IANA time zones."""

    is_r5: bool
    base: str
    issuers: Issuers
    patients: PatientIds
    zones: Mapping[str, str]

    def study_id(self, found: Found) -> str:
        """ImagingStudy.id: the UID, or an id that tells a clash's two studies apart."""
        return study_id(found, self.patients.id_of)

    def names(self, identifier: str, found: Found) -> bool:
        """Whether an ImagingStudy.id is this study's."""
        return names_study(identifier, found, self.patients.id_of)

    def started(self, found: Found) -> str | None:
        """ImagingStudy.started: with an offset, or a date only."""
        return started(found.attributes, self.zones.get(found.origin))

    def study(self, found: Found) -> Resource:
        """A search result: study level, with the series the node gave in the same answer, then tagged SUBSETTED."""
        resource = self._study(found)
        children = found.rows[0].children if len(found.rows) == 1 else ()
        if children:
            zone = self.zones.get(found.origin)
            resource["series"] = [self._series(child.series, child.attributes, zone) for child in children]
            resource["meta"] = {**resource.get("meta", {}), **_SUBSETTED}
        return resource

    def tree(self, tree: StudyTree) -> Resource:
        """A whole study: every series with every instance, counts as found; none where a holder did not tell all it has."""
        resource = self._study(tree.study)
        series = []
        for one, instances in tree.series:
            rendered = self._series(one.series, one.attributes, self.zones.get(one.origin))
            rendered["numberOfInstances"] = len(instances) or rendered.get("numberOfInstances", 0)
            if instances:
                rendered["instance"] = [_instance(instance) for instance in instances]
            series.append(rendered)
        if series:
            resource["series"] = series
            resource["numberOfSeries"] = len(series)
            resource["numberOfInstances"] = sum(one["numberOfInstances"] for one in series)
        if not tree.is_whole:
            for holder, name in [
                (resource, "numberOfSeries"),
                *((one, "numberOfInstances") for one in (resource, *series)),
            ]:
                holder.pop(name, None)
        return resource

    def _study(self, found: Found) -> Resource:
        attributes = found.attributes
        resource: Resource = {"resourceType": "ImagingStudy", "id": self.study_id(found)}
        if found.updated is not None:
            resource["meta"] = {"lastUpdated": instant(found.updated)}
        resource["identifier"] = list(self.identifiers(found))
        resource |= _availability(attributes)
        resource["status"] = status(attributes)
        modalities = texts(attributes, MODALITIES_IN_STUDY)
        if modalities:
            resource["modality"] = [self._modality(one) for one in modalities]
        resource["subject"] = self.subject(found)
        _put(resource, "started", self.started(found))
        _put(resource, "basedOn", [_order(identifier) for identifier in self._accessions(found)])
        referrer = display_name(attributes, REFERRER)
        if referrer:
            resource["referrer"] = {"display": referrer}
        resource["endpoint"] = [{"reference": f"Endpoint/{node}"} for node in found.holders]
        _put(resource, "numberOfSeries", _count(attributes, STUDY_SERIES_COUNT))
        _put(resource, "numberOfInstances", _count(attributes, STUDY_INSTANCE_COUNT))
        _put(resource, "description", text(attributes, STUDY_DESCRIPTION))
        return resource

    def identifiers(self, found: Found) -> Iterable[Resource]:
        """The StudyInstanceUID and, where there is one, the accession number with its issuer."""
        yield {"system": DICOM_UID, "value": f"urn:oid:{found.study}"}
        yield from self._accessions(found)

    def _accessions(self, found: Found) -> Iterable[Resource]:
        accession = text(found.attributes, ACCESSION)
        if accession:
            identifier: Resource = {"type": {"coding": [{"system": V2_0203, "code": "ACSN"}]}}
            for issuer in items(found.attributes, ACCESSION_ISSUER):
                name = text(issuer, UNIVERSAL_ID) or text(issuer, LOCAL_ID)
                identifier |= {"system": self.issuers.system(name)} if name else {}
            yield {**identifier, "value": accession}

    def subject(self, found: Found) -> Resource:
        """A reference with the business identifier, so that a reader without access to Patient still knows who it is."""
        if not found.patient.is_named:
            return {"type": "Patient", "display": "Patient without an identifier"}
        reference = f"Patient/{self.patients.id_of(found.patient)}"
        return {"reference": reference, "type": "Patient", "identifier": self._patient_identifier(found.patient)}

    def _patient_identifier(self, key: PatientKey) -> Resource:
        return {"system": self.issuers.system(key.issuer), "value": key.id}

    def _series(self, uid: str, attributes: Dataset, zone: str | None) -> Resource:
        series: Resource = {"uid": uid}
        _put(series, "number", _count(attributes, SERIES_NUMBER))
        modality = text(attributes, MODALITY)
        series["modality"] = self._modality(modality) if modality else {"extension": _ABSENT}
        _put(series, "description", text(attributes, SERIES_DESCRIPTION))
        _put(series, "numberOfInstances", _count(attributes, SERIES_INSTANCE_COUNT))
        body_part, side = text(attributes, BODY_PART), text(attributes, LATERALITY)
        if body_part:
            series["bodySite"] = self._body_site(body_part)
        if side in LATERALITIES.values():
            series["laterality"] = self._coded({"system": SCT, "code": concept_of(side, LATERALITIES)})
        _put(series, "started", series_started(attributes, zone))
        return series

    def _modality(self, code: str) -> Resource:
        return self._coded({"system": DCM, "code": code})

    def _coded(self, coding: Resource) -> Resource:
        """Coding in R4, CodeableConcept in R5."""
        return {"coding": [coding]} if self.is_r5 else coding

    def _body_site(self, term: str) -> Resource:
        """The SNOMED CT concept with the DICOM term as its display; a term we have no concept for is shown as it is."""
        concept = concept_of(term)
        coding: Resource = {"system": SCT, "code": concept, "display": term} if concept else {"display": term}
        if not self.is_r5:
            return coding
        return {"concept": {"coding": [coding], "text": term} if concept else {"text": term}}

    def patient(self, key: PatientKey, found: Sequence[Found]) -> Resource:
        """The Patient of this identifier, described by the origin of the first of its studies; every identifier that the
        studies' holders know, but none of an issuer that they do not agree about."""
        one = found[0]
        others = {other for study in found for other in study.known_as if other.is_named} - {key}
        issuers = Counter(other.issuer for other in (key, *others))
        resource: Resource = {"resourceType": "Patient", "id": self.patients.id_of(key)}
        shown = [key, *sorted(other for other in others if issuers[other.issuer] == 1)]
        resource["identifier"] = [self._patient_identifier(each) for each in shown]
        name = human_name(one.attributes)
        if name:
            resource["name"] = [name]
        _put(resource, "gender", GENDERS.get(text(one.attributes, SEX)))
        birth = parse_date(text(one.attributes, BIRTH_DATE))
        _put(resource, "birthDate", birth and birth.isoformat())
        return resource

    def endpoint(self, node: NodeState) -> Resource:
        """Where a node's instances are opened: through this gateway, at the node's own root. Its status is `error` while
        the node is not asked."""
        connection: Any = {
            "system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type",
            "code": "dicom-wado-rs",
        }
        payload = {"text": "DICOM WADO-RS"}
        resource: Resource = {"resourceType": "Endpoint", "id": node.id}
        resource["status"] = "active" if node.health.breaker == "closed" else "error"
        resource["connectionType"] = [{"coding": [connection]}] if self.is_r5 else connection
        resource["name"] = node.name
        resource["managingOrganization"] = {"reference": f"Organization/{node.id}"}
        resource |= {"payload": [{"type": [payload]}]} if self.is_r5 else {"payloadType": [payload]}
        resource["address"] = f"{self.base}/nodes/{node.id}/dicom-web"
        return resource

    def organization(self, node: NodeState) -> Resource:
        """Who runs a node."""
        resource: Resource = {"resourceType": "Organization", "id": node.id, "active": True}
        resource["name"] = node.organisation or node.name
        if node.country:
            address = {"country": node.country}
            resource |= {"contact": [{"address": address}]} if self.is_r5 else {"address": [address]}
        resource["endpoint"] = [{"reference": f"Endpoint/{node.id}"}]
        return resource


def status(attributes: Dataset) -> str:
    """ImagingStudy.status from Instance Availability (0008,0056)."""
    return _STATUS.get(text(attributes, INSTANCE_AVAILABILITY), "available")


def _order(identifier: Resource) -> Resource:
    """The order, known by its accession number alone."""
    return {"type": "ServiceRequest", "identifier": identifier}


def _availability(attributes: Dataset) -> Resource:
    """Where the study is when that is not at hand: ImagingStudy.availability of STU3, which later versions left out, as
    their extension for it (FHIR R4 2.1.5.1, extensions for converting between versions)."""
    found = text(attributes, INSTANCE_AVAILABILITY)
    return {"extension": [{"url": _AVAILABILITY, "valueCode": found}]} if found in _NOT_AT_HAND else {}


def _instance(found: Found) -> Resource:
    sop_class = text(found.attributes, SOP_CLASS_UID)
    instance: Resource = {"uid": found.instance}
    instance["sopClass"] = (
        {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{sop_class}", "display": uid_name(sop_class)}
        if sop_class
        else {"extension": _ABSENT}
    )
    _put(instance, "number", _count(found.attributes, INSTANCE_NUMBER))
    return instance


def human_name(attributes: Dataset) -> Resource | None:
    """HumanName from the alphabetic group of a PN, else the ideographic one (PS3.5 6.2.1.2)."""
    for value in values(attributes, PATIENT_NAME)[:1]:
        groups = value if isinstance(value, dict) else {"Alphabetic": str(value)}
        chosen = next((groups[key] for key in ("Alphabetic", "Ideographic", "Phonetic") if groups.get(key)), "")
        family, given, middle, prefix, suffix = [*(part.strip() for part in chosen.split("^")), "", "", "", "", ""][:5]
        name: Resource = {"use": "official", "text": " ".join(filter(None, (prefix, given, middle, family, suffix)))}
        _put(name, "family", family)
        for key, parts in (("given", [given, middle]), ("prefix", [prefix]), ("suffix", [suffix])):
            _put(name, key, [part for part in parts if part])
        return name if name["text"] else None
    return None


def display_name(attributes: Dataset, tag_: str) -> str:
    """A PN for people: 'given family'."""
    name = human_name({PATIENT_NAME: attributes[tag_]}) if tag_ in attributes else None
    return name["text"] if name else ""


def _count(attributes: Dataset, tag_: str) -> int | None:
    """A whole number that FHIR's unsignedInt can hold, or None where there is none."""
    number = whole_number(attributes, tag_)
    return number if number is not None and 0 <= number <= _MOST else None


def _put(resource: Resource, name: str, value: Any) -> None:
    if value not in (None, "", []):
        resource[name] = value
