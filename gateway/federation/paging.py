"""One page of a search over many nodes: opens each node's answer only as far as the page needs it."""

from __future__ import annotations

import asyncio
import heapq
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

from gateway.federation.fanout import Outcome, outcomes_of, require_an_answer
from gateway.federation.federate import Federation
from gateway.federation.holders import depends_on_holder, questions
from gateway.federation.horizon import Horizon
from gateway.federation.node import Node
from gateway.federation.page import Page, Position, Reach, Sort, day_of, moment_of, ordered, sort_key
from gateway.federation.segments import END, Cutter, Segment, is_broad
from gateway.federation.sighted import Watch
from gateway.federation.walk import Walk
from gateway.model.answer import Found, Issue
from gateway.model.query import Query
from gateway.model.study import Row
from gateway.model.vocabulary import Level
from gateway.wire.threads import apart

_SMALLEST_CEILING = 64
_CROWDED = 2000
_CLEARLY_MORE = 1.5


@dataclass(frozen=True, slots=True)
class Paging:
    """Pages of the federation's searches. `watch` looks at every result before it is judged."""

    federation: Federation
    watch: Watch | None = None

    async def page(self, query: Query, nodes: Sequence[Node], reach: Reach) -> Page:
        """The results that `reach` wants. Raises as Federation.search."""
        if query.level is not Level.STUDY or len(questions(query)) > 1 or query.study:
            answer = await self.federation.search(query, nodes)
            found, issues = ordered(answer.items, reach.sort), answer.issues
            if self.watch is not None:
                await self.watch.learn(found, found, asyncio.get_running_loop().time() + self.federation.deadline)
                issues = tuple(dict.fromkeys((*issues, *self.watch.issues)))
            return _cut(found, reach, issues, END)
        ends = asyncio.get_running_loop().time() + self.federation.deadline
        # Only a broad search in the order of time is opened in parts: any other is fetched whole.
        in_parts = reach.size is not None and reach.sort is not Sort.ID and is_broad(query)
        horizon = _horizon(reach) if in_parts else None
        walks = _walks(self.federation, query, nodes, reach, horizon, in_parts)
        search = _Search(self.federation, query, reach, nodes, walks, in_parts, self.watch, horizon)
        await search.run(ends)
        return await self._completed(search, ends)

    async def _completed(self, search: _Search, ends: float) -> Page:
        """The page with what its own results need beyond the rows found: other holders, counts, one patient per PatientID."""
        issues, reach, nodes = search.issues(), search.reach, search.nodes
        self.federation.check_bare_patient_id(search.query, search.found, nodes, issues)
        page = _cut(search.found, reach, issues, min(search.frontier, search.stopped_at))
        if not page.items:
            page = _cut(search.found, reach, issues, search.frontier)
        if not page.items:
            search.require_an_answer()
        items = list(page.items)
        if search.depends_on_holder and not reach.accepts:
            items, gaps = await self.federation.with_all_holders(items, search.rows(), nodes, ends)
            issues += gaps
        items = await self.federation.count_shared(items, issues, ends)
        page = replace(page, items=tuple(items), issues=tuple(dict.fromkeys(issues)))
        if search.ended_with_day and not page.beyond:
            page = replace(page, last=Position(search.end_of_day, "", ""))
        goes_on = search.is_cut or (bool(page.items) and search.was_stopped)
        return replace(page, more=True, total=None) if goes_on else page


def _is_first(reach: Reach) -> bool:
    """What samples show first is the first page, of all or of what lies behind a day; another is found by cutting into equal
    parts."""
    return reach.after is None or reach.after.ends_day


def _horizon(reach: Reach) -> Horizon | None:
    """Of a page whose end samples can show; one result more than it has tells where it ends."""
    return Horizon(reach.sort, reach.skip + reach.size + 1) if reach.size is not None and _is_first(reach) else None


def _walks(
    federation: Federation, query: Query, nodes: Sequence[Node], reach: Reach, horizon: Horizon | None, in_parts: bool
) -> list[Walk]:
    results = reach.skip + (reach.size or 0)
    cutter = Cutter(query, reach.sort, datetime.now(UTC).date(), _share(results, len(nodes)) if _is_first(reach) else 0)
    ceiling = _ceiling(results, len(nodes)) if in_parts else None
    start = reach.after.moment if reach.after else ""
    return [Walk(node, federation.answers, query, cutter, ceiling, start, horizon) for node in nodes]


