"""What the routes take and answer, by their names: the tables that `/openapi.json` is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from gateway.edge.export.requested import NDJSON
from gateway.edge.fhir import directory, listing, patientkeys
from gateway.edge.fhir.shown import SUMMARIES
from gateway.edge.fhir.studyquery import KEYS, PARAMETERS, TOTALS
from gateway.edge.negotiation import DICOM, DICOM_JSON, FRAME_TYPES, JSON, MULTIPART, OCTETS
from gateway.federation.page import Sort
from gateway.federation.pictures import PDF, RENDERED_TYPES
from gateway.model.vocabulary import RETURNED, Level, keyword, vr

Json = dict[str, Any]

UID = r"[0-9]+(\.[0-9]+)*"
NUMBER = r" *[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)? *"
FHIR_JSON, FHIR_XML, FORM, DICOM_XML = (
    "application/fhir+json", "application/fhir+xml", "application/x-www-form-urlencoded", "application/dicom+xml",
)  # fmt: skip
_DATE, _TIME, _MOMENT = r"[0-9]{8}", r"[0-9]{2,6}(\.[0-9]{1,6})?", r"[0-9]{4,14}(\.[0-9]{1,6})?([+-][0-9]{4})?"
# By VR, the values that a key can be matched by; '', '*' and '""' match everything (PS3.18 8.3.4.1).
_KEY_FORMS = {
    "UI": rf"{UID}([,\\]{UID})*",
    "DA": rf"{_DATE}(-({_DATE})?)?|-{_DATE}",
    "TM": rf"{_TIME}(-({_TIME})?)?|-{_TIME}",
    "DT": rf"{_MOMENT}(-({_MOMENT})?)?|-{_MOMENT}",
    "IS": NUMBER,
    "DS": NUMBER,
}
_ONE_UID: Json = {"type": "string", "pattern": f"^{UID}$", "maxLength": 64}
IN_PATHS: dict[str, Json] = {
    **dict.fromkeys(("study", "series", "instance"), _ONE_UID),
    "frames": {"type": "string", "pattern": r"^0{0,3}[1-9][0-9]{0,6}(,0{0,3}[1-9][0-9]{0,6})*$"},
    "path": {"type": "string", "pattern": r"^[0-9A-Fa-f]{8}(\.[1-9][0-9]{0,8}\.[0-9A-Fa-f]{8}){0,16}$"},
    "id": {"type": "string", "pattern": r"^[A-Za-z0-9.-]{1,64}$"},
    "job": {"type": "string", "pattern": r"^[0-9a-f]{32}$"},
}
TEXT: Json = {"type": "string"}
_SWITCH: Json = {"type": "string", "enum": ["true", "false"]}
_COUNT: Json = {"type": "integer", "minimum": 0, "maximum": 2**31}
_PERCENT: Json = {"type": "integer", "minimum": 1, "maximum": 100}
_SIDE: Json = {"type": "integer", "minimum": 1, "maximum": 8192}
OF_A_SEARCH: dict[str, Json] = {
    "limit": _COUNT,
    "offset": _COUNT,
    "fuzzymatching": _SWITCH,
    "emptyvaluematching": _SWITCH,
    "multiplevaluematching": _SWITCH,
    "includefield": TEXT,
}
_OF_A_FHIR_SEARCH: dict[str, Json] = {
    "_count": {"type": "integer", "minimum": 0, "maximum": 10_000},
    "_sort": {"type": "string", "enum": ["", *Sort]},
    "_summary": {"type": "string", "enum": ["", *SUMMARIES]},
    "_total": {"type": "string", "enum": ["", *TOTALS]},
}
_FHIR_SEARCHES: dict[str, tuple[str, ...]] = {
    "fhir-search": tuple(PARAMETERS),
    "fhir-search-patient": (*patientkeys.KEYS, "_revinclude", *listing.RESULTS),
    "fhir-search-endpoint": (*directory.ENDPOINT, *listing.RESULTS),
    "fhir-search-organization": (*directory.ORGANIZATION, *listing.RESULTS),
}
_TYPES: dict[str, str] = {
    **{name: key.type for keys in (KEYS, patientkeys.KEYS) for name, key in keys.items()},
    **{name: key.type for keys in (directory.ENDPOINT, directory.ORGANIZATION) for name, key in keys.items()},
}
OTHERS: dict[str, dict[str, Json]] = {
    "rendered": {
        "window": TEXT,
        "viewport": TEXT,
        "quality": _PERCENT,
        "annotation": TEXT,
        "iccprofile": {"type": "string", "enum": ["no", "yes", "srgb"]},
    },
    "thumbnail": {"viewport": TEXT},
    "wado-uri": {
        "requestType": {"type": "string", "enum": ["WADO"]},
        "studyUID": _ONE_UID,
        "seriesUID": _ONE_UID,
        "objectUID": _ONE_UID,
        "contentType": TEXT,
        "transferSyntax": TEXT,
        "frameNumber": {"type": "integer", "minimum": 1},
        "rows": _SIDE,
        "columns": _SIDE,
        "region": TEXT,
        "windowCenter": TEXT,
        "windowWidth": TEXT,
        "imageQuality": _PERCENT,
        "annotation": TEXT,
    },
    "export": dict.fromkeys(("_outputFormat", "_type", "_typeFilter", "_elements", "patient", "_format", "node"), TEXT),
}
"""Query parameters of routes that are no searches, by the route's name."""
_REQUIRED = ("requestType", "studyUID", "seriesUID", "objectUID")
_MAY_BE_EMPTY = ("export",)

