"""ImagingStudy search parameters as a Query for the nodes plus conditions checked here (FHIR R4/R5 search, ImagingStudy)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import date

from gateway.edge import negotiation
from gateway.edge.identifiers import DICOM_UID, uid_of_id
from gateway.edge.imagingstudy import ACCESSION, DCM, SCT, Renderer, status
from gateway.edge.periods import Period, compare
from gateway.errors import InvalidQuery
from gateway.federation.page import Sort
from gateway.model.anatomy import BODY_PARTS
from gateway.model.answer import Found
from gateway.model.matching import matches
from gateway.model.moments import da
from gateway.model.patient import PatientKey
from gateway.model.query import Match, Operator, Query, check_uid
from gateway.model.vocabulary import (
    INSTANCE_UID,
    ISSUER,
    MODALITIES_IN_STUDY,
    PATIENT_ID,
    SERIES_UID,
    SOP_CLASS_UID,
    STUDY_DATE,
    STUDY_UID,
    Level,
    tag,
)

Condition = Callable[[Found], bool]
BODY_PART = tag("BodyPartExamined")
_STATUSES = ("registered", "available", "cancelled", "entered-in-error", "unknown")
_INCLUDES = {
    "ImagingStudy:endpoint": "endpoint",
    "ImagingStudy:patient": "patient",
    "ImagingStudy:subject": "patient",
}
_RESULT_PARAMETERS = ("_count", "_sort", "_summary", "_cursor", "_total", "_totalMethod")
_ONE_LEVEL_DOWN = {SERIES_UID: "series", INSTANCE_UID: "instance", SOP_CLASS_UID: "dicom-class", BODY_PART: "bodysite"}
TOTALS = ("none", "estimate", "accurate")
_TOTAL_METHODS = {"count": "accurate", "countEstimate": "estimate"}
SUMMARIES = ("true", "text", "data", "count", "false")


@dataclass(slots=True)
class StudySearch:
    """One parsed search. `conditions` are ANDed with the matches; `used` are the pairs that the self link repeats."""

    renderer: Renderer
    matches: list[Match] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)
    used: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    includes: set[str] = field(default_factory=set)
    sort: Sort = Sort.NEWEST
    count: int | None = None
    summary: str = "false"
    cursor: str = ""
    total: str = ""
    impossible: bool = False
    unknown: list[str] = field(default_factory=list)

    @property
    def query(self) -> Query:
        """What the nodes are asked: one Match per attribute; a second on the same one is checked here."""
        kept: dict[tuple[str, ...], Match] = {}
        for match in self.matches:
            kept.setdefault(match.path, match)
        return Query(Level.STUDY, tuple(kept.values()))

    def accepts(self, found: Found) -> bool:
        """Whether a result answers every condition that the nodes were not, or could not be, asked."""
        return all(condition(found) for condition in self.conditions)


Parser = Callable[[StudySearch, list[str]], Awaitable[None]]


async def parse(pairs: Sequence[tuple[str, str]], renderer: Renderer, *, lenient: bool) -> StudySearch:
    """A search from its parameters; repetition is AND, comma is OR. Raises InvalidQuery naming the parameter.

    An unknown parameter is refused, or with `lenient` left out and listed in `ignored`.
    """
    search = StudySearch(renderer)
    for name, raw in pairs:
        parser = PARAMETERS.get(name)
        if name in _RESULT_PARAMETERS and any(used == name for used, _ in search.used):
            raise InvalidQuery(f"{name} is given twice", parameter=name)
        if parser is None:
            if not lenient:
                raise InvalidQuery(
                    f"'{name}' is not a supported search parameter of ImagingStudy; /fhir/metadata lists them",
                    parameter=name,
                )
            search.ignored.append(name)
            continue
        if raw == "":
            continue
        values = split_or(raw)
        if not values:
            raise InvalidQuery(f"{name} has commas and no value", parameter=name)
        await parser(search, values)
        search.used.append((name, raw))
    search.used = [(name, raw) for name, raw in search.used if name != "_cursor"]
    _match_repeated_here(search)
    return search


def split_or(raw: str) -> list[str]:
    """The alternatives of a comma list; a backslash escapes (FHIR R4 search 3.1.1.4.0.4)."""
    return [re.sub(r"\\([,$|\\])", r"\1", piece) for piece in re.split(r"(?<!\\),", raw) if piece]


def _match_repeated_here(search: StudySearch) -> None:
    """A second key on one attribute cannot be in one Query: it is asked of the rows found."""
    first: set[tuple[str, ...]] = set()
    for match in search.matches:
        if match.path in first:
            name = _ONE_LEVEL_DOWN.get(match.path[0])
            if name:
                raise InvalidQuery(f"{name} may be given once; alternatives go with a comma", parameter=name)
            search.conditions.append(lambda found, match=match: matches(match, found.attributes) is True)  # type: ignore[misc]
        first.add(match.path)


def _any_of(path: tuple[str, ...], texts: Sequence[str]) -> Match:
    unique = tuple(dict.fromkeys(texts))
    return Match(path, Operator.LIST if len(unique) > 1 else Operator.EXACT, unique)


def _token(raw: str) -> tuple[str | None, str]:
    """(system, value) of a token; system None when there is no '|', '' for '|value'."""
    system, bar, value = raw.partition("|")
    return (system, value) if bar else (None, raw)


def _uid(raw: str, parameter: str) -> str:
    return check_uid(raw.removeprefix(f"{DICOM_UID}|").removeprefix("urn:oid:"), parameter)


async def _identifier(search: StudySearch, values: list[str]) -> None:
    """The study UID (urn:dicom:uid), or an accession number with or without its issuer's system."""
    uids = [_uid(value, "identifier") for value in values if _is_study_uid(value)]
    others = [_token(value) for value in values if not _is_study_uid(value)]
    if uids and others:
        raise InvalidQuery("give study UIDs and other identifiers in separate searches", parameter="identifier")
    if uids:
        search.matches.append(_any_of((STUDY_UID,), uids))
        return
    if any(not value for _, value in others):
        raise InvalidQuery("an identifier needs a value, not a system alone", parameter="identifier")
    search.matches.append(_any_of((ACCESSION,), [value for _, value in others]))
    if any(system is not None for system, _ in others):
        wanted = set(others)
        search.conditions.append(lambda found: _has_identifier(search.renderer, found, wanted))


