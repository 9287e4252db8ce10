"""What an export is asked for: the parameters of `$export` by GET and by POST (FHIR Bulk Data Access 2.0.0, 3.1), checked whole
before anything begins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.requests import Request

from gateway.edge import received
from gateway.edge.fhir.imagingstudy import Renderer
from gateway.edge.fhir.studyquery import RESULTS, parse
from gateway.edge.negotiation import with_plus
from gateway.edge.querystring import pairs_of, query_pairs
from gateway.errors import InvalidQuery
from gateway.model.patient import PatientKey
from gateway.wire.fhirxml import element_names

STUDY, PATIENT, ENDPOINT, ORGANIZATION = "ImagingStudy", "Patient", "Endpoint", "Organization"
TYPES = {STUDY: "s", PATIENT: "r", ENDPOINT: "r", ORGANIZATION: "r"}
"""What can be exported, with the permission that it takes."""
OF_A_PATIENT = (STUDY, PATIENT)
NDJSON = "application/fhir+ndjson"
_FORMATS = (NDJSON, "application/ndjson", "ndjson")
_MOST_BODY, _MOST_FILTERS = 256 * 1024, 50
_NEXT_FILTER = re.compile(r",(?=[A-Z][A-Za-z]*\?)")
_ELEMENT = re.compile(r"(?:([A-Z][A-Za-z]*)\.)?([a-z][A-Za-z]*)")
# Search result parameters are decided for the export as a whole (Bulk Data 3.1.2, _typeFilter).
_NOT_IN_A_FILTER = frozenset(RESULTS)
_WHY_NOT = {
    name: f"'{name}' cannot be answered truthfully: the hospitals do not say when a study was last changed, and its own date "
    "is not that; leave it out, narrow by _typeFilter=ImagingStudy?started=ge..., or follow what this gateway saw change by a "
    "search for ImagingStudy?_lastUpdated=gt..."
    for name in ("_since", "_until")
}


@dataclass(slots=True)
class Asked:
    """One export. `types` None means all that the caller may have; `walks` are searches of ImagingStudy, by OR.

    `ignored` says what was left out of account, for the error file; `known` are the patients that the searches speak of, whose
    ids another replica may never have given out.
    """

    types: tuple[str, ...] | None = None
    filters: list[list[list[str]]] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    elements: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    known: list[PatientKey] = field(default_factory=list)


async def asked_of(request: Request, renderer: Renderer, *, lenient: bool) -> Asked:
    """Raises InvalidQuery naming what is not supported; with `lenient` that is left out and listed, where it may be."""
    pairs = query_pairs(request)
    if request.method == "POST":
        posted = _parameters(await _body(request))
        _require_in_the_query(posted)
        pairs += posted
    asked = Asked()
    for name, value in pairs:
        take = _TAKEN.get(name)
        if take is not None:
            _require_text(name, value)
            take(asked, value, lenient)
        elif lenient:
            asked.ignored.append(_WHY_NOT.get(name, f"the parameter '{name}' is not supported and was ignored"))
        else:
            text = f"'{name}' is not a supported parameter of $export; Prefer: handling=lenient goes on without it"
            raise InvalidQuery(_WHY_NOT.get(name, text), parameter=name)
    if len(asked.filters) > _MOST_FILTERS:
        raise InvalidQuery(f"_typeFilter may be given {_MOST_FILTERS} times", parameter="_typeFilter")
    await _check(asked, renderer)
    return asked


def _require_in_the_query(posted: Sequence[tuple[str, str]]) -> None:
    """Raises InvalidQuery for what is read before the body is, and would be passed over in it."""
    for name in (name for name, _ in posted if _TAKEN.get(name) is _take_nothing):
        raise InvalidQuery(f"'{name}' goes into the query string, not into the body", parameter=name)


def _require_text(name: str, value: str) -> None:
    """Raises InvalidQuery: what was to narrow an export and is empty must not widen it to everybody."""
    if not value.strip(", "):
        raise InvalidQuery(f"'{name}' is empty: give it a value, or leave it out", parameter=name)


async def _check(asked: Asked, renderer: Renderer) -> None:
    """Everything that a search would refuse is refused now, not by a job hours later."""
    if asked.filters and asked.types is not None and STUDY not in asked.types:
        raise InvalidQuery("_typeFilter is for ImagingStudy, which _type leaves out", parameter="_typeFilter")
    if not all(_is_element(one, is_r5=renderer.is_r5) for one in asked.elements):
        raise InvalidQuery("_elements has a name that no element has, of that type or of any", parameter="_elements")
    for pairs in asked.filters or [[]]:
        search = await parse([*_pairs(pairs), *patients_pair(asked.patients)], renderer, lenient=False)
        asked.ignored += [text for text in search.unknown if text not in asked.ignored]
        asked.known += [key for key in search.named if key not in asked.known]


def _is_element(text: str, *, is_r5: bool) -> bool:
    type_, _, name = text.rpartition(".")
    types = (type_,) if type_ else tuple(TYPES)
    return name == "resourceType" or any(name in element_names(one, is_r5=is_r5) for one in types)


def patients_pair(patients: Sequence[str]) -> list[tuple[str, str]]:
    """The search parameter that narrows a search to the patients."""
    return [("patient", ",".join(patients))] if patients else []


def _pairs(listed: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in listed]


def _take_format(asked: Asked, value: str, lenient: bool) -> None:
    if with_plus(value).split(";")[0].strip() not in _FORMATS:
        raise InvalidQuery(f"_outputFormat is one of {', '.join(_FORMATS)}", parameter="_outputFormat")


def _take_types(asked: Asked, value: str, lenient: bool) -> None:
    wanted = [name for name in value.split(",") if name]
    known = [name for name in wanted if name in TYPES]
    if len(known) < len(wanted):
        text = f"_type is a list of {', '.join(TYPES)}"
        if not lenient or not known:
            raise InvalidQuery(text, parameter="_type")
        asked.ignored.append(f"{text}; others were ignored")
    asked.types = tuple(dict.fromkeys([*(asked.types or ()), *known]))


def _take_filter(asked: Asked, value: str, lenient: bool) -> None:
    for one in filter(None, _NEXT_FILTER.split(value)):
        type_, mark, query = one.partition("?")
        if type_ != STUDY or not mark:
            raise InvalidQuery("_typeFilter is ImagingStudy?<search>, once or more", parameter="_typeFilter")
        pairs = pairs_of(query)
        refused = sorted({name for name, _ in pairs if name in _NOT_IN_A_FILTER})
        if refused:
            raise InvalidQuery(f"{', '.join(refused)} cannot be part of a _typeFilter", parameter="_typeFilter")
        for name, value_ in pairs:
            _require_text(name, value_)
        asked.filters.append([[name, value_] for name, value_ in pairs])


def _take_elements(asked: Asked, value: str, lenient: bool) -> None:
    for one in filter(None, value.split(",")):
        found = _ELEMENT.fullmatch(one.strip())
        if found is None or (found.group(1) or STUDY) not in TYPES:
            text = "_elements is a list of top-level elements, each alone or behind one of " + ", ".join(TYPES)
            raise InvalidQuery(text, parameter="_elements")
        asked.elements.append(one.strip())


def _take_patient(asked: Asked, value: str, lenient: bool) -> None:
    asked.patients += [one for one in value.split(",") if one]


def _take_nothing(asked: Asked, value: str, lenient: bool) -> None:
    """_format was negotiated already; node was taken as the selection of nodes."""


_TAKEN = {
    "_outputFormat": _take_format,
    "_type": _take_types,
    "_typeFilter": _take_filter,
    "_elements": _take_elements,
    "patient": _take_patient,
    "_format": _take_nothing,
    "node": _take_nothing,
}


async def _body(request: Request) -> bytes:
    """Raises TooLarge, without reading more than that."""
    essence = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if essence not in ("application/fhir+json", "application/json"):
        raise InvalidQuery("the body of $export is a Parameters resource as application/fhir+json", parameter="body")
    return await received.whole(request, _MOST_BODY, f"the body of $export is at most {_MOST_BODY} bytes")


def _parameters(body: bytes) -> list[tuple[str, str]]:
    """(name, value) of each parameter, whatever its type is. Raises InvalidQuery."""
    try:
        told = orjson.loads(body)
        listed = told.get("parameter", []) if told.get("resourceType") == "Parameters" else None
        if listed is None:
            raise InvalidQuery("the body of $export is a Parameters resource", parameter="body")
        if not isinstance(listed, list):
            raise TypeError
        return [(str(one["name"]), _value(one)) for one in listed]
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration):
        raise InvalidQuery("the body of $export is not a readable Parameters resource", parameter="body") from None


def _value(parameter: Mapping[str, Any]) -> str:
    value = next(value for name, value in parameter.items() if name.startswith("value"))
    found = value["reference"] if isinstance(value, Mapping) else value
    if not isinstance(found, str):
        raise TypeError
    return found