DATA_SETS: Json = {"type": "array", "items": {"type": "object"}}
RESOURCE: Json = {"type": "object", "required": ["resourceType"], "properties": {"resourceType": TEXT}}
_MANIFEST: Json = {
    "type": "object",
    "required": ["transactionTime", "request", "requiresAccessToken", "output", "error"],
    "properties": {"output": {"type": "array"}, "error": {"type": "array"}},
}
_ASKED: Json = {
    "type": "object",
    "required": ["resourceType"],
    "properties": {
        "resourceType": {"const": "Parameters"},
        "parameter": {"type": "array", "items": {"type": "object", "required": ["name"], "properties": {"name": TEXT}}},
    },
}
_OUTCOME = {FHIR_JSON: RESOURCE}


@dataclass(frozen=True, slots=True)
class Answers:
    """What the routes of one name answer: media type -> schema, at `status` and at those of `more`; `bare` ones have no body."""

    summary: str
    content: dict[str, Json] = field(default_factory=dict)
    more: tuple[int, ...] = ()
    status: int = 200
    bare: tuple[int, ...] = ()


_WHOLE = {MULTIPART: TEXT, DICOM: TEXT}
_IMAGES = dict.fromkeys(RENDERED_TYPES, TEXT)
_TEXTS: dict[str, Json] = {DICOM_JSON: DATA_SETS, JSON: DATA_SETS, MULTIPART: TEXT}
_ONE_TEXT: dict[str, Json] = {
    DICOM_JSON: {"type": "object"},
    JSON: {"type": "object"},
    MULTIPART: TEXT,
    DICOM_XML: TEXT,
}
_FHIR = {FHIR_JSON: RESOURCE, FHIR_XML: TEXT}
ANSWERS = {
    "search": Answers("QIDO-RS: search (PS3.18 10.6)", _TEXTS),
    "retrieve": Answers("WADO-RS: retrieve instances (PS3.18 10.4)", _WHOLE, (206,)),
    "metadata": Answers("WADO-RS: metadata", {**_TEXTS, DICOM_XML: TEXT}, (206,)),
    "frames": Answers("WADO-RS: frames", dict.fromkeys((MULTIPART, *FRAME_TYPES), TEXT)),
    "bulkdata": Answers("WADO-RS: a bulk data value", dict.fromkeys((MULTIPART, OCTETS, *FRAME_TYPES), TEXT), (206,)),
    "rendered": Answers("WADO-RS: rendered (PS3.18 10.4.1.1.3)", {**_IMAGES, PDF: TEXT, MULTIPART: TEXT}, (206,)),
    "thumbnail": Answers("WADO-RS: a thumbnail", _IMAGES),
    "wado-uri": Answers("WADO-URI (PS3.18 9)", {**_IMAGES, PDF: TEXT, DICOM: TEXT}),
    "store": Answers("STOW-RS: store instances (PS3.18 10.5)", _ONE_TEXT, (202,)),
    "capabilities": Answers("What the DICOMweb service does (PS3.18 8.9)", {JSON: {"type": "object"}}),
    "fhir-search": Answers("Search for ImagingStudy", _FHIR),
    "fhir-search-patient": Answers("Search for Patient", _FHIR),
    "fhir-search-endpoint": Answers("Search for Endpoint", _FHIR),
    "fhir-search-organization": Answers("Search for Organization", _FHIR),
    "fhir-metadata": Answers("CapabilityStatement", _FHIR),
    "fhir-not-served": Answers("Refused, with the reason"),
    "export": Answers("Begin an export (FHIR Bulk Data Access 2.0.0)", _OUTCOME, status=202),
    "export-status": Answers("How an export stands; at its end what it gave", {JSON: _MANIFEST}, bare=(202,)),
    "export-delete": Answers("End an export, and remove what it gave", _OUTCOME, status=202),
    "export-file": Answers("A file of an export", {NDJSON: TEXT}),
    "page": Answers("The nodes, for people", {"text/html": TEXT}),
    "live": Answers("Whether the process answers at all", {"text/plain": TEXT}),
    "ready": Answers("Whether it serves", {"text/plain": TEXT}),
    "metrics": Answers("Prometheus text", {"text/plain": TEXT}),
    "nodes": Answers("The nodes and their state", {JSON: {"type": "object", "required": ["nodes"]}}),
    "smart": Answers("Where tokens come from (SMART App Launch)", {JSON: {"type": "object"}}),
    "protected-resource": Answers("Which issuer guards this gateway (RFC 9728)", {JSON: {"type": "object"}}),
    "openapi": Answers("This description", {JSON: {"type": "object"}}),
}
_A_READ = Answers("Read one resource", _FHIR)


