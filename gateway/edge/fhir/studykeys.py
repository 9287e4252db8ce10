"""Search parameters of ImagingStudy, R4 and R5 in one table: what each asks of the nodes, or why it is not served."""

from __future__ import annotations

from functools import partial

from gateway.edge.fhir import patientkeys
from gateway.edge.fhir.criteria import Criteria, Key, Parser, always, any_of, refuses
from gateway.edge.fhir.datekeys import add_dates
from gateway.edge.fhir.identifiers import DICOM_UID, uid_of_id
from gateway.edge.fhir.imagingstudy import ACCESSION, DCM, REFERRER, SCT, V2_0203, Renderer, display_name, status
from gateway.edge.fhir.periods import Period, compare, instant
from gateway.edge.fhir.searchgrammar import fields, plain, reference, token
from gateway.errors import InvalidQuery
from gateway.model.anatomy import BODY_PARTS
from gateway.model.answer import Found
from gateway.model.dataset import text
from gateway.model.query import Match, Operator, check_uid
from gateway.model.vocabulary import (
    INSTANCE_UID,
    MODALITIES_IN_STUDY,
    SERIES_UID,
    SOP_CLASS_UID,
    STUDY_DATE,
    STUDY_UID,
    tag,
)

BODY_PART = tag("BodyPartExamined")
LAST_UPDATED = "_lastUpdated"
STATUSES = ("registered", "available", "cancelled", "entered-in-error", "unknown")
_STATUS_SYSTEM = "http://hl7.org/fhir/imagingstudy-status"
_URI_SYSTEM = "urn:ietf:rfc:3986"
# The types that identifiers of a study may have: what `identifier:of-type` can ask for.
_ACCESSION_TYPE, _UID_TYPE = (V2_0203, "ACSN"), (DCM, "110180")


def _uid(value: str, parameter: str) -> str:
    return check_uid(value.removeprefix("urn:oid:"), parameter)


async def _identifier(criteria: Criteria, values: list[str], modifier: str) -> None:
    """The study UID (urn:dicom:uid), or an accession number with or without its issuer's system."""
    if modifier == "of-type":
        _add_typed_identifiers(criteria, values)
        return
    tokens = [token(value) for value in values]
    uids = [_uid(value, "identifier") for system, value in tokens if _is_study_uid(system, value)]
    others = [(system, value) for system, value in tokens if not _is_study_uid(system, value)]
    _add_identifiers(criteria, uids, others)


def _is_study_uid(system: str | None, value: str) -> bool:
    return system == DICOM_UID or (system is None and value.startswith("urn:oid:"))


def _add_identifiers(criteria: Criteria, uids: list[str], others: list[tuple[str | None, str]]) -> None:
    if uids and others:
        raise InvalidQuery("give study UIDs and other identifiers in separate searches", parameter="identifier")
    if uids:
        criteria.matches.append(any_of((STUDY_UID,), uids))
        return
    if any(not value for _, value in others):
        raise InvalidQuery("an identifier needs a value, not a system alone", parameter="identifier")
    criteria.matches.append(any_of((ACCESSION,), [value for _, value in others]))
    if any(system is not None for system, _ in others):
        wanted = set(others)
        criteria.conditions.append(lambda found: _has_identifier(criteria.renderer, found, wanted))


def _add_typed_identifiers(criteria: Criteria, values: list[str]) -> None:
    """`:of-type`: type system, type code and value, all three (FHIR R4 search 3.1.1.4.10)."""
    typed = [fields(value) for value in values]
    kinds = {tuple(one[:2]) for one in typed}
    if any(len(one) != 3 for one in typed) or not kinds <= {_ACCESSION_TYPE, _UID_TYPE}:
        offered = " or ".join("|".join((*kind, "<value>")) for kind in (_ACCESSION_TYPE, _UID_TYPE))
        raise InvalidQuery(f"identifier:of-type takes {offered}", parameter="identifier:of-type")
    uids = [_uid(value, "identifier:of-type") for system, _, value in typed if system == DCM]
    _add_identifiers(criteria, uids, [(None, value) for system, _, value in typed if system != DCM])


def _has_identifier(renderer: Renderer, found: Found, wanted: set[tuple[str | None, str]]) -> bool:
    """An issuer is known by each of its names, whichever the study has."""
    same = renderer.issuers.are_same
    return any(
        value == held["value"] and (system is None or same(system, held.get("system", "")))
        for held in renderer.identifiers(found)
        for system, value in wanted
    )


