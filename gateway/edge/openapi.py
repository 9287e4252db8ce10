"""`/openapi.json`: the gateway as an OpenAPI 3.1 description, made of the routes and of the tables that requests are read by.

No token is needed to read it: it names neither nodes nor patients. A route that nothing is said of here is still listed,
with its path, its methods and its errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from gateway import __version__
from gateway.edge import operations, problems
from gateway.edge.context import base_of
from gateway.edge.middleware import is_open
from gateway.edge.negotiation import JSON
from gateway.edge.operations import FHIR_JSON, IN_PATHS, RESOURCE, TEXT, Json

_CONVERTER = re.compile(r"\{([a-z]+)(:[a-z]+)?\}")
_PROBLEM: Json = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {"status": {"type": "integer"}, "code": {"type": "string", "pattern": "^GW[0-9]{3}$"}},
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
            "schemas": {"Problem": _PROBLEM, "Resource": RESOURCE},
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
    operation: Json = {
        "summary": operations.answers_of(route.name).summary,
        "parameters": [*_in_path(path), *operations.asked_by(method, path, route.name)],
        "responses": _responses(method, path, route.name),
    }
    body = operations.body_of(method, route.name)
    if body:
        operation["requestBody"] = body
    if is_open(method, path):
        operation["security"] = []
    return operation


def _responses(method: str, path: str, name: str) -> Json:
    told = operations.answers_of(name)
    good: Json = {"description": told.summary}
    if told.content:
        good["content"] = {each: {"schema": schema} for each, schema in told.content.items()}
    problem = {"$ref": f"#/components/responses/{'Outcome' if path.startswith('/fhir') else 'Problem'}"}
    responses: Json = {str(status): good for status in (told.status, *told.more)}
    responses |= {str(status): {"description": told.summary} for status in told.bare}
    responses |= {str(status): problem for status in sorted({*problems.STATUS.values()})}
    if name == "ready":
        responses["503"] = responses["200"]
    if name == "store":  # nothing was stored: the outcome of each instance, or a patient that two issuers have
        both = {**good["content"], **_error("application/problem+json", "Problem")["content"]}
        responses["409"] = {"description": "Nothing was stored", "content": both}
    if method == "GET":
        responses["304"] = {"description": "What the caller has is still so"}
    return responses


def _in_path(path: str) -> list[Json]:
    return [
        {"name": each, "in": "path", "required": True, "schema": IN_PATHS.get(each, TEXT)}
        for each in re.findall(r"\{([a-z]+)\}", path)
    ]


def _error(media_type: str, schema: str) -> Json:
    content = {media_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {
        "description": "What was wrong, or which node failed; the codes are in gateway/README.md",
        "content": content,
    }


def _outcome() -> Json:
    """A refusal before the FHIR edge is reached is one of the gateway's own."""
    both = _error(FHIR_JSON, "Resource")
    both["content"] |= _error("application/problem+json", "Problem")["content"]
    return both
