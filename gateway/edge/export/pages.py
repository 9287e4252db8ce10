"""The steps of an export: a page of studies as lines, and at the end the nodes, and what is missing.

One step is one page of one search. What a step starts from is in the record of the step before, so that any replica can do
it; a line that an earlier step gave is not given again, whatever the nodes say by then.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import orjson

from gateway.cache import freshness
from gateway.edge import problems
from gateway.edge.estate import Estate
from gateway.edge.export import given
from gateway.edge.export.requested import ENDPOINT, ORGANIZATION, PATIENT, STUDY, patients_pair
from gateway.edge.fhir import profiles, validity
from gateway.edge.fhir.imagingstudy import Renderer, Resource
from gateway.edge.fhir.shown import Shown
from gateway.edge.fhir.studyquery import StudySearch, parse
from gateway.errors import BudgetExceeded, Forbidden, GatewayError, NodeError, NoNodeAnswered
from gateway.exporting.engine import Made
from gateway.federation.holders import by_uid, depends_on_holder
from gateway.federation.page import Page, Position, Reach
from gateway.model.answer import Found, Issue
from gateway.model.dataset import text
from gateway.model.moments import parse_date
from gateway.model.patient import PatientKey
from gateway.model.vocabulary import STUDY_DATE, STUDY_UID
from gateway.security.caller import Caller
from gateway.store.exports import Body, Exports, File, Job, Step
from gateway.store.patients import PatientIds

OUTCOME = "OperationOutcome"
_PAUSES = (1.0, 2.0, 4.0)
"""Seconds before a page is asked for again of which a node's part is missing: what hours of work miss is worth a moment."""
_PASSING = ("GW201", "GW202", "GW203", "GW208", "GW210")
_AT_ONCE = 100
_OF_A_CROWDED_DAY = 5
"""Pages that one step takes out of a day that fills whole pages: each step has to have the whole day before it."""


@dataclass(slots=True)
class _State:
    """How far a job has come: which of its searches, behind which result. `studies` and `pages` are counts so far;
    `is_crowded` says that the page before lay within one day; `told` is when the oldest answer was given that was used."""

    walk: int = 0
    after: list[Any] | None = None
    studies: int = 0
    pages: int = 0
    reached: str = ""
    is_crowded: bool = False
    given_up: list[str] = field(default_factory=list)
    issues: list[list[str]] = field(default_factory=list)
    nodes: int = 0
    told: float | None = None


@dataclass(frozen=True, slots=True)
class Walk:
    """One search of an export, and the types that its results are written as."""

    pairs: tuple[tuple[str, str], ...]
    types: tuple[str, ...]


def walks_of(asked: dict[str, Any]) -> list[Walk]:
    """A search for each _typeFilter; a filter of ImagingStudy does not narrow Patient, which then is searched for itself."""
    types, filters = asked["types"], asked["filters"]
    narrowed = tuple(patients_pair(asked["patients"]))
    wanted = tuple(one for one in (STUDY, PATIENT) if one in types)
    if not filters or STUDY not in types:
        return [Walk(narrowed, wanted)] if wanted else []
    walks = [Walk((*((name, value) for name, value in pairs), *narrowed), (STUDY,)) for pairs in filters]
    return [*walks, *([Walk(narrowed, (PATIENT,))] if PATIENT in types else [])]


@dataclass(slots=True, eq=False)
class Pages:
    """Does the steps. `estate` gives the one in force; `secret` keys the Patient ids."""

    exports: Exports
    patients: PatientIds
    secret: bytes
    validates: bool
    estate: Callable[[], Estate]

    async def __call__(self, job: Job, before: Step) -> Made:
        """The next page, or the last step. Raises GatewayError where the job cannot be gone on with."""
        estate, state = self.estate(), _State(**before.state)
        with estate.users:
            doing = _Doing(self, job, estate, caller_of(job))
            doing.check(self.secret)
            walks = walks_of(job.asked)
            if state.walk < len(walks):
                return await doing.page(state, walks[state.walk], is_first=not before.number)
            return await doing.end(state)


def caller_of(job: Job) -> Caller:
    """Who asked, with the rights of that moment; never a token."""
    kept = job.owner["caller"]
    nodes = None if kept["nodes"] is None else frozenset(kept["nodes"])
    return Caller(**{**kept, "scopes": frozenset(kept["scopes"]), "nodes": nodes})


def kept_caller(caller: Caller) -> dict[str, Any]:
    """The caller as a job keeps it: JSON, and the same for the same rights."""
    nodes = None if caller.nodes is None else sorted(caller.nodes)
    named = {"subject": caller.subject, "client": caller.client, "purpose": caller.purpose, "is_open": caller.is_open}
    return {**named, "scopes": sorted(caller.scopes), "nodes": nodes}


