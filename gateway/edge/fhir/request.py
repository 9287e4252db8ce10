"""One FHIR request: what its handler needs, its answer in the version and format asked for, and POST `_search` as a GET."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from gateway.edge import problems, received
from gateway.edge.context import Context, context_of, mark_cacheable, revalidated
from gateway.edge.fhir import profiles, validity
from gateway.edge.fhir.formats import FhirFormat, negotiated
from gateway.edge.fhir.imagingstudy import Renderer, Resource
from gateway.edge.fhir.profiles import Profile
from gateway.errors import InvalidQuery
from gateway.model.answer import Issue
from gateway.telemetry import stage
from gateway.wire.media import parse_media_type

_FORM = "application/x-www-form-urlencoded"
_LARGEST_FORM = 64 * 1024
_HANDLING = frozenset({"handling=strict", "handling=lenient"})


@dataclass(frozen=True, slots=True)
class FhirRequest:
    """One request with what the handlers need: its context, its renderer, the root it was asked at and how it is answered."""

    request: Request
    context: Context
    renderer: Renderer
    root: str
    format: FhirFormat

    @property
    def is_lenient(self) -> bool:
        """Whether what is not supported is to be left out (Prefer: handling=lenient); the first preference counts (RFC 7240 2)."""
        handling = [one for one in received.preferences(self.request) if one in _HANDLING]
        return handling[:1] == ["handling=lenient"]

    @property
    def profile(self) -> Profile:
        """The form of an ImagingStudy where the request names none."""
        return profiles.configured(self.context.settings.fhir_profile, self.format.version)

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query_params

    @stage("render")
    def respond(self, resource: Resource, *, complete: bool = True, status: int = 200) -> Response:
        """A resource in this request's version; a partial answer is not to be stored."""
        if self.context.settings.validate_fhir:
            validity.check(resource, is_r5=self.renderer.is_r5)
        body = self.format.encode(resource)
        response = Response(body, status, media_type=self.format.media_type)
        mark_cacheable(response.headers, body if complete else None)
        return revalidated(self.request, response)

    def respond_with(self, resource: Resource, issues: Sequence[Issue]) -> Response:
        """A read has no place for an outcome beside it: what is missing is told in Warning headers."""
        response = self.respond(resource, complete=not issues)
        for warning in problems.warnings(self.request, issues, self.root):
            response.headers.append("Warning", warning)
        return response


Answer = Callable[[FhirRequest], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


def handler(version: str | None, answer: Answer, *, negotiates: bool = True) -> Endpoint:
    """A route's endpoint; `version` is that of its root, None where the caller chooses. One that gives no FHIR resource does
    not negotiate which."""

    async def handle(request: Request) -> Response:
        context = context_of(request)
        form = negotiated(request, version) if negotiates else FhirFormat(version or "4.0")
        estate, patients = request.scope["estate"], request.app.state.patients
        renderer = Renderer(form.is_r5, context.base, estate.issuers, patients, estate.time_zones)
        root = context.base + request.scope["root_path"].removeprefix(request.scope.get("app_root_path", ""))
        return await answer(FhirRequest(request, context, renderer, root, form))

    return handle


def posted(endpoint: Endpoint) -> Endpoint:
    """The same search by POST: the form's parameters after those of the query, as if they had come by GET (FHIR R4 http 3.1.0.9).

    Answers 415 to another body than a form. Raises TooLarge, and InvalidQuery for a form that is not percent-encoded.
    """

    async def handle(request: Request) -> Response:
        return await endpoint(Request(as_get(request.scope, await _form(request)), request.receive))

    return handle


async def _form(request: Request) -> bytes:
    """The body, which may be absent."""
    body = await received.whole(request, _LARGEST_FORM, f"a search form may have {_LARGEST_FORM} bytes")
    if body and parse_media_type(request.headers.get("content-type", "")).essence != _FORM:
        raise HTTPException(415)
    if not body.isascii():
        raise InvalidQuery("the form is not percent-encoded")
    return body.strip()


def as_get(scope: Scope, form: bytes) -> Scope:
    """The scope of the GET that asks for the same; no validators, since a POST is not answered with 304."""
    kept = [
        header for header in scope["headers"] if header[0] not in (b"if-none-match", b"content-type", b"content-length")
    ]
    query = b"&".join(filter(None, (scope["query_string"], form)))
    return {**scope, "method": "GET", "query_string": query, "headers": kept}
