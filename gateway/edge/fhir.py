"""The FHIR edge: ImagingStudy read and search, Patient, Endpoint and Organization read, CapabilityStatement; R4 and R5."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.edge import negotiation, problems, validity
from gateway.edge.context import Context, context_of, mark_cacheable, revalidated
from gateway.edge.fhirmeta import capability_statement
from gateway.edge.fhirsearch import StudySearch, parse
from gateway.edge.identifiers import uid_of_id
from gateway.edge.imagingstudy import Renderer, Resource
from gateway.edge.qido import query_pairs
from gateway.errors import Conflict, InvalidQuery, NotFound
from gateway.federation.federate import absent
from gateway.federation.page import Cursor, Page, Position, Reach
from gateway.model.answer import Found, Issue
from gateway.model.query import Match, Operator, Query
from gateway.model.vocabulary import ISSUER, PATIENT_ID, Level
from gateway.pipeline import NodeState
from gateway.telemetry import stage

FHIR_JSON = "application/fhir+json"
_SUMMARY_STUDY = (
    "resourceType", "id", "meta", "identifier", "status", "modality", "subject", "encounter", "started", "basedOn",
    "referrer", "endpoint", "numberOfSeries", "numberOfInstances", "description",
)  # fmt: skip
_SUBSETTED = {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}


def routes(version: str | None) -> list[BaseRoute]:
    """The routes of one root; `version` None serves R4 unless the Accept header asks for 5.0."""
    handlers: dict[str, tuple[Callable[[FhirRequest], Awaitable[Response]], str]] = {
        "/metadata": (_metadata, "fhir-metadata"),
        "/ImagingStudy": (_search, "fhir-search"),
        "/ImagingStudy/{id}": (_read_study, "fhir-read"),
        "/Patient/{id}": (_read_patient, "fhir-read-patient"),
        "/Endpoint/{id}": (_read_endpoint, "fhir-read-endpoint"),
        "/Organization/{id}": (_read_organization, "fhir-read-organization"),
    }
    return [Route(path, handler(version, fn), methods=["GET"], name=name) for path, (fn, name) in handlers.items()]


@dataclass(frozen=True, slots=True)
class FhirRequest:
    """One request with what the handlers need: its context, its renderer and the root it was asked at."""

    request: Request
    context: Context
    renderer: Renderer
    root: str

    @stage("render")
    def respond(self, resource: Resource, *, complete: bool = True, status: int = 200) -> Response:
        """A resource in this request's version; a partial answer is not to be stored."""
        if self.context.settings.validate_fhir:
            validity.check(resource, is_r5=self.renderer.is_r5)
        body = orjson.dumps(resource)
        version = "5.0" if self.renderer.is_r5 else "4.0"
        response = Response(body, status, media_type=f"{FHIR_JSON}; fhirVersion={version}")
        mark_cacheable(response.headers, body if complete else None)
        return revalidated(self.request, response)


def handler(  # type: ignore[no-untyped-def]
    version: str | None, answer: Callable[[FhirRequest], Awaitable[Response]], *, negotiates: bool = True
):
    """The endpoint that answers with `answer`, at a root of this version (see `routes`); one that gives no FHIR resource does
    not negotiate which."""

    async def handle(request: Request) -> Response:
        context = context_of(request)
        is_r5 = (negotiation.fhir_version(request, version) if negotiates else version) == "5.0"
        estate, patients = request.scope["estate"], request.app.state.patients
        renderer = Renderer(is_r5, context.base, estate.issuers, patients, estate.time_zones)
        root = context.base + request.scope["root_path"].removeprefix(request.scope.get("app_root_path", ""))
        return await answer(FhirRequest(request, context, renderer, root))

    return handle


async def _metadata(asked: FhirRequest) -> Response:
    return asked.respond(capability_statement(is_r5=asked.renderer.is_r5, root=asked.root))


async def _search(asked: FhirRequest) -> Response:
    context = asked.context
    context.pipeline.policy.require(context.caller, "ImagingStudy", "s")
    lenient = "handling=lenient" in asked.request.headers.get("prefer", "").replace(" ", "")
    pairs = query_pairs(asked.request)
    with stage("plan"):
        search = await parse(pairs, asked.renderer, lenient=lenient)
    for included in sorted(search.includes):
        context.pipeline.policy.require(context.caller, included.capitalize(), "r")
    page = Page()
    if not search.impossible:
        page = await context.pipeline.search(context.caller, search.query, context.nodes, _reach(asked, search))
    issues = (*page.issues, *(Issue("", NotFound.code, text) for text in search.unknown))
    with stage("render"):
        bundle = _bundle(asked, search, page, issues)
    await asked.renderer.patients.flush()
    return asked.respond(bundle, complete=not issues and not search.ignored)