def ids_mark(secret: bytes) -> str:
    """Names the secret that the ids of an export are made with, without telling it."""
    return hmac.digest(secret, b"export", hashlib.sha256).hex()[:16]


@dataclass(slots=True)
class _Doing:
    """One step of one job over one estate."""

    pages: Pages
    job: Job
    estate: Estate
    caller: Caller

    def check(self, secret: bytes) -> None:
        """Raises Forbidden where the rest would not fit what is there: another view, other ids."""
        if self.estate.pipeline.views.of(self.caller).digest != self.job.owner["view"]:
            raise Forbidden("what the caller may see has changed since the export began; begin it again")
        if self.job.asked["ids"] != ids_mark(secret):
            raise Forbidden("the gateway's secret has changed since the export began (GATEWAY_SECRET); begin it again")

    @property
    def renderer(self) -> Renderer:
        asked = self.job.asked
        return Renderer(asked["is_r5"], asked["base"], self.estate.issuers, self.pages.patients, self.estate.time_zones)

    @property
    def size(self) -> int:
        """Studies of a page, and of a file."""
        return int(self.job.asked["page"])

    def nodes(self) -> tuple[list[str], list[Issue]]:
        """The nodes of the beginning that may be asked still, and an issue for each other, and for each that is another archive by
        now. Raises Forbidden for none."""
        wanted: list[str] = self.job.asked["nodes"]
        allowed = set(self.estate.pipeline.nodes_of(self.caller, ()))
        there = [node for node in wanted if node in allowed]
        if not there:
            raise Forbidden("none of the nodes that the export began with may be asked any more")
        text_ = "is no longer among the nodes that may be asked; its studies from here on are missing"
        gone = [Issue(node, "GW201", f"node {node}: {text_}") for node in wanted if node not in allowed]
        began, now = self.job.asked.get("sources", {}), self.estate.pipeline.sources_of(there)
        text_ = (
            "is another archive than when the export began, or is read otherwise; some of its studies may be missing"
        )
        changed = [node for node in there if began.get(node, now[node]) != now[node]]
        return there, [*gone, *(Issue(node, "GW209", f"node {node}: {text_}") for node in changed)]

    async def page(self, state: _State, walk: Walk, *, is_first: bool) -> Made:
        for issuer, identifier in self.job.asked.get("known", ()):
            self.pages.patients.id_of(PatientKey(issuer, identifier))
        search = await parse(walk.pairs, self.renderer, lenient=False)
        names, issues = self.nodes()
        answers = freshness.begin()
        try:
            page, wanted = await self._patiently(state, search, walk, names)
        except NodeError as error:
            if is_first:
                raise
            page, wanted = Page(issues=(*_failures(error), _stopped(state))), ()
        issues = [*issues, *page.issues]
        bodies, marks, studies = await self._bodies(wanted, walk.types)
        await self.pages.patients.flush()
        following = _State(
            walk=state.walk if page.more and page.items else state.walk + 1,
            after=list(astuple(page.last)) if page.more and page.items and page.last else None,
            studies=state.studies + studies,
            pages=state.pages + max(1, math.ceil(len(page.items) / self.size)),
            reached=_day(page.items[-1:]) or state.reached,
            is_crowded=self._is_crowded(page),
            given_up=sorted({*state.given_up, *(one.node for one in issues if one.node and one.code in _PASSING)}),
            issues=[[one.node, one.code, one.text] for one in issues],
            nodes=len(self.job.asked["nodes"]),
            told=min(time.time() - answers.age, state.told or math.inf),
        )
        return Made(_json(following), bodies, marks)

    def _is_crowded(self, page: Page) -> bool:
        """Whether the page lay within one day, and more of that may follow."""
        if len(page.items) < self.size or (page.last and page.last.ends_day):
            return False
        return _day(page.items[:1]) == _day(page.items[-1:])

    async def _patiently(
        self, state: _State, search: StudySearch, walk: Walk, names: Sequence[str]
    ) -> tuple[Page, Sequence[Found]]:
        """The page, and those of its results that are wanted; asked for again while a node's part is missing that was not
        given up before. Raises NodeError."""
        for pause in (*_PAUSES, None):
            try:
                page = await self._ask(state, search, walk, names)
                wanted, gaps = await self._left(search, page.items, names)
                page = replace(page, issues=tuple(dict.fromkeys((*page.issues, *gaps))))
            except NodeError as error:
                if pause is None or not any(one.code in _PASSING for one in _failures(error)):
                    raise
            else:
                missing = {one.node for one in page.issues if one.code in _PASSING} - set(state.given_up)
                if pause is None or not missing:
                    return page, wanted
            await asyncio.sleep(pause)
        raise AssertionError("unreachable: the last round returns or raises")

    async def _ask(self, state: _State, search: StudySearch, walk: Walk, names: Sequence[str]) -> Page:
        if search.impossible:
            return Page()
        after = Position(*state.after) if state.after else None
        accepts = search.accepts if search.conditions else None
        # What other holders say is asked for a page's results only; more of them would pass for incomplete.
        takes_more = state.is_crowded and not any(map(depends_on_holder, search.query.matches))
        size = self.size * (_OF_A_CROWDED_DAY if takes_more else 1)
        reach = Reach(search.sort, size, after, accepts=accepts, ends_with_day=takes_more)
        resource = STUDY if STUDY in walk.types else PATIENT
        return await self.estate.pipeline.search(
            self.caller, search.query, names, reach, resource=resource, distinct=size if resource == STUDY else 0
        )

    async def _left(
        self, search: StudySearch, items: Sequence[Found], names: Sequence[str]
    ) -> tuple[Sequence[Found], list[Issue]]:
        """The results without those that the search excludes, as the nodes say of each. Raises NodeError."""
        left, gaps = list(items), list[Issue]()
        for excluded in search.excluded:
            question = search.question_of(excluded)
            others = [match for match in question.matches if match.path != (STUDY_UID,)]
            asked, left = left, []
            for first in range(0, len(asked), _AT_ONCE):  # a node that has to look below its studies may do so for few
                some = asked[first : first + _AT_ONCE]
                theirs = by_uid([one.study for one in some]).matches
                of_these = replace(question, matches=(*others, *theirs))
                answering = await self.estate.pipeline.search(self.caller, of_these, names)
                is_left = search.left_of(excluded, answering.items, answering.issues)
                left += [one for one in some if is_left(one)]
                gaps += answering.issues
                gaps += [_undecided(node) for node in sorted({one.node for one in answering.issues if one.node})]
        return left, gaps

    async def _bodies(self, items: Sequence[Found], types: Sequence[str]) -> tuple[list[Body], list[bytes], int]:
        """The lines that no earlier step gave, their marks, and how many are studies."""
        of_studies = {mark for one in items for mark in given.marks_of(one)} if STUDY in types else set()
        of_patients = await self._lines(PATIENT, self._patients(items)) if PATIENT in types else {}
        asked = of_studies.union(of_patients)
        # Once for both: the marks of all steps are read for it.
        seen = await asyncio.to_thread(self.pages.exports.seen, self.job.id, asked) if asked else set()
        bodies: list[Body] = []
        marks: list[bytes] = []
        for type_ in types:
            lines, new = await self._new_studies(items, seen) if type_ == STUDY else _new_of(of_patients, seen)
            marks += new
            for first in range(0, len(lines), self.size):
                part = lines[first : first + self.size]
                bodies.append(Body(type_, len(part), b"".join(part)))
        return bodies, marks, sum(body.count for body in bodies if body.kind == STUDY)

    async def _new_studies(self, items: Sequence[Found], seen: set[bytes]) -> tuple[list[bytes], list[bytes]]:
        """The lines of studies that no earlier step gave, and their marks."""
        new = given.left(items, seen, self.estate.pipeline.federation.domains)
        lines = await self._lines(STUDY, self._studies(new))
        return list(lines.values()), [mark for one in new for mark in given.marks_of(one)]

    def _studies(self, items: Sequence[Found]) -> Iterable[Resource]:
        is_r5 = bool(self.job.asked["is_r5"])
        profile = profiles.configured(self.job.asked.get("profile", ""), "5.0" if is_r5 else "4.0")
        return (profile.of(self.renderer.study(found), is_r5=is_r5) for found in items)

    def _patients(self, items: Sequence[Found]) -> Iterable[Resource]:
        """Each patient once, as the page's studies describe him: as `_include` does."""
        studies: dict[PatientKey, list[Found]] = {}
        for found in items:
            for key in found.patients:
                studies.setdefault(key, []).append(found)
        named = dict.fromkeys(found.patient for found in items if found.patient.is_named)
        return (self.renderer.patient(key, studies[key]) for key in named)

    async def _lines(self, type_: str, resources: Iterable[Resource]) -> dict[bytes, bytes]:
        """A line by its mark, in order; the event loop has its turn every hundred."""
        lines: dict[bytes, bytes] = {}
        for number, resource in enumerate(resources):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            shown = trimmed(resource, self.job.asked["elements"])
            if self.pages.validates:
                validity.check(shown, is_r5=self.job.asked["is_r5"])
            lines.setdefault(given.mark(type_, resource["id"]), orjson.dumps(shown) + b"\n")
        return lines

    async def end(self, state: _State) -> Made:
        """The nodes as resources, and an OperationOutcome for each thing that is missing: who reads the manifest finds it."""
        steps = await asyncio.to_thread(self.pages.exports.steps, self.job.id)
        issues = list(dict.fromkeys(Issue(*one) for step in steps for one in step.state["issues"]))
        names, gone = self.nodes()
        issues += [issue for issue in gone if issue not in issues]
        with self.estate.pipeline.exporting("export-complete", self.caller, names, (), self.job.id) as record:
            record.issues = tuple(issues)
            bodies = [body for body in await self._of_nodes(names) if body.count]
            files = [file for step in steps for file in step.files]
            record.count = sum(file.count for file in files) + sum(body.count for body in bodies)
            outcomes = [*map(problems.issue_of_node, issues), *map(_ignored, self.job.asked["ignored"])]
            if outcomes:
                lines = (orjson.dumps({"resourceType": OUTCOME, "issue": [one]}) + b"\n" for one in outcomes)
                bodies.append(Body(OUTCOME, len(outcomes), b"".join(lines)))
        done = replace(state, issues=[[one.node, one.code, one.text] for one in gone])
        outcome = "partial" if issues else "complete"
        return Made({**_json(done), "files": [_json(file) for file in files]}, bodies, outcome=outcome)

    async def _of_nodes(self, names: Sequence[str]) -> list[Body]:
        states = [one for one in self.estate.pipeline.node_states(self.caller) if one.id in names]
        makers = {ENDPOINT: self.renderer.endpoint, ORGANIZATION: self.renderer.organization}
        bodies = []
        for type_ in (one for one in makers if one in self.job.asked["types"]):
            lines = await self._lines(type_, map(makers[type_], states))
            bodies.append(Body(type_, len(lines), b"".join(lines.values())))
        return bodies


