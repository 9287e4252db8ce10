"""Errors as HTTP: the one table from error class to status, and the two bodies (problem+json, OperationOutcome)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway import errors
from gateway.edge.fhir import formats
from gateway.errors import GatewayError, NodeError, NoNodeAnswered
from gateway.model.answer import Issue
from gateway.telemetry import log, place_of, request_id

STATUS: dict[type[GatewayError], int] = {
    errors.RequestError: 400,
    errors.NotAcceptable: 406,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Gone: 410,
    errors.Conflict: 409,
    errors.MethodNotAllowed: 405,
    errors.TooLarge: 413,
    errors.IdentityUnavailable: 503,
    errors.AuditUnavailable: 503,
    errors.TooManyRequests: 429,
    errors.UnsupportedMediaType: 415,
    errors.NowhereToStore: 501,
    errors.ImagingBusy: 503,
    errors.RecordUnavailable: 503,
    errors.NodeError: 502,
    errors.NodeUnreachable: 503,
    errors.NodeTimeout: 504,
    errors.NodeBusy: 503,
    errors.Unsupported: 501,
    errors.BudgetExceeded: 413,
    errors.NoNodeAnswered: 503,
    errors.MappingError: 502,
}
# FHIR R4 issue-type codes by status.
_ISSUE_TYPES = {
    400: "invalid", 401: "login", 403: "forbidden", 404: "not-found", 405: "not-supported", 406: "not-supported",
    409: "conflict", 410: "deleted", 413: "too-costly",
    429: "throttled", 501: "not-supported", 502: "transient", 503: "transient", 504: "timeout",
}  # fmt: skip
# What was asked for is not repeated: a path may hold a patient's name.
_REFUSALS: dict[int, tuple[type[GatewayError], str]] = {
    404: (errors.NotFound, "there is no such path; / links to those that there are"),
    405: (errors.MethodNotAllowed, "this path does not take that method"),
}


def status_of(error: GatewayError) -> int:
    """The status of the nearest class in the error's own line of ancestors; where a search was too broad for every node, that
    of one for which it was."""
    if isinstance(error, NoNodeAnswered) and {status_of(failure) for failure in error.failures} == {413}:
        return 413
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return 500


def is_fhir(request: Request) -> bool:
    """Whether the path belongs to the FHIR edge, which answers errors as OperationOutcome."""
    return request.url.path.startswith("/fhir")


async def gateway_error(request: Request, error: Exception) -> Response:
    """Any GatewayError, with what the caller can do next."""
    assert isinstance(error, GatewayError)
    headers = _headers(error)
    issues = _failures(error)
    return render(request, status_of(error), error.code, error.title, error.detail, error.parameter, headers, issues)


def _headers(error: GatewayError) -> dict[str, str]:
    if isinstance(error, errors.Unauthenticated):
        return {"WWW-Authenticate": 'Bearer realm="imaging-gateway"'}
    if isinstance(error, (errors.IdentityUnavailable, errors.AuditUnavailable, errors.RecordUnavailable)):
        return {"Retry-After": "5"}
    if isinstance(error, (errors.TooManyRequests, errors.ImagingBusy)):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    if isinstance(error, NodeError) and status_of(error) in (503, 504):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after or 5)))}
    return {}


def _failures(error: GatewayError) -> tuple[Issue, ...]:
    return tuple(map(Issue.of, error.failures)) if isinstance(error, NoNodeAnswered) else ()


async def http_error(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such route, wrong method) in our form."""
    assert isinstance(error, HTTPException)
    kind, detail = _REFUSALS.get(error.status_code, (errors.RequestError, errors.RequestError.title))
    return render(request, error.status_code, kind.code, kind.title, detail, None, dict(error.headers or {}))


class BrokenOff(Exception):
    """Ends a streamed answer without its closing delimiter, so that no client takes it for whole. Its text is the class of
    the failure behind it."""


async def fault(request: Request, error: Exception) -> Response:
    """A fault of ours: the caller gets the request id, the log gets the class and the place, nobody gets the text.

    An answer that had to be broken off is none.
    """
    if isinstance(error, BrokenOff):
        log().warning("broken off", kind=str(error))
    else:
        log().error("fault", kind=type(error).__name__, reason=place_of(error))
    detail = f"the gateway failed; report the request id {request_id.get()}"
    return render(request, 500, "GW000", "Internal error", detail, None, {})