def _is_study_uid(value: str) -> bool:
    system, bare = _token(value)
    return system == DICOM_UID or (system is None and bare.startswith("urn:oid:"))


def _has_identifier(renderer: Renderer, found: Found, wanted: set[tuple[str | None, str]]) -> bool:
    for identifier in renderer.identifiers(found):
        pairs = {(identifier.get("system", ""), identifier["value"]), (None, identifier["value"])}
        if pairs & wanted:
            return True
    return False


def _patient_parser(parameter: str) -> Parser:
    """Patient ids of ours: resolved to (issuer, id); one that was never given out finds nothing."""

    async def parse_references(search: StudySearch, values: list[str]) -> None:
        keys = [await _patient_of(search, value, parameter) for value in values]
        if None in keys:
            search.unknown.append(
                f"{parameter}: this Patient id was not given out here, or not kept; search by patient.identifier"
            )
        _add_patients(search, [key for key in keys if key])

    return parse_references


async def _patient_of(search: StudySearch, reference: str, parameter: str) -> PatientKey | None:
    type_, _, identifier = reference.rpartition("/")
    roots = ("", "/r4", "/r5")
    if type_ not in ("", "Patient", *(f"{search.renderer.base}/fhir{root}/Patient" for root in roots)):
        raise InvalidQuery("the subject of an ImagingStudy here is a Patient of this server", parameter=parameter)
    return await search.renderer.patients.key_of(identifier)


def _add_patients(search: StudySearch, keys: list[PatientKey]) -> None:
    if not keys:
        search.impossible = True
        return
    search.matches.append(_any_of((PATIENT_ID,), [key.id for key in keys]))
    search.matches.append(_any_of((ISSUER,), [key.issuer for key in keys]))
    wanted = frozenset(keys)
    search.conditions.append(lambda found: bool(found.known_as & wanted))


