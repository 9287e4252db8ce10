"""What a FHIR server can search ImagingStudy by, read from its CapabilityStatement."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Version = Literal["STU3", "R4", "R4B", "R5"]

_VERSIONS: dict[str, Version] = {"3.0": "STU3", "4.0": "R4", "4.1": "R4B", "4.3": "R4B", "5.0": "R5"}


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says it can do, less what it turned out to refuse."""

    version: Version
    parameters: frozenset[str]
    patient_parameters: frozenset[str] | None  # None: it does not say
    includes: frozenset[str]
    refused: frozenset[str] = frozenset()
    others: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The search parameters of every resource type that it lists."""

    @property
    def patient(self) -> str:
        return "subject" if "subject" in self.parameters else "patient"

    @property
    def based_on(self) -> str:
        return "based-on" if self.version == "R5" else "basedon"

    def has(self, parameter: str) -> bool:
        """A chained or modified parameter stands on its first part, the end of a patient's chain on Patient."""
        if parameter in self.refused:
            return False
        base, _, last = re.sub("[:.]", " ", parameter).partition(" ")
        if base in ("patient", "subject") and "." in parameter and self.patient_parameters is not None:
            return base in self.parameters and last in self.patient_parameters
        return base in self.parameters


def server_of(statement: Any, version: Version) -> Server:
    """From a CapabilityStatement. A server that does not list its includes has those of its reference parameters."""
    resources = {str(one.get("type")): one for one in _resources(statement)}
    study = resources.get("ImagingStudy", {})
    parameters = _names(study)
    listed = list(map(str, _listed(study.get("searchInclude")))) or [f"ImagingStudy:{name}" for name in parameters]
    if "*" in listed or "ImagingStudy:*" in listed:
        listed = [*listed, *(f"ImagingStudy:{name}" for name in parameters)]
    patient = resources.get("Patient", {})
    return Server(
        version,
        frozenset(parameters),
        frozenset(_names(patient)) if patient.get("searchParam") else None,
        frozenset(one if one.startswith("ImagingStudy:") else f"ImagingStudy:{one}" for one in listed),
        others={kind: frozenset(_names(one)) for kind, one in resources.items()},
    )


def _resources(statement: Any) -> Iterable[dict[str, Any]]:
    for mode in _objects(statement.get("rest") if isinstance(statement, dict) else None):
        yield from _objects(mode.get("resource"))


def _names(resource: dict[str, Any]) -> list[str]:
    return [str(one["name"]) for one in _objects(resource.get("searchParam")) if "name" in one]


def _objects(held: Any) -> list[dict[str, Any]]:
    return [one for one in _listed(held) if isinstance(one, dict)]


def _listed(held: Any) -> list[Any]:
    return held if isinstance(held, list) else []


def version_of(statement: Any) -> Version | None:
    """The version a CapabilityStatement names ('4.0.1' -> 'R4'); None where it names none of ours."""
    named = statement.get("fhirVersion") if isinstance(statement, dict) else None
    return _VERSIONS.get(named[:3]) if isinstance(named, str) else None


def product_of(statement: Any) -> str:
    software = statement.get("software") if isinstance(statement, dict) else None
    words = [software.get("name"), software.get("version")] if isinstance(software, dict) else []
    return " ".join(str(word) for word in words if word)[:64]
