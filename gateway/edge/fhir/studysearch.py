"""ImagingStudy search: parsed, asked through the pipeline, and given as one page of a searchset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from starlette.responses import Response

from gateway.cache import freshness
from gateway.edge import problems
from gateway.edge.fhir import studykeys
from gateway.edge.fhir.imagingstudy import Resource
from gateway.edge.fhir.profiles import Profile
from gateway.edge.fhir.request import FhirRequest
from gateway.edge.fhir.searchset import Searchset, digest, outcome_of
from gateway.edge.fhir.studyquery import StudySearch, parse
from gateway.edge.querystring import query_pairs
from gateway.errors import NotFound
from gateway.federation.page import Cursor, Page, Reach
from gateway.model.answer import Found, Issue
from gateway.telemetry import stage


async def search(asked: FhirRequest) -> Response:
    """One page. What nodes could not say is in its OperationOutcome, and such a page is not kept."""
    context = asked.context
    context.pipeline.require("search", context.caller, context.nodes, "ImagingStudy", "s")
    with stage("plan"):
        search = await parse(query_pairs(asked.request), asked.renderer, lenient=asked.is_lenient, lacks=lacks(asked))
    for included in sorted(search.includes):
        context.pipeline.require("search", context.caller, context.nodes, included, "r")
    began = await _begun(asked, search)
    page, issues = await _page(asked, search)
    with stage("render"):
        searchset = _searchset(asked, search, page, issues)
        searchset.updated = began
        bundle = searchset.bundle(asked)
    await asked.renderer.patients.flush()
    return asked.respond(bundle, complete=not issues and not search.ignored and began is None)


def lacks(asked: FhirRequest) -> Mapping[str, str]:
    """The parameters that cannot be served as this gateway is set up, each with the reason."""
    return {} if asked.context.pipeline.seen.sightings.is_kept else studykeys.UNRECORDED


async def _begun(asked: FhirRequest, search: StudySearch) -> int | None:
    """The moment, in milliseconds since the epoch, at which a search by _lastUpdated begins: before any node is asked, so
    that what it does not find is recorded later. None for any other search. Raises RecordUnavailable."""
    return await asked.context.pipeline.seen.sightings.now() if search.updated else None


async def _page(asked: FhirRequest, search: StudySearch) -> tuple[Page, Sequence[Issue]]:
    unknown = [Issue("", NotFound.code, text) for text in search.unknown]
    if search.impossible:
        return Page(), unknown
    context, issues = asked.context, list[Issue]()
    for excluded in search.excluded:
        question = search.question_of(excluded)
        with freshness.asked_anew() if search.updated else nullcontext():
            answering = await context.pipeline.search(context.caller, question, context.nodes)
        search.leave_out(excluded, answering.items, answering.issues)
        issues += answering.issues
    reach = _reach(asked, search)
    size = _size(asked, search)
    page = await context.pipeline.search(context.caller, search.query, context.nodes, reach, distinct=size)
    return page, tuple(dict.fromkeys((*page.issues, *issues, *unknown)))


def _size(asked: FhirRequest, search: StudySearch) -> int:
    """How many matches the page has; none where only their number is asked for."""
    count = asked.context.settings.page_size if search.count is None else search.count
    return 0 if search.summary == "count" else count


def _reach(asked: FhirRequest, search: StudySearch) -> Reach:
    """The page asked for; everything where that is what it takes to count."""
    after = cursor(asked).open(search.cursor, _digest(asked, search)) if search.cursor else None
    size = _size(asked, search)
    counts = size == 0 or search.total == "accurate"
    updated = search.accepts_update if search.updated else None
    accepts = search.accepts if search.conditions else None
    return Reach(
        search.sort, None if counts else size, after, accepts=accepts, updated=updated, takes_most=search.takes_most
    )


def cursor(asked: FhirRequest) -> Cursor:
    """What seals the places of this gateway's pages."""
    return Cursor(asked.request.app.state.cursor_secret)


def _digest(asked: FhirRequest, search: StudySearch) -> str:
    return digest(asked, "ImagingStudy", search.used)


def _searchset(asked: FhirRequest, search: StudySearch, page: Page, issues: Sequence[Issue]) -> Searchset:
    size = _size(asked, search)
    items, more = page.items[:size], page.more or len(page.items) > size
    outcome = outcome_of(issues, search.ignored)
    # Of a later page it would be less than has been shown already.
    is_estimate = search.total == "estimate" and page.total is None and not search.cursor
    if is_estimate:
        outcome.append(_estimated())
    profile = search.profile or asked.profile
    studies = [profile.of(asked.renderer.study(found), is_r5=asked.renderer.is_r5) for found in items]
    if not all(map(profile.is_met_by, studies)):
        outcome.append(_not_met(profile))
    return Searchset(
        "ImagingStudy",
        search.used,
        [search.shown.of(study) for study in studies],
        included(asked, search.includes, items),
        outcome,
        len(page.items) + page.beyond if is_estimate else _total(search, page, issues),
        search.cursor,
        _onward(asked, search, page, items) if items and more else "",
    )


def _total(search: StudySearch, page: Page, issues: Sequence[Issue]) -> int | None:
    return page.total if search.shown.needs_total(search.total) and not issues else None


def _estimated() -> Mapping[str, object]:
    text = "the total is an estimate: there are at least so many; _total=accurate counts them all"
    return problems.outcome_issue("information", "informational", "GW209", text, "_total")


def _not_met(profile: Profile) -> Mapping[str, object]:
    text = f"not every result can meet the profile {profile.url}: those that do say so in meta.profile"
    return problems.outcome_issue("information", "informational", "GW101", text, "_profile")


def _onward(asked: FhirRequest, search: StudySearch, page: Page, items: Sequence[Found]) -> str:
    last = page.last if len(items) == len(page.items) else page.behind(len(items), search.sort)
    assert last is not None
    return cursor(asked).seal(last, _digest(asked, search))


def included(asked: FhirRequest, kinds: set[str], page: Sequence[Found]) -> dict[str, Resource]:
    """What the matches refer to, of the kinds wanted, by reference, each once."""
    entries: dict[str, Any] = {}
    if kinds & {"Endpoint", "Organization"}:
        states = {state.id: state for state in asked.context.pipeline.node_states(asked.context.caller)}
        nodes = [node for node in dict.fromkeys(node for found in page for node in found.holders) if node in states]
        makers = {"Endpoint": asked.renderer.endpoint, "Organization": asked.renderer.organization}
        for kind in sorted(kinds & set(makers)):
            entries |= {f"{kind}/{node}": makers[kind](states[node]) for node in nodes}
    if "Patient" in kinds:
        for found in page:
            if found.patient.is_named:
                same = [other for other in page if found.patient in other.patients]
                patient = asked.renderer.patient(found.patient, same)
                entries.setdefault(f"Patient/{patient['id']}", patient)
    return entries