async def _patient_identifier(search: StudySearch, values: list[str]) -> None:
    """system|value is one person; a bare value is refused by the federation when two issuers use it."""
    tokens = [_token(value) for value in values]
    if any(not value for _, value in tokens):
        raise InvalidQuery("a patient identifier needs a value", parameter="patient.identifier")
    with_system = [(system, value) for system, value in tokens if system]
    if with_system and len(with_system) != len(tokens):
        raise InvalidQuery("give every alternative a system, or none", parameter="patient.identifier")
    if not with_system:
        search.matches.append(_any_of((PATIENT_ID,), [value for _, value in tokens]))
        return
    issuers = search.renderer.issuers.issuers
    _add_patients(search, [PatientKey(issuer, value) for system, value in with_system for issuer in issuers(system)])


async def _started(search: StudySearch, values: list[str]) -> None:
    """A date or instant with a prefix. Nodes are asked for the days around it, the moment itself is compared here."""
    periods = [Period.parse(value, "started") for value in values]
    days = [period.days() for period in periods]
    lows, highs = [low for low, _ in days], [high for _, high in days]
    low = min(low for low in lows if low) if all(lows) else None
    high = max(high for high in highs if high) if all(highs) else None
    if (low or high) and not any(match.path == (STUDY_DATE,) for match in search.matches):
        search.matches.append(Match((STUDY_DATE,), Operator.RANGE, (_day(low), _day(high))))
    elif low or high:
        _narrow(search, low, high)

    def is_in_one(found: Found) -> bool:
        moment = search.renderer.started(found)
        return moment is not None and any(compare(moment, period) for period in periods)

    search.conditions.append(is_in_one)


def _narrow(search: StudySearch, low: date | None, high: date | None) -> None:
    """A second `started` narrows the days already asked for."""
    position, match = next((i, m) for i, m in enumerate(search.matches) if m.path == (STUDY_DATE,))
    lows = [text for text in (match.values[0], _day(low)) if text]
    highs = [text for text in (match.values[1], _day(high)) if text]
    search.matches[position] = Match((STUDY_DATE,), Operator.RANGE, (max(lows, default=""), min(highs, default="")))


def _day(day: date | None) -> str:
    """A DA; '' for an open end."""
    return da(day) if day else ""


async def _modality(search: StudySearch, values: list[str]) -> None:
    search.matches.append(_any_of((MODALITIES_IN_STUDY,), _codes(values, "modality", (DCM,))))


def _codes(values: Sequence[str], parameter: str, systems: Sequence[str]) -> list[str]:
    codes = []
    for value in values:
        system, code = _token(value)
        if system and system not in systems:
            raise InvalidQuery(f"{parameter} is coded in {' or '.join(systems)}", parameter=parameter)
        if not code:
            raise InvalidQuery(f"{parameter} needs a code", parameter=parameter)
        codes.append(code)
    return codes


async def _body_site(search: StudySearch, values: list[str]) -> None:
    """A SNOMED CT concept or a DICOM Body Part Examined term."""
    terms = [BODY_PARTS.get(code, code) for code in _codes(values, "bodysite", (SCT, ""))]
    if any(term.isdecimal() for term in terms):
        raise InvalidQuery("a SNOMED CT concept without a DICOM body part here", parameter="bodysite")
    search.matches.append(_any_of((BODY_PART,), terms))


async def _status(search: StudySearch, values: list[str]) -> None:
    wanted = {_token(value)[1] for value in values}
    if not wanted <= set(_STATUSES):
        raise InvalidQuery(f"status is one of {', '.join(_STATUSES)}", parameter="status")
    search.conditions.append(lambda found: status(found.attributes) in wanted)


def _uid_parser(tag_: str, parameter: str) -> Parser:
    async def parse_uids(search: StudySearch, values: list[str]) -> None:
        bare = [value.removeprefix("urn:ietf:rfc:3986|").removeprefix("|") for value in values]
        search.matches.append(_any_of((tag_,), [_uid(value, parameter) for value in bare]))

    return parse_uids