def render(
    request: Request,
    status: int,
    code: str,
    title: str,
    detail: str,
    parameter: str | None,
    headers: dict[str, str],
    issues: Iterable[Issue] = (),
) -> Response:
    """One error body: OperationOutcome below /fhir, application/problem+json (RFC 9457) elsewhere."""
    if is_fhir(request):
        issue = outcome_issue("error", _ISSUE_TYPES.get(status, "exception"), code, detail, parameter)
        body: dict[str, object] = {"resourceType": "OperationOutcome", "issue": [issue, *map(issue_of_node, issues)]}
        form = formats.of_error(request)
        media_type, content = form.essence, form.encode(body)
    else:
        body = {"type": f"urn:imaging-gateway:error:{code}", "title": title, "status": status, "detail": detail}
        body |= {"code": code, "request_id": request_id.get()}
        body |= {"parameter": parameter} if parameter else {}
        body |= {"nodes": [{"node": i.node, "code": i.code, "detail": i.text} for i in issues]} if issues else {}
        media_type, content = "application/problem+json", orjson.dumps(body)
    headers = {"Cache-Control": "no-store", **headers}
    return Response(content, status, headers, media_type)


def outcome_issue(severity: str, type_: str, code: str, text: str, parameter: str | None = None) -> dict[str, object]:
    """One OperationOutcome.issue; the stable code is a coding ('' for what is no error), the parameter an expression."""
    coding = {"coding": [{"system": "urn:imaging-gateway:error", "code": code}]} if code else {}
    details = {**coding, "text": text}
    issue: dict[str, object] = {"severity": severity, "code": type_, "details": details, "diagnostics": text}
    if parameter:
        issue["expression"] = [f"http.{parameter}"]
    return issue


_MOST_WARNINGS, _MOST_NAMED = 20, 50
"""In an answer, and nodes in the last of them: some 4 KB, which proxies take of a head where nobody told them otherwise."""


def issue_of_node(issue: Issue) -> dict[str, object]:
    """A node's failure inside an answer that stands: a warning, so that the searchset itself is valid."""
    type_ = {
        "GW202": "timeout",
        "GW207": "too-costly",
        "GW209": "incomplete",
        "GW212": "incomplete",
        "GW106": "conflict",
        "GW105": "not-found",
    }.get(issue.code, "transient")
    return outcome_issue("warning", type_, issue.code, issue.text)


def warnings(request: Request, issues: Iterable[Issue], service: str) -> list[str]:
    """`Warning: 299 <service>: "text"` once per issue (PS3.18 8.3.4.5, RFC 7234 5.5), as many as the head of an answer may have:
    the first of each node before others, and the nodes of those that are left out."""
    told = _nodes_in_turn(issues)
    if len(told) > _MOST_WARNINGS:
        told, rest = told[: _MOST_WARNINGS - 1], told[_MOST_WARNINGS - 1 :]
        names = sorted({issue.node for issue in rest if issue.node})
        others = f" and {len(names) - _MOST_NAMED} other nodes" if len(names) > _MOST_NAMED else ""
        of_nodes = f" (of {', '.join(names[:_MOST_NAMED])}{others})" if names else ""
        told.append(Issue("", "", f"{len(rest)} more warnings{of_nodes} are left out; narrow the search"))
    return [warning(issue.text, service) for issue in told]


def _nodes_in_turn(issues: Iterable[Issue]) -> list[Issue]:
    """In their order, but for what a node says again."""
    before: Counter[str] = Counter()
    turns = []
    for issue in issues:
        turns.append((before[issue.node], issue))
        before[issue.node] += bool(issue.node)
    return [issue for _, issue in sorted(turns, key=itemgetter(0))]


def warning(text: str, service: str) -> str:
    """One Warning, of characters that a header may have."""
    plain = text.replace("\\", "").replace('"', "'")
    return f'299 {service} "{"".join(each if " " <= each <= "~" else "?" for each in plain)}"'