def _share(results: int, nodes: int) -> int:
    """The results that one node may give for a page, with a margin: some give more than others. Even, as the ceiling is."""
    return 1 << (max(1, 3 * results // (2 * max(1, nodes))) - 1).bit_length()


def _ceiling(results: int, nodes: int) -> int:
    """The rows that one node may give for a first look: its share of the page, and as many again, more among several.

    Rounded up to a power of two, so that pages of like sizes share what is cached.
    """
    rows = 2 * results if nodes == 1 else 4 * results // max(1, nodes)
    return max(_SMALLEST_CEILING, 1 << max(0, rows - 1).bit_length())


@dataclass(slots=True)
class _Search:
    """The walks of one search. Of the results `found`, in order, those before `frontier` are certain: every node has told
    all it has up to there."""

    federation: Federation
    query: Query
    reach: Reach
    nodes: Sequence[Node]
    walks: list[Walk]
    in_parts: bool
    watch: Watch | None = None
    horizon: Horizon | None = None
    is_cut: bool = False
    merged_rows: int = 0
    is_merged: bool = True
    found: list[Found] = field(default_factory=list)
    gaps: list[Issue] = field(default_factory=list)

    @property
    def frontier(self) -> str:
        return min((walk.frontier for walk in self.walks), default=END)

    @property
    def stopped_at(self) -> str:
        """Where the first node failed in the middle: a page that has something ends before, so that the next one asks again."""
        return min((walk.stopped_at for walk in self.walks), default=END)

    @property
    def was_stopped(self) -> bool:
        """Whether a node failed in the middle: what it had not told yet may be found from where the page ends."""
        return any(walk.failure is not None and walk.has_answered for walk in self.walks)

    def require_an_answer(self) -> None:
        """Raises NoNodeAnswered, or the only node's error, when every node failed, be it in the middle."""
        require_an_answer([Outcome(walk.node, None, walk.failure) for walk in self.walks])

    async def run(self, ends: float) -> None:
        """Opens parts until the page is full and certain, or there is no more; what the deadline `ends` (on the loop's
        clock) cuts off is its node's failure. Raises NoNodeAnswered, or the only node's error, when none gave anything."""
        while waiting := await self._still_waiting(ends):
            waiting = self._short_of_horizon(waiting)
            by_node = {walk.node.id: walk for walk in waiting}
            left = max(0.0, ends - asyncio.get_running_loop().time())
            outcomes = await outcomes_of([walk.node for walk in waiting], partial(_advance, by_node), deadline=left)
            for outcome in outcomes:
                by_node[outcome.node.id].failure = outcome.error
            if not any(walk.has_answered for walk in self.walks):
                require_an_answer(outcomes)
            self.is_merged = False
            if self._is_worth_merging():
                await self._merge(ends)

    def _short_of_horizon(self, waiting: list[Walk]) -> list[Walk]:
        """Those of the walks that have not come as far as the page is expected to reach, if there are any."""
        if self.horizon is None:
            return waiting
        frontier = self.frontier
        self.horizon.move(len(_certain(self.found, self.reach, frontier)), frontier, self._end_of_page())
        return [walk for walk in waiting if not self.horizon.is_behind(walk.frontier)] or waiting

    async def _still_waiting(self, ends: float) -> list[Walk]:
        """As `_waiting`, of all that was opened: nothing ends with rows that were not looked at."""
        waiting = self._waiting()
        if waiting or self.is_merged:
            return waiting
        await self._merge(ends)
        return self._waiting()

    def _is_worth_merging(self) -> bool:
        """While the caller's conditions take so little that the page is not full, many rows are looked at again only when there
        are clearly more of them: each look is at all of them."""
        rows = sum(len(walk.rows) for walk in self.walks)
        goes_on = self.reach.accepts and self._end_of_page() is None and not all(walk.is_done for walk in self.walks)
        return not (goes_on and _CROWDED < rows < _CLEARLY_MORE * self.merged_rows)

    async def _merge(self, ends: float) -> None:
        """Conditions are put to what all holders of a study say together, so they are asked first where they differ."""
        rows = self.rows()
        self.is_merged, self.merged_rows = True, len(rows)
        if self.reach.accepts and self.depends_on_holder:
            self.found = ordered(await apart(len(rows), self.federation.merged, rows), self.reach.sort)
            if self.watch is not None:  # of an archive mostly next to nothing is new
                await self._learn(ends)
                self.found = [one for one in self.found if self.watch.takes(one)]
            merged, self.gaps = await self.federation.with_all_holders(self.found, rows, self.nodes, ends)
            self.found = ordered(merged, self.reach.sort)
            await self._learn(ends)
            return
        margin = 1
        while True:
            near = self._near(rows, margin)
            self.found = ordered(await apart(len(near), self.federation.merged, near), self.reach.sort)
            await self._learn(ends)
            if not self.is_cut or self._end_of_page() is not None:
                return
            margin *= 4  # the caller's conditions took less of it than the page holds

    async def _learn(self, ends: float) -> None:
        if self.watch is not None:
            frontier, sort = self.frontier, self.reach.sort
            end = len(self.found)
            if frontier != END:
                end = bisect_left(self.found, frontier, key=lambda one: sort_key(one, sort)[0])
            await self.watch.learn(self.found, self.found[:end], ends)

    def _near(self, rows: list[Row], margin: int) -> list[Row]:
        """Of very many rows those of the page and the result behind it: the rest of a crowded day is for other pages.

        `margin` times as many as the page has; `is_cut` says that there are more.
        """
        size, after, sort = self.reach.size, self.reach.after, self.reach.sort
        self.is_cut = False
        counts = self.frontier == END and after is None
        if not self.in_parts or size is None or counts or len(rows) < _CROWDED:
            return rows
        placed = [((moment_of(row.attributes, sort), row.study), row) for row in rows]
        if after:
            placed = [one for one in placed if one[0] >= (after.moment, after.study)]
        nearest = heapq.nsmallest(margin * (self.reach.skip + size + 2), {place for place, _ in placed})
        self.is_cut = len(nearest) > 0 and nearest[-1] < max(place for place, _ in placed)
        return [row for place, row in placed if place <= nearest[-1]] if nearest else []

    @property
    def end_of_day(self) -> str:
        """Where the day ends that the page is to end with; '' for none."""
        after = self.reach.after
        if not (self.reach.ends_with_day and self.in_parts) or after is None or after.ends_day:
            return ""
        day = day_of(after.moment, self.reach.sort)
        return Segment(day, day, dated=True).end(self.reach.sort) if day else ""

    @property
    def ended_with_day(self) -> bool:
        """Whether nothing of the page's day is left, and nothing of it may come yet from a node that failed."""
        is_over = "" < self.end_of_day == self.frontier and not self.is_cut
        return is_over and not any(walk.failure for walk in self.walks)

    @property
    def depends_on_holder(self) -> bool:
        return any(map(depends_on_holder, self.query.matches))

    def _waiting(self) -> list[Walk]:
        """The walks that keep the page from being certain: those that have not come past the first result behind it."""
        end = self._end_of_page()
        if self.end_of_day:
            behind = [walk for walk in self.walks if walk.frontier < self.end_of_day]
            if behind or _certain(self.found, self.reach, self.frontier):
                return behind
        return [walk for walk in self.walks if not walk.is_done and (end is None or walk.frontier <= end)]

    def _end_of_page(self) -> str | None:
        """The moment of the first result behind the page, so far as is known; None while the page is not full."""
        size = self.reach.size
        if size is None or self.reach.sort is Sort.ID:
            return None
        results = _wanted(self.found, self.reach)
        return sort_key(results[size], self.reach.sort)[0] if len(results) > size else None

    def rows(self) -> list[Row]:
        return [row for walk in self.walks for row in walk.rows.values()]

    def issues(self) -> list[Issue]:
        failures = [Issue.of(walk.failure) for walk in self.walks if walk.failure]
        seen = self.watch.issues if self.watch is not None else ()
        return [*failures, *(issue for walk in self.walks for issue in walk.issues), *self.gaps, *seen]


async def _advance(walks: Mapping[str, Walk], node: Node) -> None:
    """The node's walk goes on, within the node's own deadline. Raises NodeError."""
    await node.guard.in_time(walks[node.id].advance())


def _wanted(found: Sequence[Found], reach: Reach) -> list[Found]:
    """What follows the position, as far as the caller's conditions take it, less what is to be skipped."""
    rest = reach.after.rest(found, reach.sort) if reach.after else list(found)
    if reach.accepts:
        rest = [one for one in rest if reach.accepts(one)]
    return rest[reach.skip :]


def _certain(found: Sequence[Found], reach: Reach, frontier: str) -> list[Found]:
    """Those of the wanted results that lie before `frontier`."""
    results = _wanted(found, reach)
    if frontier == END:
        return results
    return [one for one in results if sort_key(one, reach.sort)[0] < frontier]


def _cut(found: Sequence[Found], reach: Reach, issues: Sequence[Issue], frontier: str) -> Page:
    """The page out of the ordered results, of which those before `frontier` are certain."""
    results = _certain(found, reach, frontier)
    items = results if reach.size is None else results[: reach.size]
    beyond = len(results) - len(items)
    total = None
    if frontier == END and not issues:
        total = len([one for one in found if reach.accepts is None or reach.accepts(one)])
    last = Position.behind(items[-1], reach.sort) if items else reach.after
    return Page(tuple(items), tuple(issues), beyond > 0 or frontier != END, last, beyond, total)