async def _endpoint(search: StudySearch, values: list[str]) -> None:
    wanted = {value.rpartition("/")[2] for value in values}
    search.conditions.append(lambda found: bool(wanted & set(found.holders)))


async def _id(search: StudySearch, values: list[str]) -> None:
    """An id that no study can have finds nothing, as one that none has."""
    wanted = {value: uid for value in values if (uid := _uid_or_none(value))}
    if not wanted:
        search.impossible = True
        return
    search.matches.append(_any_of((STUDY_UID,), list(wanted.values())))
    search.conditions.append(lambda found: any(search.renderer.names(one, found) for one in wanted))


def _uid_or_none(identifier: str) -> str | None:
    try:
        return uid_of_id(identifier)
    except InvalidQuery:
        return None


async def _count(search: StudySearch, values: list[str]) -> None:
    search.count = negotiation.count(_one(values, "_count"), "_count", most=10_000)


async def _sort(search: StudySearch, values: list[str]) -> None:
    try:
        search.sort = Sort(_one(values, "_sort"))
    except ValueError:
        raise InvalidQuery(f"_sort is one of {', '.join(Sort)}", parameter="_sort") from None


async def _summary(search: StudySearch, values: list[str]) -> None:
    search.summary = _one(values, "_summary")
    if search.summary not in SUMMARIES:
        raise InvalidQuery(f"_summary is one of {', '.join(SUMMARIES)}", parameter="_summary")


async def _total(search: StudySearch, values: list[str]) -> None:
    search.total = _one(values, "_total")
    if search.total not in TOTALS:
        raise InvalidQuery(f"_total is one of {', '.join(TOTALS)}", parameter="_total")


async def _total_method(search: StudySearch, values: list[str]) -> None:
    """_total as Aidbox and its client fhirpy say it."""
    method = _one(values, "_totalMethod")
    if method not in _TOTAL_METHODS:
        raise InvalidQuery(f"_totalMethod is one of {', '.join(_TOTAL_METHODS)}", parameter="_totalMethod")
    search.total = _TOTAL_METHODS[method]


async def _include(search: StudySearch, values: list[str]) -> None:
    for value in values:
        if value not in _INCLUDES:
            raise InvalidQuery(f"_include is one of {', '.join(_INCLUDES)}", parameter="_include")
        search.includes.add(_INCLUDES[value])


async def _cursor(search: StudySearch, values: list[str]) -> None:
    search.cursor = ",".join(values)


async def _nothing(search: StudySearch, values: list[str]) -> None:
    """_format was negotiated already; node was taken as the selection of nodes."""


def _one(values: list[str], parameter: str) -> str:
    if len(values) != 1:
        raise InvalidQuery(f"{parameter} takes one value", parameter=parameter)
    return values[0]


PARAMETERS: dict[str, Parser] = {
    "identifier": _identifier,
    "patient": _patient_parser("patient"),
    "subject": _patient_parser("subject"),
    "patient.identifier": _patient_identifier,
    "subject.identifier": _patient_identifier,
    "patient:identifier": _patient_identifier,
    "subject:identifier": _patient_identifier,
    "started": _started,
    "modality": _modality,
    "bodysite": _body_site,
    "body-site": _body_site,
    "status": _status,
    "series": _uid_parser(SERIES_UID, "series"),
    "instance": _uid_parser(INSTANCE_UID, "instance"),
    "dicom-class": _uid_parser(SOP_CLASS_UID, "dicom-class"),
    "endpoint": _endpoint,
    "_id": _id,
    "_count": _count,
    "_sort": _sort,
    "_summary": _summary,
    "_total": _total,
    "_totalMethod": _total_method,
    "_include": _include,
    "_cursor": _cursor,
    "_format": _nothing,
    "node": _nothing,
}
# name -> FHIR search parameter type, for the CapabilityStatement.
TYPES = {
    "identifier": "token", "patient": "reference", "subject": "reference", "started": "date", "modality": "token",
    "bodysite": "token", "status": "token", "series": "token", "instance": "token", "dicom-class": "token",
    "endpoint": "reference", "_id": "token",
}  # fmt: skip