def answers_of(name: str) -> Answers:
    if name.startswith("fhir-read"):
        return _A_READ
    return ANSWERS.get(name) or Answers(name.replace("-", " "))


def asked_by(method: str, path: str, name: str) -> list[Json]:
    """The parameters of the query string and of the headers; a search by POST has them in its form."""
    found: dict[str, Json] = OTHERS.get(name, {})
    if name == "search":
        found = _keys(path) | OF_A_SEARCH
    if name in _FHIR_SEARCHES and method == "GET":
        found = _of_fhir(_FHIR_SEARCHES[name])
    is_lax = name not in OTHERS or name in _MAY_BE_EMPTY
    parameters = [_query(each, schema, may_be_empty=is_lax) for each, schema in found.items()]
    if name == "export":
        prefer = {"type": "string", "enum": ["respond-async"]}
        parameters.append({"name": "Prefer", "in": "header", "required": True, "schema": prefer})
    return parameters


def body_of(method: str, name: str) -> Json | None:
    """The body that a POST takes; None for no body."""
    if method != "POST":
        return None
    if name == "store":
        return {"required": True, "content": {MULTIPART: {"schema": {"type": "string", "format": "binary"}}}}
    if name == "export":
        return {"required": True, "content": {FHIR_JSON: {"schema": _ASKED}}}
    if name in _FHIR_SEARCHES:
        form = {"type": "object", "properties": {each: _in_a_form(each) for each in _FHIR_SEARCHES[name]}}
        return {"required": False, "content": {FORM: {"schema": form}}}
    return None


def _of_fhir(names: Iterable[str]) -> dict[str, Json]:
    return {each: _OF_A_FHIR_SEARCH.get(each, TEXT) for each in names}


def _in_a_form(name: str) -> Json:
    schema = _OF_A_FHIR_SEARCH.get(name, TEXT)
    return {"anyOf": [schema, {"type": "string", "enum": [""]}]} if schema["type"] == "integer" else schema


def _query(name: str, schema: Json, *, may_be_empty: bool) -> Json:
    type_ = _TYPES.get(name)
    more: Json = {"description": f"FHIR search parameter of type {type_}"} if type_ else {}
    more |= {"allowEmptyValue": True} if may_be_empty else {}
    return {"name": name, "in": "query", "required": name in _REQUIRED, "schema": schema, **more}


def _keys(path: str) -> dict[str, Json]:
    """The attributes that a search resource is mostly asked by: of its level, and of those above that the path does not name."""
    last = path.rpartition("/")[2]
    level = {"studies": Level.STUDY, "series": Level.SERIES, "instances": Level.IMAGE}[last]
    levels = [level]
    if level is not Level.STUDY and "{study}" not in path:
        levels.append(Level.STUDY)
    if level is Level.IMAGE and "{series}" not in path:
        levels.append(Level.SERIES)
    tags = [each for one in levels for each in RETURNED[one] if vr(each) not in ("SQ", "UR") and keyword(each)]
    return {keyword(each): _key(vr(each)) for each in tags}


def _key(vr_: str) -> Json:
    form = _KEY_FORMS.get(vr_)
    return {"type": "string", "pattern": rf'^({form}|\*|"")?$'} if form else TEXT