def _size(asked: FhirRequest, search: StudySearch) -> int:
    """How many matches the page has; none where only their number is asked for."""
    count = asked.context.settings.page_size if search.count is None else search.count
    return 0 if search.summary == "count" else count


def _reach(asked: FhirRequest, search: StudySearch) -> Reach:
    """The page asked for; everything where that is what it takes to count."""
    after = _cursor(asked).open(search.cursor, _digest(search, asked)) if search.cursor else None
    size = _size(asked, search)
    counts = size == 0 or search.total == "accurate"
    return Reach(search.sort, None if counts else size, after, accepts=search.accepts if search.conditions else None)


def _cursor(asked: FhirRequest) -> Cursor:
    return Cursor(asked.request.app.state.cursor_secret)


def _bundle(asked: FhirRequest, search: StudySearch, page: Page, issues: Sequence[Issue]) -> Resource:
    """One page as a searchset: matches, what was included, and an outcome for what is missing or was ignored."""
    size = _size(asked, search)
    shown, more = page.items[:size], page.more or len(page.items) > size
    bundle: Resource = {"resourceType": "Bundle", "type": "searchset"}
    estimate = search.total == "estimate" and page.total is None
    if search.total != "none" and not issues and page.total is not None:
        bundle["total"] = page.total
    elif estimate:
        bundle["total"] = len(page.items) + page.beyond
    bundle["link"] = [{"relation": "self", "url": _url(asked, search.used)}]
    if shown and more:
        last = page.last if len(shown) == len(page.items) else Position.behind(shown[-1], search.sort)
        assert last is not None
        after = _cursor(asked).seal(last, _digest(search, asked))
        bundle["link"].append({"relation": "next", "url": _url(asked, [*search.used, ("_cursor", after)])})
    entries = [_match(asked, search, found) for found in shown]
    entries += _included(asked, search, shown)
    entries += _outcome(search, issues, is_estimate=estimate)
    if entries:
        bundle["entry"] = entries
    return bundle


def _digest(search: StudySearch, asked: FhirRequest) -> str:
    """Names the search that a cursor belongs to: its parameters whatever their order, its nodes and its caller's view."""
    parameters = sorted(
        pair for pair in search.used if pair[0] not in ("_count", "_format", "_summary", "_include", "_total")
    )
    known = repr((parameters, asked.context.nodes, asked.context.pipeline.views.of(asked.context.caller).digest))
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def _url(asked: FhirRequest, pairs: Iterable[tuple[str, str]]) -> str:
    query = "&".join(f"{quote(name, safe=':.')}={quote(value, safe=':|,/.-_')}" for name, value in pairs)
    return f"{asked.root}/ImagingStudy" + (f"?{query}" if query else "")


def _match(asked: FhirRequest, search: StudySearch, found: Found) -> Resource:
    resource = summarised(asked.renderer.study(found), search.summary)
    url = f"{asked.root}/ImagingStudy/{resource['id']}"
    return {"fullUrl": url, "resource": resource, "search": {"mode": "match"}}


def summarised(resource: Resource, summary: str) -> Resource:
    """The resource as `_summary` wants it; tagged SUBSETTED when anything may be missing (FHIR R4 search 3.1.1.5.2)."""
    if summary in ("false", "data"):
        return resource
    names: tuple[str, ...] = _SUMMARY_STUDY
    if summary == "text":  # the mandatory elements only: there is no narrative
        names = ("resourceType", "id", "meta", "status", "subject")
    kept = {name: resource[name] for name in names if name in resource}
    return {**kept, "meta": {"tag": [_SUBSETTED]}}