async def _order(criteria: Criteria, values: list[str], modifier: str, parameter: str) -> None:
    """An order by its accession number, which is its identifier here (HL7 Europe imaging: basedOn.identifier)."""
    tokens = [token(value) for value in values]
    if any(_is_study_uid(system, value) for system, value in tokens):
        raise InvalidQuery("an order has an accession number, not a study UID", parameter=f"{parameter}:identifier")
    _add_identifiers(criteria, [], tokens)


async def _started(criteria: Criteria, values: list[str], modifier: str) -> None:
    add_dates(criteria, values, "started", STUDY_DATE, criteria.renderer.started)


async def _last_updated(criteria: Criteria, values: list[str], modifier: str) -> None:
    """By when the gateway first saw the study, or saw it change; a time without an offset is UTC."""
    periods = [Period.parse(plain(value), "_lastUpdated") for value in values]
    criteria.updated.append(lambda moment: any(compare(instant(moment), period) for period in periods))


async def _modality(criteria: Criteria, values: list[str], modifier: str) -> None:
    criteria.matches.append(any_of((MODALITIES_IN_STUDY,), _codes(values, "modality", (DCM,))))


def _codes(values: list[str], parameter: str, systems: tuple[str, ...]) -> list[str]:
    codes = []
    for value in values:
        system, code = token(value)
        if system is not None and system not in systems:
            raise InvalidQuery(f"{parameter} is coded in {' or '.join(systems)}", parameter=parameter)
        if not code:
            raise InvalidQuery(f"{parameter} needs a code", parameter=parameter)
        codes.append(code)
    return codes


async def _body_site(criteria: Criteria, values: list[str], modifier: str, parameter: str) -> None:
    """A SNOMED CT concept or a DICOM Body Part Examined term."""
    terms = [BODY_PARTS.get(code, code) for code in _codes(values, parameter, (SCT, ""))]
    if any(term.isdecimal() for term in terms):
        raise InvalidQuery("a SNOMED CT concept without a DICOM body part here", parameter=parameter)
    criteria.matches.append(any_of((BODY_PART,), terms))


async def _status(criteria: Criteria, values: list[str], modifier: str) -> None:
    wanted = set(_codes(values, "status", (_STATUS_SYSTEM, "")))
    if not wanted <= set(STATUSES):
        raise InvalidQuery(f"status is one of {', '.join(STATUSES)}", parameter="status")
    criteria.conditions.append(lambda found: status(found.attributes) in wanted)


def _uid_parser(tag_: str, parameter: str) -> Parser:
    async def parse_uids(criteria: Criteria, values: list[str], modifier: str) -> None:
        bare = [plain(value).removeprefix(f"{_URI_SYSTEM}|").removeprefix("|") for value in values]
        bare = [value.removeprefix(f"{DICOM_UID}|") for value in bare]
        criteria.matches.append(any_of((tag_,), [_uid(value, parameter) for value in bare]))

    return parse_uids


async def _endpoint(criteria: Criteria, values: list[str], modifier: str) -> None:
    wanted = {reference(value, "Endpoint", criteria.renderer.base, "endpoint") for value in values}
    criteria.conditions.append(lambda found: bool(wanted & set(found.holders)))


async def _id(criteria: Criteria, values: list[str], modifier: str) -> None:
    """An id that no study can have finds nothing, as one that none has."""
    wanted = {value: uid for value in map(plain, values) if (uid := _uid_or_none(value))}
    if not wanted:
        criteria.impossible = True
        return
    criteria.matches.append(any_of((STUDY_UID,), list(wanted.values())))
    criteria.conditions.append(lambda found: any(criteria.renderer.names(one, found) for one in wanted))


def _uid_or_none(identifier: str) -> str | None:
    try:
        return uid_of_id(identifier)
    except InvalidQuery:
        return None


_OF_TYPE = frozenset({"of-type"})
_PATIENT = "Patient/<id>; chained: " + ", ".join(f"patient.{name}" for name in patientkeys.KEYS)
_UID_TEXT = "urn:oid:<UID>, or the bare UID"


def _body_site_key(name: str) -> Key:
    return Key(
        "token",
        partial(_body_site, parameter=name),
        negatable=True,
        present=Match((BODY_PART,), Operator.WILDCARD, ("?*",)),
        documentation="a SNOMED CT concept or a DICOM Body Part Examined term",
    )