def _failures(error: NodeError) -> tuple[Issue, ...]:
    return tuple(map(Issue.of, error.failures if isinstance(error, NoNodeAnswered) else (error,)))


def _stopped(state: _State) -> Issue:
    behind = f", behind those of {state.reached}" if state.reached else ""
    return Issue(
        "", "GW209", f"no node answered after page {state.pages}: the studies that follow{behind}, are missing"
    )


def _day(items: Sequence[Found]) -> str:
    """The day of the one study, as people write it; '' where it has none, or there is none."""
    day = parse_date(text(items[0].attributes, STUDY_DATE)) if items else None
    return day.isoformat() if day else ""


def _json(value: Any) -> dict[str, Any]:
    told: dict[str, Any] = orjson.loads(orjson.dumps(value))
    return told


def _undecided(node: str) -> Issue:
    text_ = f"node {node}: could not say which of its studies a :not or :missing leaves out, so some are left out that it may not"
    return Issue(node, BudgetExceeded.code, text_)


def _ignored(told: str) -> Resource:
    return problems.outcome_issue("warning", "not-supported", "GW101", told)


def trimmed(resource: Resource, elements: Sequence[str]) -> Resource:
    """What `_elements` asks for of this type, with what a resource must have; tagged SUBSETTED."""
    type_ = resource["resourceType"]
    wanted = frozenset(one.rpartition(".")[2] for one in elements if one.rpartition(".")[0] in ("", type_))
    return Shown(elements=wanted).of(resource)


