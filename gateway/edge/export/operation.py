"""`$export` (FHIR Bulk Data Access 2.0.0): begins jobs, says how they stand, gives their files, ends them; to their owner only."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.cache import bodies
from gateway.edge import problems, received
from gateway.edge.export import pages, requested
from gateway.edge.export.requested import NDJSON, OF_A_PATIENT, TYPES
from gateway.edge.fhir.imagingstudy import Resource
from gateway.edge.fhir.request import FhirRequest, handler
from gateway.edge.ratelimit import Buckets
from gateway.errors import Forbidden, InvalidQuery, MethodNotAllowed, NotFound, TooManyRequests
from gateway.exporting.engine import Engine
from gateway.store.exports import FAILED, File, Job, Step
from gateway.telemetry import request_id

_POLLS_A_SECOND, _POLLS_AT_ONCE = 1.0, 10
_LONGEST_WAIT = 30


def routes(version: str | None) -> list[BaseRoute]:
    """The routes of one root, to stand before those of the resources."""

    def route(path: str, answer: Callable[[FhirRequest], Awaitable[Response]], name: str, *methods: str) -> Route:
        begins = answer is _begin
        return Route(path, handler(version, answer, negotiates=begins), methods=list(methods), name=name)

    return [
        route("/$export", _begin, "export", "GET", "POST"),
        route("/Patient/$export", _begin, "export", "GET", "POST"),
        route("/$export/{job}", _stand, "export-status", "GET"),
        route("/$export/{job}", _delete, "export-delete", "DELETE"),
        route("/$export/{job}/{file}", _file, "export-file", "GET"),
    ]


async def _begin(asked: FhirRequest) -> Response:
    """202 with the address to ask at. Everything that can be refused is refused here."""
    _keep_nothing()
    request, context = asked.request, asked.context
    if request.method == "HEAD":
        raise MethodNotAllowed("an export begins with GET or POST")
    if not context.settings.export_bytes:
        raise NotFound("exports are turned off here (GATEWAY_EXPORT_BYTES)")
    preferred = received.preferences(request)
    if "respond-async" not in preferred:
        raise InvalidQuery("an export takes its time: send the header 'Prefer: respond-async'", parameter="Prefer")
    wanted = await requested.asked_of(request, asked.renderer, lenient=asked.is_lenient)
    types = _types(asked, wanted.types, request.url.path.endswith("/Patient/$export"))
    engine = _engine(request)
    job = _job(asked, types, wanted)
    resources = [(type_, TYPES[type_]) for type_ in types]
    with context.pipeline.exporting("export", context.caller, context.nodes, resources, job.id) as record:
        job.asked["nodes"] = list(record.nodes)
        job.asked["sources"] = context.pipeline.sources_of(record.nodes)
        await engine.begin(job, _room(asked))
    headers = {"Content-Location": f"{asked.root}/$export/{job.id}", "Cache-Control": "no-store"}
    text = "the export has begun; ask at Content-Location how it stands"
    if context.settings.export_directory is None:
        text += "; it is kept in a private directory (GATEWAY_EXPORT_DIRECTORY), which a restart of the gateway loses"
    return _outcome(202, _information(text), headers)


def _types(asked: FhirRequest, wanted: tuple[str, ...] | None, of_patients: bool) -> tuple[str, ...]:
    """The types to export; by default all that the caller may have. Raises Forbidden when that is none."""
    if wanted is not None:
        return wanted
    policy, caller, may = asked.context.pipeline.policy, asked.context.caller, []
    for type_ in OF_A_PATIENT if of_patients else TYPES:
        try:
            policy.require(caller, type_, TYPES[type_])
            may.append(type_)
        except Forbidden:
            continue
    if not may:
        policy.require(caller, "ImagingStudy", "s")
    return tuple(may)


def _job(asked: FhirRequest, types: tuple[str, ...], wanted: requested.Asked) -> Job:
    request, context = asked.request, asked.context
    owner = _owner(asked)
    query = f"?{request.url.query}" if request.url.query else ""
    path = request.url.path.rpartition("/Patient/$export")[1] or "/$export"
    plan = {
        "request": f"{asked.root}{path}{query}",
        "request_id": request_id.get(),
        "is_r5": asked.renderer.is_r5,
        "profile": asked.profile.name,
        "base": context.base,
        "types": list(types),
        "filters": wanted.filters,
        "patients": wanted.patients,
        "known": [[key.issuer, key.id] for key in wanted.known],
        "elements": wanted.elements,
        "ignored": wanted.ignored,
        "page": context.settings.export_page,
        "ids": pages.ids_mark(request.app.state.cursor_secret),
    }
    return Job(secrets.token_hex(16), owner, plan)


def _owner(asked: FhirRequest) -> dict[str, Any]:
    """Whose an export is: the caller with its rights, and what it may see by them."""
    caller = asked.context.caller
    return {"caller": pages.kept_caller(caller), "view": asked.context.pipeline.views.of(caller).digest}


def _room(asked: FhirRequest) -> Callable[[Sequence[Job]], None]:
    """What raises TooManyRequests where the exports under way are as many as may be, of this caller or of all."""
    settings, caller = asked.context.settings, asked.context.caller

    def require(jobs: Sequence[Job]) -> None:
        whose = [(job.owner["caller"]["subject"], job.owner["caller"]["client"]) for job in jobs]
        if whose.count((caller.subject, caller.client)) >= settings.export_jobs_per_caller:
            text = f"a caller may have {settings.export_jobs_per_caller} exports under way; wait for one, or delete it"
            raise TooManyRequests(text, retry_after=_LONGEST_WAIT)
        if len(jobs) >= settings.export_jobs:
            raise TooManyRequests("as many exports as may be are under way; ask again later", retry_after=_LONGEST_WAIT)

    return require


async def _stand(asked: FhirRequest) -> Response:
    """202 while it goes on, 200 with the manifest when it is over; the error that it ended with, if it did."""
    _keep_nothing()
    job, step = await _own(asked)
    wait = asked.request.app.state.export_polls.wait(hash(job.id))
    if wait:
        raise TooManyRequests("asked too often; Retry-After says when to ask again", retry_after=wait)
    if step.outcome == FAILED:
        error = pages.failure_of(step)
        # Not "transient" nor a kind of it: that would say that the export goes on and is to be asked after again (3.5.2).
        issue = problems.outcome_issue("error", "processing", error.code, error.detail)
        return _outcome(problems.status_of(error), issue, {"Cache-Control": "no-store"})
    if step.outcome:
        return _manifest(asked, job, step)
    headers = {
        "X-Progress": pages.progress(job, step),
        "Retry-After": str(_pause(job)),
        "Cache-Control": "no-store",
    }
    return Response(status_code=202, headers=headers)


def _pause(job: Job) -> int:
    """Seconds to wait before asking again: the longer it takes, the longer."""
    return min(_LONGEST_WAIT, max(1, int((datetime.now(UTC).timestamp() - job.at) / 10)))


def _manifest(asked: FhirRequest, job: Job, step: Step) -> Response:
    """What there is, and what is missing (Bulk Data 3.5.3)."""
    files = pages.files_of(step)

    def told(file: File) -> dict[str, Any]:
        return {"type": file.kind, "url": f"{asked.root}/$export/{job.id}/{file.name}", "count": file.count}

    expires = step.at + asked.context.settings.export_seconds
    manifest = {
        "transactionTime": datetime.fromtimestamp(pages.moment_of(job, step), UTC).isoformat(timespec="milliseconds"),
        "request": job.asked["request"],
        "requiresAccessToken": not asked.context.caller.is_open,
        "output": [told(file) for file in files if file.kind != pages.OUTCOME],
        "error": [told(file) for file in files if file.kind == pages.OUTCOME],
    }
    headers = {"Expires": formatdate(expires, usegmt=True), "Cache-Control": "no-store"}
    return Response(orjson.dumps(manifest), headers=headers, media_type="application/json")


async def _delete(asked: FhirRequest) -> Response:
    """Ends it, and removes what it gave."""
    _keep_nothing()
    job, _ = await _own(asked)
    context = asked.context
    record = context.pipeline.audit.begin("export-delete", context.caller, job.asked["nodes"])
    record.ref, record.outcome = job.id, "success"
    context.pipeline.audit.write(record)
    await _engine(asked.request).cancel(job.id)
    return _outcome(202, _information("the export has ended; what it gave is removed"), {"Cache-Control": "no-store"})


async def _file(asked: FhirRequest) -> Response:
    """One output file, to the owner, while his rights still cover it: the type, and every node that was asked."""
    _keep_nothing()
    job, step = await _own(asked)
    name, context, engine = asked.request.path_params["file"], asked.context, _engine(asked.request)
    found = next((one for one in pages.files_of(step) if one.name == name), None) if step.outcome else None
    if found is None:
        raise NotFound("there is no such file of an export")
    resources = [(found.kind, TYPES[found.kind])] if found.kind in TYPES else []
    ref = f"{job.id}/{name}"
    with context.pipeline.exporting("export-file", context.caller, (), resources, ref) as record:
        there = set(context.pipeline.federation.nodes)
        if not there.intersection(job.asked["nodes"]) <= set(record.nodes):
            raise Forbidden("a node that the export came from may not be asked for this caller any more")
        record.nodes, record.count = tuple(job.asked["nodes"]), found.count
        path = engine.exports.path(job.id, name)
        try:
            there_is = await asyncio.to_thread(path.stat)
        except FileNotFoundError:  # deleted, or expired, meanwhile
            raise NotFound("there is no such file of an export") from None
    return FileResponse(path, media_type=NDJSON, headers={"Cache-Control": "no-store"}, stat_result=there_is)


async def _own(asked: FhirRequest) -> tuple[Job, Step]:
    """The job of the path and how far it is. Raises NotFound, also to everyone but its owner with the same rights."""
    exports = _engine(asked.request).exports
    job = await asyncio.to_thread(exports.job, asked.request.path_params["job"])
    if job is None or job.owner != orjson.loads(orjson.dumps(_owner(asked))):
        raise NotFound("there is no such export, or it has expired")
    try:
        return job, await asyncio.to_thread(exports.last, job.id)
    except FileNotFoundError:
        raise NotFound("there is no such export, or it has expired") from None


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.exporting
    return engine


def _keep_nothing() -> None:
    making = bodies.current()
    if making is not None:
        making.refuse()


def polls() -> Buckets:
    """How often a job may be asked after: once a second, after a burst."""
    return Buckets(_POLLS_A_SECOND, _POLLS_AT_ONCE)


def _information(text: str) -> Resource:
    return problems.outcome_issue("information", "informational", "", text)


def _outcome(status: int, issue: Resource, headers: dict[str, str]) -> Response:
    body = {"resourceType": pages.OUTCOME, "issue": [issue]}
    return Response(orjson.dumps(body), status, headers, "application/fhir+json")