def _included(asked: FhirRequest, search: StudySearch, page: Sequence[Found]) -> list[Resource]:
    entries: dict[str, Resource] = {}
    if "endpoint" in search.includes:
        states = {state.id: state for state in asked.context.pipeline.node_states(asked.context.caller)}
        for node in dict.fromkeys(node for found in page for node in found.holders):
            if node in states:
                entries[f"Endpoint/{node}"] = asked.renderer.endpoint(states[node])
    if "patient" in search.includes:
        for found in page:
            if found.patient.is_named:
                same = [other for other in page if found.patient in other.patients]
                patient = asked.renderer.patient(found.patient, same)
                entries.setdefault(f"Patient/{patient['id']}", patient)
    return [
        {"fullUrl": f"{asked.root}/{reference}", "resource": resource, "search": {"mode": "include"}}
        for reference, resource in entries.items()
    ]


def _outcome(search: StudySearch, issues: Sequence[Issue], *, is_estimate: bool) -> list[Resource]:
    found = [problems.issue_of_node(issue) for issue in issues]
    if is_estimate:
        text = "the total is an estimate: there are at least so many; _total=accurate counts them all"
        found.append(problems.outcome_issue("information", "informational", "GW209", text, "_total"))
    found += [
        problems.outcome_issue(
            "warning", "not-supported", "GW101", f"the search parameter '{name}' is not supported and was ignored", name
        )
        for name in search.ignored
    ]
    outcome = {"resourceType": "OperationOutcome", "issue": found}
    return [{"resource": outcome, "search": {"mode": "outcome"}}] if found else []


async def _read_study(asked: FhirRequest) -> Response:
    identifier, context, renderer = asked.request.path_params["id"], asked.context, asked.renderer
    try:
        uid = uid_of_id(identifier)
    except InvalidQuery:
        raise NotFound("there is no ImagingStudy of that id") from None

    def choose(found: Sequence[Found]) -> Found:
        named = next((one for one in found if renderer.names(identifier, one)), None)
        if named is not None:
            return named
        if uid == identifier:
            ids = {renderer.study_id(one) for one in found}
            choices = ", ".join(f"ImagingStudy/{each}" for each in sorted(ids))
            raise Conflict(
                f"the study {uid} is held for more than one patient; read one of: {choices}", choices=tuple(ids)
            )
        raise NotFound("there is no ImagingStudy of that id")

    answer = await context.pipeline.study(context.caller, uid, context.nodes, choose)
    with stage("render"):
        resource = renderer.tree(answer.items[0])
    if answer.issues:
        resource["meta"] = {"tag": [_SUBSETTED]}
    await renderer.patients.flush()
    return _with_warnings(asked, resource, answer.issues)


def _with_warnings(asked: FhirRequest, resource: Resource, issues: Sequence[Issue]) -> Response:
    """A read has no place for an outcome beside it: what is missing is told in Warning headers."""
    response = asked.respond(resource, complete=not issues)
    for warning in problems.warnings(asked.request, issues, asked.root):
        response.headers.append("Warning", warning)
    return response


async def _read_patient(asked: FhirRequest) -> Response:
    context, identifier = asked.context, asked.request.path_params["id"]
    context.pipeline.policy.require(context.caller, "Patient", "r")
    key = await asked.renderer.patients.key_of(identifier)
    if key is None:
        raise NotFound("there is no Patient of that id; ids are given out by ImagingStudy searches")
    by_id = Match((PATIENT_ID,), Operator.EXACT, (key.id,))
    by_issuer = Match((ISSUER,), Operator.EXACT, (key.issuer,))
    answer = await context.pipeline.search(
        context.caller, Query(Level.STUDY, (by_id, by_issuer)), context.nodes, resource="Patient"
    )
    found = [one for one in answer.items if key in one.patients]
    if not found:
        raise absent("a study of this Patient", answer.issues)
    return _with_warnings(asked, asked.renderer.patient(key, found), answer.issues)


def _node(asked: FhirRequest) -> NodeState:
    context, identifier = asked.context, asked.request.path_params["id"]
    states = {state.id: state for state in context.pipeline.node_states(context.caller)}
    if identifier not in states:
        raise NotFound(f"there is no such {asked.request.url.path.split('/')[-2]}; /nodes lists the nodes")
    return states[identifier]


async def _read_endpoint(asked: FhirRequest) -> Response:
    asked.context.pipeline.policy.require(asked.context.caller, "Endpoint", "r")
    return asked.respond(asked.renderer.endpoint(_node(asked)))


async def _read_organization(asked: FhirRequest) -> Response:
    asked.context.pipeline.policy.require(asked.context.caller, "Organization", "r")
    return asked.respond(asked.renderer.organization(_node(asked)))
