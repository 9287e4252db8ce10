"""How much of a resource is shown: `_summary` and `_elements`, in searches and reads (FHIR R4 search 3.1.1.5.8, 3.1.1.5.9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.edge.fhir.searchgrammar import plain, single
from gateway.edge.querystring import one_of
from gateway.errors import InvalidQuery
from gateway.wire.fhirxml import element_names

SUMMARIES = ("true", "text", "data", "count", "false")
SUBSETTED = {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}
_ALWAYS = ("resourceType", "id", "meta", "implicitRules")
# The summary elements that the specification marks, as far as they are served.
_SUMMARY = {
    "ImagingStudy": frozenset(
        (
            "identifier", "status", "modality", "subject", "encounter", "started", "basedOn", "referrer", "endpoint",
            "numberOfSeries", "numberOfInstances", "procedureReference", "procedureCode", "procedure", "location", "reasonCode",
            "reason", "note", "description", "series",
        )
    ),
    "Patient": frozenset(("identifier", "active", "name", "telecom", "gender", "birthDate", "address")),
    "Endpoint": frozenset(("identifier", "status", "connectionType", "name", "payloadType", "payload", "address")),
    "Organization": frozenset(("identifier", "active", "type", "name")),
    "DiagnosticReport": frozenset(
        (
            "identifier", "status", "category", "code", "subject", "encounter", "effectiveDateTime", "effectivePeriod", "issued",
            "performer", "resultsInterpreter", "media",
        )
    ),
    "ServiceRequest": frozenset(
        (
            "identifier", "basedOn", "requisition", "status", "intent", "category", "priority", "doNotPerform", "code", "subject",
            "occurrenceDateTime", "occurrencePeriod", "authoredOn", "requester", "performer", "reasonCode", "reasonReference",
            "reason", "bodySite",
        )
    ),
}  # fmt: skip
# What a resource has to have to be one (FHIR R4 and R5: cardinality 1.., Organization org-1).
_MANDATORY = {
    "ImagingStudy": frozenset(("status", "subject")),
    "Patient": frozenset[str](),
    "Endpoint": frozenset(("status", "connectionType", "payloadType", "address")),
    "Organization": frozenset(("name",)),
    "DiagnosticReport": frozenset(("status", "code", "subject")),
    "ServiceRequest": frozenset(("status", "intent", "subject", "doNotPerform")),
}


@dataclass(slots=True)
class Shown:
    """What a request wants to see: a `summary`, or `elements` by name (none: all)."""

    summary: str = "false"
    elements: frozenset[str] = frozenset()

    def needs_total(self, total: str) -> bool:
        """Whether how many there are is to be said, `total` being what _total says: a count alone is nothing without it."""
        return self.summary == "count" or total != "none"

    def check(self) -> None:
        """Raises InvalidQuery when both are asked for: they contradict each other."""
        if self.elements and self.summary != "false":
            raise InvalidQuery("give _summary or _elements, not both", parameter="_elements")

    def of(self, resource: dict[str, Any]) -> dict[str, Any]:
        """The resource as it is to be shown; tagged SUBSETTED when anything may be missing."""
        kind = resource["resourceType"]
        if self.elements:
            kept = self.elements | _MANDATORY[kind]
        elif self.summary == "true":
            kept = _SUMMARY[kind]
        elif self.summary == "text":  # the mandatory elements only: there is no narrative
            kept = _MANDATORY[kind]
        else:
            return resource
        less = {name: value for name, value in resource.items() if name in kept or name in _ALWAYS}
        if self.summary == "true" and "series" in less:
            less["series"] = [{name: one[name] for name in one if name != "instance"} for one in less["series"]]
        return tagged(less)


def tagged(resource: dict[str, Any]) -> dict[str, Any]:
    """The resource, said to be incomplete."""
    meta = {**resource.get("meta", {}), "tag": [SUBSETTED]}
    ordered = {"resourceType": resource["resourceType"]} | ({"id": resource["id"]} if "id" in resource else {})
    return {**ordered, "meta": meta, **{k: v for k, v in resource.items() if k not in (*ordered, "meta")}}


def elements(values: Sequence[str], kind: str, *, is_r5: bool) -> frozenset[str]:
    """The names of `_elements`; resourceType, which JSON always has and fhirpy asks for, is none. Raises InvalidQuery for one
    that the resource has not."""
    names = frozenset(plain(value).removeprefix(f"{kind}.") for value in values) - {"resourceType"}
    if not names <= element_names(kind, is_r5=is_r5):  # what was written instead may be anything, and is not repeated
        raise InvalidQuery(f"_elements takes names of elements of {kind}", parameter="_elements")
    return names


def of_query(query: Mapping[str, str], kind: str, *, is_r5: bool) -> Shown:
    """What a read's query string wants to see. Raises InvalidQuery."""
    shown = Shown()
    if query.get("_summary"):
        summaries = [each for each in SUMMARIES if each != "count"]
        shown.summary = one_of(single([query["_summary"]], "_summary"), summaries, "_summary")
    if query.get("_elements"):
        shown.elements = elements(query["_elements"].split(","), kind, is_r5=is_r5)
    shown.check()
    return shown
