"""Who a report or order is about, as its server tells: nobody, where it does not say or contradicts itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gateway.adapters.fhir.bundle import References, contained, references_to
from gateway.wire.fhirjson import FhirRecord, Resource

OF_STUDIES = ("imagingStudy", "study")
_OF_PATIENTS = ("subject", "patient")
_TYPED = re.compile(r"(?:.*/)?([A-Z][A-Za-z]+)/[^/]+(?:/_history/[^/]+)?")


@dataclass(frozen=True, slots=True)
class _Claim:
    """Whom a reference means: by its `address`, '' for none of its own, and by the identifiers there and in it."""

    address: str
    identifiers: tuple[Resource, ...]

    def may_be(self, other: _Claim) -> bool:
        """A server may know somebody under two addresses: then one identifier has to be the same."""
        if self.address and self.address == other.address:
            return True
        if self.identifiers and other.identifiers:
            return any(_is_same(one, another) for one in self.identifiers for another in other.identifiers)
        return not (self.address and other.address)


class Bearers:
    """Reads from what is `known` of the server by now."""

    def __init__(self, known: References) -> None:
        self._known = known

    def bearer(self, resource: Resource) -> FhirRecord:
        """A record with the reference to the patient where a study has it, for the mapping to read."""
        inside = [one for one in objects(resource.get("contained")) if one.get("resourceType") == "Patient"]
        subject = resource.get("subject")
        if not isinstance(subject, dict) or not self._is_certain(resource, subject):
            subject = None
        record = {"resourceType": "ImagingStudy", "subject": subject, "patient": subject, "contained": inside}
        return FhirRecord({name: value for name, value in record.items() if value}, self._patient)

    def studies(self, resource: Resource) -> Iterator[tuple[str, Resource]]:
        """The studies that it refers to, as far as they are known, by the reference."""
        for element in OF_STUDIES:
            for reference in references_to(resource, element):
                inside = reference.startswith("#")
                study = contained(resource, reference) if inside else self._known.resolve(reference)
                if study and study.get("resourceType") == "ImagingStudy":
                    yield reference, study

    def patients_of_studies(self, resource: Resource) -> Iterator[str]:
        """The references of its studies to their patients, where they are not its own."""
        own = {self._known.address(reference) for reference in references_to(resource, "subject")}
        for _, study in self.studies(resource):
            for element in _OF_PATIENTS:
                for reference in references_to(study, element):
                    if not reference.startswith("#") and self._known.address(reference) not in own:
                        yield reference

    def _patient(self, reference: str) -> Resource | None:
        return _as_patient(self._known.resolve(reference))

    def _is_certain(self, resource: Resource, subject: Resource) -> bool:
        """Not where the reference is to something else than a Patient or leads nowhere, where its identifier is not that of the
        Patient it names, and where a study that it refers to is of somebody else."""
        reference, own = subject.get("reference"), subject.get("identifier")
        typed = _TYPED.fullmatch(reference) if isinstance(reference, str) else None
        if str(subject.get("type") or "Patient").rpartition("/")[2] != "Patient" or (typed and typed[1] != "Patient"):
            return False
        if isinstance(reference, str):
            patient = self._meant(resource, reference)
            if patient is None and not typed:
                return False
            held = identifiers_of(patient)
            if held and isinstance(own, dict) and own.get("value") and not any(_is_same(one, own) for one in held):
                return False
        claim = self._claim(resource, subject)
        return all(claim.may_be(other) for other in self._claims_of_studies(resource))

    def _claims_of_studies(self, resource: Resource) -> Iterator[_Claim]:
        for _, study in self.studies(resource):
            for element in _OF_PATIENTS:
                yield from (self._claim(study, one) for one in objects(study.get(element)))

    def _claim(self, holder: Resource, subject: Resource) -> _Claim:
        reference = subject.get("reference")
        reference = reference if isinstance(reference, str) else ""
        patient = self._meant(holder, reference) if reference else None
        own = [one for one in objects(subject.get("identifier")) if one.get("value")]
        address = "" if reference.startswith("#") or not reference else self._known.address(reference)
        return _Claim(address, (*identifiers_of(patient), *own))

    def _meant(self, holder: Resource, reference: str) -> Resource | None:
        return _as_patient(contained(holder, reference)) if reference.startswith("#") else self._patient(reference)


def identifiers_of(patient: Resource | None) -> list[Resource]:
    """Those that have a value."""
    return [one for one in objects((patient or {}).get("identifier")) if one.get("value")]


def objects(held: Any) -> list[Resource]:
    """The objects at an element, one or a list."""
    return [one for one in (held if isinstance(held, list) else [held]) if isinstance(one, dict)]


def _as_patient(resource: Resource | None) -> Resource | None:
    return resource if resource and resource.get("resourceType") == "Patient" else None


def _is_same(one: Resource, other: Resource) -> bool:
    """Identifiers of one value, and of one system where both have one."""
    systems = {str(each["system"]) for each in (one, other) if each.get("system")}
    return bool(one["value"] == other["value"] and len(systems) < 2)
