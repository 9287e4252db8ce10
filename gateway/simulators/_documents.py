"""Reports and orders on the FHIR simulator's side: a report per study, and what it means for either to match a search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gateway.simulators._directory import Json
from gateway.simulators._facts import Facts, Patient
from gateway.simulators._fhirsearch import PATIENT, reference_fits, token_fits
from gateway.simulators._imagingstudy import Shape, accession, filled, subject

LOINC = "http://loinc.org"


@dataclass(frozen=True)
class DocumentParameter:
    """`fits` says whether a resource has a value, with the server's patients by id."""

    kind: str
    fits: Callable[[Json, str, Mapping[str, Patient]], bool]


def diagnostic_report(facts: Facts, shape: Shape) -> Json:
    """A final report of each study, as a radiology department writes it."""
    category = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD"}]}
    study = {"reference": f"ImagingStudy/{facts.id}"}
    performer = {"reference": "Practitioner/reader", "display": "Dr. Reader"}
    moment = facts.started.text if facts.started else None
    return filled(
        resourceType="DiagnosticReport",
        id=report_id(facts),
        text={"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml">Report</div>'},
        identifier=[accession(facts)] if facts.accession else None,
        status="final",
        category=category if shape.version == "STU3" else [category],
        code={"coding": [{"system": LOINC, "code": "18748-4", "display": "Diagnostic imaging study"}]},
        subject=subject(facts.patient, shape),
        effectiveDateTime=moment,
        issued=moment if moment and "T" in moment else None,
        performer=[{"actor": performer}] if shape.version == "STU3" else [performer],
        conclusion=f"Nothing remarkable: {facts.study.text('00081030') or 'imaging'}.",
    ) | {"study" if shape.version == "R5" else "imagingStudy": [study]}


def report_id(facts: Facts) -> str:
    return f"report-{facts.id}"[:64]


def _identifiers(held: Iterable[Json]) -> list[tuple[str, str]]:
    return [(one.get("system", ""), one.get("value", "")) for one in held]


def _reference(resource: Json, value: str, people: Mapping[str, Patient]) -> bool:
    reference = resource.get("subject", {}).get("reference", "")
    return reference_fits("Patient", [reference.rpartition("/")[2]], value)


def _chained(resource: Json, value: str, people: Mapping[str, Patient]) -> bool:
    who = people.get(resource.get("subject", {}).get("reference", "").rpartition("/")[2])
    return who is not None and PATIENT["identifier"].fits(who, value)


def _within(resource: Json, value: str, people: Mapping[str, Patient]) -> bool:
    return token_fits(_identifiers([resource.get("subject", {}).get("identifier", {})]), value)


def _study(resource: Json, value: str, people: Mapping[str, Patient]) -> bool:
    held = [one.get("reference", "").rpartition("/")[2] for one in resource.get("study", [])]
    return reference_fits("ImagingStudy", held, value)


def parameters(kind: str, shape: Shape) -> dict[str, DocumentParameter]:
    """Those that every version has; R5 has the study of a report as well."""
    found = {
        "_id": DocumentParameter("token", lambda one, value, people: one["id"] == value),
        "identifier": DocumentParameter(
            "token", lambda one, value, people: token_fits(_identifiers(one.get("identifier", [])), value)
        ),
        "status": DocumentParameter("token", lambda one, value, people: one.get("status") == value),
        "patient": DocumentParameter("reference", _reference),
        "subject": DocumentParameter("reference", _reference),
    }
    if kind == "DiagnosticReport" and shape.version == "R5":
        found["study"] = DocumentParameter("reference", _study)
    return found


def modified(shape: Shape) -> dict[str, DocumentParameter]:
    """Through the patient, and the identifier within the reference."""
    chained, within = DocumentParameter("token", _chained), DocumentParameter("token", _within)
    found = {"patient.identifier": chained, "subject.identifier": chained}
    return found if shape.version == "STU3" else found | {"patient:identifier": within, "subject:identifier": within}
