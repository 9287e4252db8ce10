"""FHIR search on the simulator's side: the parameters of each version and what it means for a study to match one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from gateway.simulators._facts import DCM, DICOM_UID, Facts, Moment, Patient
from gateway.simulators._imagingstudy import URI, Shape

Identifier = tuple[str, str]
PREFIXES = ("eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap")
MOMENT = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(\.\d+)?)?(Z|[+-]\d\d:\d\d)?)?)?)?")


class BadValue(Exception):
    """A search value cannot be understood; the text is for the caller."""


@dataclass(frozen=True)
class Parameter:
    """One search parameter of a resource: its FHIR type, and whether a study (or patient) has a value."""

    kind: str
    fits: Callable[[Facts, str], bool]


@dataclass(frozen=True)
class PatientParameter:
    kind: str
    fits: Callable[[Patient, str], bool]


def token_fits(held: Iterable[Identifier], wanted: str) -> bool:
    """'system|code', '|code' (no system), 'system|' (any code of it) or 'code' (in any system)."""
    system, bar, code = wanted.rpartition("|")
    if bar and not code:
        return any(system == own for own, _ in held if own)
    return any(code == value and (not bar or system == own) for own, value in held)


def reference_fits(kind: str, held: Iterable[str], wanted: str) -> bool:
    """'id', 'Type/id' or an absolute address."""
    type_, id_ = [kind, *wanted.split("/")][-2:]
    return type_ == kind and id_ in held


def span(wanted: str, zone: tzinfo) -> tuple[str, datetime, datetime]:
    """(prefix, begin, end excluded) of a date parameter (FHIR R4 search, 'date'). Raises BadValue."""
    prefix, value = (wanted[:2], wanted[2:]) if wanted[:2] in PREFIXES else ("eq", wanted)
    found = MOMENT.fullmatch(value)
    if not found:
        raise BadValue("not a FHIR date")
    try:
        return prefix, *_span(found, zone)
    except ValueError:
        raise BadValue("not a FHIR date") from None


def _span(found: re.Match[str], zone: tzinfo) -> tuple[datetime, datetime]:
    year, month, day, hour, minute, second, fraction, offset = found.groups()
    if offset:
        zone = datetime.fromisoformat("2000-01-01T00:00:00" + offset.replace("Z", "+00:00")).tzinfo or UTC
    clock = (int(hour or 0), int(minute or 0), int(second or 0), round(float(fraction or 0) * 1_000_000))
    low = datetime(int(year), int(month or 1), int(day or 1), *clock, tzinfo=zone)
    if not month:
        return low, low.replace(year=low.year + 1)
    if not day:
        return low, (low + timedelta(days=32)).replace(day=1)
    unit = timedelta(milliseconds=1) if fraction else timedelta(seconds=1) if second else timedelta(minutes=1)
    return low, low + (unit if hour else timedelta(days=1))


def date_fits(moment: Moment | None, wanted: str, zone: tzinfo = UTC) -> bool:
    prefix, low, high = span(wanted, zone)
    if moment is None:
        return False
    inside = low <= moment.low and moment.high <= high
    return {
        "eq": inside,
        "ne": not inside,
        "gt": moment.high > high,
        "lt": moment.low < low,
        "ge": inside or moment.high > high,
        "le": inside or moment.low < low,
        "sa": moment.low >= high,
        "eb": moment.high <= low,
        "ap": moment.low < high and low < moment.high,
    }[prefix]


def string_fits(held: Iterable[str], wanted: str) -> bool:
    """Begins with, whatever the case (FHIR search, 'string')."""
    return any(value.casefold().startswith(wanted.casefold()) for value in held)


PATIENT = {
    "_id": PatientParameter("token", lambda who, value: who.id == value),
    "identifier": PatientParameter("token", lambda who, value: token_fits(who.identifiers, value)),
    "name": PatientParameter("string", lambda who, value: string_fits(who.names, value)),
    "family": PatientParameter("string", lambda who, value: string_fits(_component(who, 0), value)),
    "given": PatientParameter("string", lambda who, value: string_fits(_component(who, 1), value)),
    "birthdate": PatientParameter("date", lambda who, value: _born(who, value)),
}


def _component(who: Patient, position: int) -> list[str]:
    return [parts[position] for text in who.name.values() if len(parts := text.split("^")) > position]


def _born(who: Patient, wanted: str) -> bool:
    if not who.birth_date:
        return False
    day = datetime.fromisoformat(who.birth_date).replace(tzinfo=UTC)
    return date_fits(Moment(who.birth_date, day, day + timedelta(days=1)), wanted)


def _patient_reference(facts: Facts, value: str) -> bool:
    return reference_fits("Patient", [facts.patient.id], value)


def _based_on(facts: Facts, value: str) -> bool:
    return bool(facts.accession) and reference_fits("ServiceRequest", [facts.request_id], value)


def _study_identifiers(facts: Facts, shape: Shape) -> list[Identifier]:
    number = [facts.accession] if facts.accession and not shape.mii else []
    return [(DICOM_UID, f"urn:oid:{facts.study.uid}"), *number]


def _body_sites(facts: Facts) -> list[Identifier]:
    return [(site.get("system", ""), site["code"]) for site in facts.body_sites if "code" in site]


def _oids(uids: Iterable[str]) -> list[str]:
    return [f"urn:oid:{uid}" for uid in uids]


def parameters(shape: Shape) -> dict[str, Parameter]:
    """The search parameters of ImagingStudy in this version, those that follow a reference among them."""
    own = _common(shape) | (_stu3() if shape.version == "STU3" else _r4_and_later(shape))
    return own | {name: Parameter("token", fits) for name, fits in _following(shape).items()} | _chained(own)


def _common(shape: Shape) -> dict[str, Parameter]:
    body = "body-site" if shape.version == "R5" else "bodysite"
    pacs = ["pacs"] if shape.dicomweb_url else []
    return {
        "_id": Parameter("token", lambda facts, value: facts.id == value),
        "patient": Parameter("reference", _patient_reference),
        "started": Parameter("date", lambda facts, value: date_fits(facts.started, value, facts.zone)),
        "modality": Parameter("token", lambda facts, v: token_fits([(DCM, code) for code in facts.modalities], v)),
        "endpoint": Parameter("reference", lambda facts, value: reference_fits("Endpoint", pacs, value)),
        body: Parameter("token", lambda facts, value: token_fits(_body_sites(facts), value)),
    }


def _r4_and_later(shape: Shape) -> dict[str, Parameter]:
    based_on = "based-on" if shape.version == "R5" else "basedon"
    found = {
        "identifier": Parameter("token", lambda facts, v: token_fits(_study_identifiers(facts, shape), v)),
        "subject": Parameter("reference", _patient_reference),
        "status": Parameter("token", lambda facts, value: value.rpartition("|")[2] == "available"),
        "series": Parameter("token", lambda facts, v: token_fits([("", uid) for uid in facts.series_uids], v)),
        "instance": Parameter("token", lambda facts, v: token_fits([("", uid) for uid in facts.instance_uids], v)),
        "dicom-class": Parameter(
            "token", lambda facts, v: token_fits([(URI, oid) for oid in _oids(facts.sop_classes)], v)
        ),
    }
    if shape.mii:
        found["study-modality"] = _common(shape)["modality"]
        found["series-bodysite"] = _common(shape)["bodysite"]
    if shape.orders:
        found[based_on] = Parameter("reference", _based_on)
    return found


def _stu3() -> dict[str, Parameter]:
    return {
        "study": Parameter("uri", lambda facts, value: value == f"urn:oid:{facts.study.uid}"),
        "series": Parameter("uri", lambda facts, value: value in _oids(facts.series_uids)),
        "uid": Parameter("uri", lambda facts, value: value in _oids(facts.instance_uids)),
        "dicom-class": Parameter("uri", lambda facts, value: value in _oids(facts.sop_classes)),
        "accession": Parameter("token", lambda facts, v: token_fits([facts.accession] if facts.accession else [], v)),
    }


def _following(shape: Shape) -> dict[str, Callable[[Facts, str], bool]]:
    """The :identifier modifier: it looks at the reference's own identifier, which only some servers write."""

    def patient(facts: Facts, value: str) -> bool:
        return shape.mii and token_fits(facts.patient.identifiers, value)

    def request(facts: Facts, value: str) -> bool:
        return bool(facts.accession) and token_fits([facts.accession or ("", "")], value)

    if shape.version == "STU3":
        return {}
    found: dict[str, Callable[[Facts, str], bool]] = {"patient:identifier": patient, "subject:identifier": patient}
    if shape.orders:
        name = "based-on" if shape.version == "R5" else "basedon"
        return found | dict.fromkeys(
            (f"{name}:identifier", f"{name}.identifier", f"{name}:ServiceRequest.identifier"), request
        )
    return found


def _chained(own: dict[str, Parameter]) -> dict[str, Parameter]:
    """'patient.identifier', 'subject:Patient.name' and so on."""
    return {
        f"{reference}{kind}.{name}": Parameter(each.kind, _through_patient(each))
        for reference in ("patient", "subject")
        if reference in own
        for kind in ("", ":Patient")
        for name, each in PATIENT.items()
    }


def _through_patient(each: PatientParameter) -> Callable[[Facts, str], bool]:
    return lambda facts, value: each.fits(facts.patient, value)