def _order_key(name: str) -> Key:
    by_number = f"{name}:identifier"
    return Key(
        "reference",
        refuses(name, f"an order is known by its accession number: {name} is served as {by_number}"),
        present=lambda renderer, found: bool(text(found.attributes, ACCESSION)),
        documentation=f"by its accession number only: {by_number}=<number>, with or without its issuer's system",
    )


_REFERRER = Key(
    "reference",
    refuses("referrer", "a referrer is known by name only; referrer:missing is served"),
    present=lambda renderer, found: bool(display_name(found.attributes, REFERRER)),
    documentation="known by name only, so that nothing but :missing can be asked",
)

KEYS: dict[str, Key] = {
    "_id": Key("token", _id),
    "identifier": Key(
        "token",
        _identifier,
        _OF_TYPE,
        negatable=True,
        present=always,
        documentation="urn:dicom:uid|urn:oid:<StudyInstanceUID>, or an accession number with or without its issuer's system",
    ),
    "patient": Key(
        "reference",
        partial(patientkeys.references, parameter="patient"),
        present=always,
        target="Patient",
        documentation=_PATIENT,
    ),
    "subject": Key(
        "reference",
        partial(patientkeys.references, parameter="subject"),
        present=always,
        target="Patient",
        documentation=_PATIENT.replace("patient", "subject"),
    ),
    "started": Key(
        "date",
        _started,
        present=lambda renderer, found: renderer.started(found) is not None,
        documentation="prefixes eq ne gt lt ge le sa eb ap; compared with the study's own offset",
    ),
    "modality": Key("token", _modality, negatable=True, present=always, documentation="a DICOM modality of any series"),
    "bodysite": _body_site_key("bodysite"),
    "body-site": _body_site_key("body-site"),
    "status": Key("token", _status, negatable=True, present=always),
    "series": Key("token", _uid_parser(SERIES_UID, "series"), negatable=True, present=always, documentation=_UID_TEXT),
    "instance": Key(
        "token", _uid_parser(INSTANCE_UID, "instance"), negatable=True, present=always, documentation=_UID_TEXT
    ),
    "dicom-class": Key(
        "token", _uid_parser(SOP_CLASS_UID, "dicom-class"), negatable=True, present=always, documentation=_UID_TEXT
    ),
    "endpoint": Key("reference", _endpoint, present=always, target="Endpoint", documentation="Endpoint/<node id>"),
    LAST_UPDATED: Key(
        "date",
        _last_updated,
        documentation="prefixes eq ne gt lt ge le sa eb ap; compared with the moment when this gateway first saw the study "
        "through this caller's view, or saw it change (meta.lastUpdated), not with anything the hospital says. Every node is "
        "asked anew. To keep a copy: begin with gt1970, go on with gt and the meta.lastUpdated of the first page of the "
        "last complete answer; a study may come twice, and what is deleted is not told",
    ),
    "basedon": _order_key("basedon"),
    "based-on": _order_key("based-on"),
    "referrer": _REFERRER,
}
"""By name, both spellings of what R5 renamed."""

CHAINED: dict[str, Key] = {
    **{f"{name}.{chained}": key for name in ("patient", "subject") for chained, key in patientkeys.KEYS.items()},
    "basedon.identifier": Key("token", partial(_order, parameter="basedon")),
    "based-on.identifier": Key("token", partial(_order, parameter="based-on")),
}
"""Parameters of what a study refers to; <name>:identifier is <name>.identifier as well."""

_NOT_ASKED = "the nodes are not asked for it, so that it could not be answered truthfully"
REFUSED = {
    "encounter": _NOT_ASKED,
    "reason": _NOT_ASKED,
    "performer": _NOT_ASKED,
    "interpreter": _NOT_ASKED,
    "body-structure": "no node gives BodyStructure resources; bodysite searches the body part itself",
    "_revinclude": "reports are found by DiagnosticReport?study=ImagingStudy/<id>",
}
"""Parameters that FHIR has and that are not served, each with the reason."""

SEARCHES_ONLY = {LAST_UPDATED: "only a search for studies goes by it"}
"""As `REFUSED`, for whoever asks by the parameters of a search in another way."""
UNRECORDED = {
    LAST_UPDATED: "when a study was first seen is recorded in a Redis of the gateway's own (GATEWAY_REDIS_URL)"
}
"""As `REFUSED`, where there is no such record."""

BELOW = {SERIES_UID: "series", INSTANCE_UID: "instance", SOP_CLASS_UID: "dicom-class", BODY_PART: "bodysite"}
"""The parameter that asks for an attribute below STUDY."""
