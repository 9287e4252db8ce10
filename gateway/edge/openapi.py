"""`/openapi.json`: the gateway as an OpenAPI 3.1 description, made of the routes and of the tables that requests are read by.

No token is needed to read it: it names neither nodes nor patients. A route that nothing is said of here is still listed,
with its path, its methods and its errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from gateway import __version__
from gateway.edge import problems
from gateway.edge.context import base_of
from gateway.edge.fhirsearch import KEYS, PARAMETERS, TOTALS
from gateway.edge.middleware import is_open
from gateway.edge.negotiation import DICOM, DICOM_JSON, FRAME_TYPES, JSON, MULTIPART, OCTETS
from gateway.edge.shown import SUMMARIES
from gateway.federation.page import Sort
from gateway.model.vocabulary import RETURNED, Level, keyword, vr

Json = dict[str, Any]

_CONVERTER = re.compile(r"\{([a-z]+)(:[a-z]+)?\}")
_UID = r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*"
_NUMBER = r" *[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)? *"
_DATE, _TIME, _MOMENT = r"[0-9]{8}", r"[0-9]{2,6}(\.[0-9]{1,6})?", r"[0-9]{4,14}(\.[0-9]{1,6})?([+-][0-9]{4})?"
# By VR, the values that a key can be matched by; '', '*' and '""' match everything (PS3.18 8.3.4.1).
_KEY_FORMS = {
    "UI": rf"{_UID}([,\\]{_UID})*",
    "DA": rf"{_DATE}(-({_DATE})?)?|-{_DATE}",
    "TM": rf"{_TIME}(-({_TIME})?)?|-{_TIME}",
    "DT": rf"{_MOMENT}(-({_MOMENT})?)?|-{_MOMENT}",
    "IS": _NUMBER,
    "DS": _NUMBER,
}
_IN_PATHS: dict[str, Json] = {
    "study": {"type": "string", "pattern": f"^{_UID}$", "maxLength": 64},
    "series": {"type": "string", "pattern": f"^{_UID}$", "maxLength": 64},
    "instance": {"type": "string", "pattern": f"^{_UID}$", "maxLength": 64},
    "frames": {"type": "string", "pattern": r"^0{0,3}[1-9][0-9]{0,6}(,0{0,3}[1-9][0-9]{0,6})*$"},
    "path": {"type": "string", "pattern": r"^[0-9A-Fa-f]{8}(\.[1-9][0-9]{0,8}\.[0-9A-Fa-f]{8}){0,16}$"},
    "id": {"type": "string", "pattern": r"^[A-Za-z0-9.-]{1,64}$"},
}
_SWITCH: Json = {"type": "string", "enum": ["true", "false"]}
_COUNT: Json = {"type": "integer", "minimum": 0, "maximum": 2**31}
_TEXT: Json = {"type": "string"}
_OF_A_SEARCH: dict[str, Json] = {
    "limit": _COUNT,
    "offset": _COUNT,
    "fuzzymatching": _SWITCH,
    "emptyvaluematching": _SWITCH,
    "multiplevaluematching": _SWITCH,
    "includefield": _TEXT,
}
_OF_A_FHIR_SEARCH: dict[str, Json] = {
    "_count": {"type": "integer", "minimum": 0, "maximum": 10_000},
    "_sort": {"type": "string", "enum": ["", *Sort]},
    "_summary": {"type": "string", "enum": ["", *SUMMARIES]},
    "_total": {"type": "string", "enum": ["", *TOTALS]},
}
_DICOM_OBJECTS: Json = {"type": "array", "items": {"type": "object"}}
_RESOURCE: Json = {"type": "object", "required": ["resourceType"], "properties": {"resourceType": _TEXT}}
_PROBLEM: Json = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {"status": {"type": "integer"}, "code": {"type": "string", "pattern": "^GW[0-9]{3}$"}},
}


@dataclass(frozen=True, slots=True)
class _Answers:
    """What the routes of one name answer: media type -> schema, and further statuses than 200."""

    summary: str
    content: dict[str, Json] = field(default_factory=dict)
    more: tuple[int, ...] = ()


_WHOLE = {MULTIPART: _TEXT, DICOM: _TEXT}
_ANSWERS = {
    "search": _Answers("QIDO-RS: search (PS3.18 10.6)", {DICOM_JSON: _DICOM_OBJECTS, JSON: _DICOM_OBJECTS}),
    "retrieve": _Answers("WADO-RS: retrieve instances (PS3.18 10.4)", _WHOLE, (206,)),
    "metadata": _Answers("WADO-RS: metadata", {DICOM_JSON: _DICOM_OBJECTS, JSON: _DICOM_OBJECTS}, (206,)),
    "frames": _Answers("WADO-RS: frames", dict.fromkeys((MULTIPART, *FRAME_TYPES), _TEXT)),
    "bulkdata": _Answers("WADO-RS: a bulk data value", dict.fromkeys((MULTIPART, OCTETS, *FRAME_TYPES), _TEXT)),
    "capabilities": _Answers("What the DICOMweb service does (PS3.18 8.9)", {JSON: {"type": "object"}}),
    "fhir-search": _Answers("Search for ImagingStudy", {"application/fhir+json": _RESOURCE}),
    "fhir-metadata": _Answers("CapabilityStatement", {"application/fhir+json": _RESOURCE}),
    "page": _Answers("The nodes, for people", {"text/html": _TEXT}),
    "live": _Answers("Whether the process answers at all", {"text/plain": _TEXT}),
    "ready": _Answers("Whether it serves", {"text/plain": _TEXT}),
    "metrics": _Answers("Prometheus text", {"text/plain": _TEXT}),
    "nodes": _Answers("The nodes and their state", {JSON: {"type": "object", "required": ["nodes"]}}),
    "smart": _Answers("Where tokens come from (SMART App Launch)", {JSON: {"type": "object"}}),
    "protected-resource": _Answers("Which issuer guards this gateway (RFC 9728)", {JSON: {"type": "object"}}),
    "openapi": _Answers("This description", {JSON: {"type": "object"}}),
}


async def endpoint(request: Request) -> Response:
    """The description, with the address that the caller sees."""
    return Response(orjson.dumps(description(request.app.routes, base_of(request))), media_type=JSON)


def description(routes: Sequence[BaseRoute], base: str) -> Json:
    """The OpenAPI document of these routes at `base`."""
    paths: dict[str, Json] = {}
    for path, route in _flat(routes):
        plain = _CONVERTER.sub(r"{\1}", path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(plain, {}).setdefault(method.lower(), _operation(method, plain, route))
    return {
        "openapi": "3.1.0",
        "info": {"title": "Imaging gateway", "version": __version__, "license": {"name": "Apache-2.0"}},
        "servers": [{"url": base}],
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "schemas": {"Problem": _PROBLEM, "Resource": _RESOURCE},
            "responses": {"Problem": _error("application/problem+json", "Problem"), "Outcome": _outcome()},
        },
    }


def _flat(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[tuple[str, Route]]:
    for route in routes:
        if isinstance(route, Mount):
            yield from _flat(route.routes, prefix + route.path)
        elif isinstance(route, Route):
            yield prefix + route.path, route


def _operation(method: str, path: str, route: Route) -> Json:
    is_fhir = path.startswith("/fhir")
    told = _answers(route.name, is_fhir=is_fhir)
    problem = {"$ref": f"#/components/responses/{'Outcome' if is_fhir else 'Problem'}"}
    responses: Json = {"200": {"description": told.summary}}
    if told.content:
        responses["200"]["content"] = {each: {"schema": schema} for each, schema in told.content.items()}
    responses |= {str(status): responses["200"] for status in told.more}
    responses |= {str(status): problem for status in sorted({*problems.STATUS.values()})}
    if route.name == "ready":
        responses["503"] = responses["200"]
    if route.name not in _ANSWERS and not route.name.startswith("fhir-read"):
        responses["default"] = {"description": "As the standard has it"}
    if method == "GET":
        responses["304"] = {"description": "What the caller has is still so"}
    operation: Json = {"summary": told.summary, "parameters": _parameters(path, route.name), "responses": responses}
    if is_open(method, path):
        operation["security"] = []
    return operation


def _answers(name: str, *, is_fhir: bool) -> _Answers:
    if name in _ANSWERS:
        return _ANSWERS[name]
    if name.startswith("fhir-read"):
        return _Answers("Read one resource", {"application/fhir+json": _RESOURCE})
    return _Answers(name.replace("-", " "), {"application/fhir+json": _RESOURCE} if is_fhir else {})


def _parameters(path: str, name: str) -> list[Json]:
    """Those of the path, then those of the query string."""
    found = [
        {"name": each, "in": "path", "required": True, "schema": _IN_PATHS.get(each, _TEXT)}
        for each in re.findall(r"\{([a-z]+)\}", path)
    ]
    if name == "search":
        return found + [_query(each, schema) for each, schema in (_keys(path) | _OF_A_SEARCH).items()]
    if name == "fhir-search":
        return found + [
            _query(each, _OF_A_FHIR_SEARCH.get(each, _TEXT), KEYS[each].type if each in KEYS else None)
            for each in PARAMETERS
        ]
    return found


def _query(name: str, schema: Json, type_: str | None = None) -> Json:
    more = {"description": f"FHIR search parameter of type {type_}"} if type_ else {}
    return {"name": name, "in": "query", "required": False, "allowEmptyValue": True, "schema": schema, **more}


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
    return {"type": "string", "pattern": rf'^({form}|\*|"")?$'} if form else _TEXT


def _error(media_type: str, schema: str) -> Json:
    content = {media_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {
        "description": "What was wrong, or which node failed; the codes are in gateway/README.md",
        "content": content,
    }


def _outcome() -> Json:
    """A refusal before the FHIR edge is reached is one of the gateway's own."""
    both = _error("application/fhir+json", "Resource")
    both["content"] |= _error("application/problem+json", "Problem")["content"]
    return both