def progress(job: Job, step: Step) -> str:
    """How far a job has come, for people; below 100 characters (Bulk Data, X-Progress)."""
    state = _State(**step.state) if step.state else _State(nodes=len(job.asked["nodes"]))
    answering = state.nodes - len(state.given_up)
    told = f"{answering} of {state.nodes} nodes, {state.studies:,} studies in {state.pages} pages"
    return f"{told}, at those of {state.reached}" if state.reached else told


def _new_of(lines: dict[bytes, bytes], seen: set[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Those of the lines whose marks were not seen, and their marks."""
    new = {mark: line for mark, line in lines.items() if mark not in seen}
    return list(new.values()), list(new)


def moment_of(job: Job, step: Step) -> float:
    """The moment up to which nothing is missing: the beginning, or that of an older answer which a node was not asked anew for."""
    return min(job.at, step.state.get("told") or job.at)


def files_of(step: Step) -> list[File]:
    """All files of a job that is over, in the order of its steps."""
    return [*(File(**one) for one in step.state.get("files", ())), *step.files]


def failure_of(step: Step) -> GatewayError:
    """Why a job failed, as the error that it was."""
    return _error_of(step.state["failure"])


def _error_of(told: dict[str, Any]) -> GatewayError:
    kinds = {kind.code: kind for kind in problems.STATUS}
    kind = kinds.get(told["code"], GatewayError)
    error = kind.__new__(kind)
    GatewayError.__init__(error, told["detail"])
    if isinstance(error, NoNodeAnswered):
        error.failures = tuple(map(_error_of, told.get("failures", ())))  # type: ignore[arg-type]
    return error
