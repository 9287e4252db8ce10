"""One page of a search over many nodes: opens each node's answer only as far as the page needs it."""

from __future__ import annotations

import asyncio
import heapq
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

from gateway.cache.sightings import digest
from gateway.errors import NodeTimeout
from gateway.federation.fanout import Outcome, outcomes_of, require_an_answer
from gateway.federation.federate import Federation
from gateway.federation.holders import depends_on_holder, questions
from gateway.federation.horizon import Horizon, Search, search_of
from gateway.federation.node import Node
from gateway.federation.page import Page, Place, Position, Reach, Sort, day_of, moment_of, ordered, place_of, timeless
from gateway.federation.segments import END, LATER, Cutter, Segment, is_broad
from gateway.federation.sighted import Watch
from gateway.federation.turns import Turns, are_as_found, may_take_turns
from gateway.federation.walk import Walk
from gateway.model.answer import Found, Issue
from gateway.model.query import Query
from gateway.model.study import Row
from gateway.model.vocabulary import Level
from gateway.wire.threads import apart

_SMALLEST_CEILING = 52  # an archive that gives one more than that has no maximum of 50, which is a common one
_CROWDED = 2000
_CLEARLY_MORE = 1.5
_PAGES = 4
_ALL: Place = (END, "")
_OTHER_NODES = (
    "other nodes answer than on the page before: results may repeat or be left out; begin again at the first page"
)
_OUT_OF_TIME = "was not looked through to its end within the time of the whole search"
_BEHIND_ALL = (END, END, END)


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
            page = _cut(found, _wanted(found, reach), reach, issues, _ALL)
            gave = {row.node for one in found for row in one.rows}  # a node may do so and say that it is not all
            return _placed(page, query, reach, _answering(nodes, {issue.node for issue in issues} - gave))
        ends = asyncio.get_running_loop().time() + self.federation.deadline
        # Only a broad search in the order of time is opened in parts: any other is fetched whole.
        in_parts = reach.size is not None and reach.sort is not Sort.ID and is_broad(query)
        by_node = in_parts and self.watch is None and may_take_turns(query, nodes, reach)
        search = _search(self.federation, query, nodes, reach, self.watch, in_parts, by_node)
        page = await self._told(search, ends)
        if search.is_told_elsewhere:
            search = _search(self.federation, query, nodes, reach, self.watch, in_parts, by_node=False)
            page = await self._told(search, ends)
        return page

    async def _told(self, search: _Search, ends: float) -> Page:
        """The page with what its own results need beyond the rows found: other holders, counts, one patient per PatientID."""
        await search.run(ends)
        search.note_where_it_ends()
        issues, reach, nodes = search.issues(), search.reach, search.nodes
        self.federation.check_bare_patient_id(search.query, search.found, nodes, issues)
        page = search.page(issues)
        items = list(page.items)
        holders = nodes if search.depends_on_holder and not reach.accepts else search.turns.unasked(items)
        if holders:
            items, gaps = await self.federation.with_all_holders(items, search.rows(), holders, ends)
            issues += gaps
            search.is_told_elsewhere = search.by_node and not are_as_found(page.items, items, reach.sort)
        if not search.is_told_elsewhere:
            items = await self.federation.count_shared(items, issues, ends)
        page = replace(page, items=tuple(items), as_found=page.items, issues=tuple(dict.fromkeys(issues)))
        if search.ended_with_day and not page.beyond:
            page = replace(page, last=Position(search.end_of_day, "", "", ""))
        page = _placed(page, search.query, reach, search.answering)
        goes_on = search.is_cut or (bool(page.items) and search.was_stopped)
        return replace(page, more=True, total=None) if goes_on else page


def _search(
    federation: Federation,
    query: Query,
    nodes: Sequence[Node],
    reach: Reach,
    watch: Watch | None,
    in_parts: bool,
    by_node: bool,
) -> _Search:
    """The search before its first question. `by_node` says that of one moment nodes may be told one after the other."""
    if reach.after and not by_node:
        reach = replace(reach, after=replace(reach.after, in_turn=False))
    horizon = _horizon(reach, by_node, len(nodes)) if in_parts else None
    walks = _walks(federation, query, nodes, reach, horizon, in_parts, by_node)
    return _Search(federation, query, reach, nodes, walks, in_parts, by_node, watch, horizon)


def _is_first(reach: Reach) -> bool:
    """What samples show first is the first page, of all or of what lies behind a day; another is found by cutting into equal
    parts."""
    return reach.after is None or reach.after.ends_day


def _horizon(reach: Reach, may_take_turns: bool, nodes: int) -> Horizon | None:
    """Of a page whose end samples can show; one result more than it has tells where it ends."""
    if reach.size is None or not _is_first(reach):
        return None
    return Horizon(reach.sort, reach.skip + reach.size + 1, may_take_turns, nodes)


def _walks(
    federation: Federation,
    query: Query,
    nodes: Sequence[Node],
    reach: Reach,
    horizon: Horizon | None,
    in_parts: bool,
    by_node: bool,
) -> list[Walk]:
    results = reach.skip + (reach.size or 0)
    cutter = Cutter(
        query, reach.sort, datetime.now(UTC).date(), _share(results, len(nodes)) if results and _is_first(reach) else 0
    )
    ceiling = _ceiling(results, len(nodes)) if in_parts else None
    after, in_turn = reach.after, reach.after is not None and reach.after.in_turn
    first = min((node.id for node in nodes), default="")
    likely = federation.reached.day(_name(query, nodes, reach)) if horizon and _is_of_all(reach) else ""

    def walk(node: Node) -> Walk:
        start = "" if after is None else after.moment + (LATER if in_turn and node.id < after.node else "")
        leads = by_node and node.id == first
        return Walk(node, federation.answers, query, cutter, ceiling, start, horizon, by_node, leads, in_turn, likely)

    return list(map(walk, nodes))


def _is_of_all(reach: Reach) -> bool:
    """Whether it is the first page, and of nearly all that answers the query."""
    return reach.after is None and (reach.accepts is None or reach.takes_most)


def _name(query: Query, nodes: Sequence[Node], reach: Reach) -> Search:
    return search_of(query, (node.id for node in nodes), reach.sort, reach.skip + (reach.size or 0))


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
    by_node: bool = False
    watch: Watch | None = None
    horizon: Horizon | None = None
    is_told_elsewhere: bool = False
    is_cut: bool = False
    merged_rows: int = 0
    is_merged: bool = True
    found: list[Found] = field(default_factory=list)
    gaps: list[Issue] = field(default_factory=list)
    turns: Turns = field(init=False)
    _judged: list[Found] | None = None
    _wanted: list[Found] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.turns = Turns(self.walks, self.reach.sort)

    @property
    def frontier(self) -> Place:
        return min((walk.place for walk in self.walks), default=_ALL)

    @property
    def stopped_at(self) -> Place:
        """Where the first node failed in the middle: a page that has something ends before, so that the next one asks again."""
        return min((walk.stopped_at for walk in self.walks), default=_ALL)

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
            waiting = self.turns.of(self._short_of_horizon(waiting), self._missing)
            by_node = {walk.node.id: walk for walk in waiting}
            outcomes = await self._advanced(by_node, ends - asyncio.get_running_loop().time())
            for outcome in outcomes:
                by_node[outcome.node.id].failure = outcome.error
            if all(walk.failure and not walk.has_answered for walk in self.walks):
                require_an_answer(outcomes)
            self.is_merged = False
            if self._is_worth_merging():
                await self._merge(ends)

    async def _advanced(self, walks: Mapping[str, Walk], left: float) -> list[Outcome[None]]:
        """What came of one step of each walk, with so many seconds left: answers out of the cache would come after the end, too."""
        nodes = [walk.node for walk in walks.values()]
        if left <= 0:
            return [Outcome(node, None, NodeTimeout(node.id, _OUT_OF_TIME)) for node in nodes]
        return await outcomes_of(nodes, partial(_advance, walks), deadline=left)

    def _short_of_horizon(self, waiting: list[Walk]) -> list[Walk]:
        """Those of the walks that have not come as far as the page is expected to reach, if there are any."""
        if self.horizon is None:
            return waiting
        end = self._end_of_page()
        self.horizon.move(len(self._certain()), self.frontier[0], end and end[0])
        return [walk for walk in waiting if not self.horizon.is_behind(walk.frontier)] or waiting

    @property
    def wanted(self) -> list[Found]:
        """As `_wanted`: conditions are put to what was found once, however often is asked how far the page has come."""
        if self._judged is not self.found:
            self._judged, self._wanted = self.found, _wanted(self.found, self.reach)
        return self._wanted

    def _certain(self) -> list[Found]:
        return _certain(self.wanted, self.reach, self.frontier)

    def _missing(self) -> int:
        """How many results the page and the one behind it still lack."""
        return max(1, self.reach.skip + (self.reach.size or 0) + 1 - len(self._certain()))

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
            if frontier != _ALL:
                end = bisect_left(self.found, frontier, key=lambda one: place_of(one, sort))
            self._judged = None
            await self.watch.learn(self.found, self.found[:end], ends)

    def _near(self, rows: list[Row], margin: int) -> list[Row]:
        """Of very many rows those of the page and the result behind it: the rest of a crowded day is for other pages.

        `margin` times as many as the page has; `is_cut` says that there are more.
        """
        size, after, sort = self.reach.size, self.reach.after, self.reach.sort
        self.is_cut = False
        counts = self.frontier == _ALL and after is None
        if not self.in_parts or size is None or counts or len(rows) < _CROWDED:
            return rows
        first = (after.moment, after.node, after.study) if after else ("", "", "")
        placed: dict[str, tuple[str, ...]] = {}
        for row in rows:
            place = (moment_of(row.attributes, sort), row.node, row.study)
            if first <= place < placed.get(row.study, _BEHIND_ALL):
                placed[row.study] = place
        nearest = heapq.nsmallest(margin * (self.reach.skip + size + 2), placed.values())
        self.is_cut = len(nearest) < len(placed)
        wanted = {place[2] for place in nearest}
        return [row for row in rows if row.study in wanted]

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
        is_over = "" < self.end_of_day == self.frontier[0] and not self.is_cut
        return is_over and not any(walk.failure for walk in self.walks)

    @property
    def depends_on_holder(self) -> bool:
        return any(map(depends_on_holder, self.query.matches))

    def _waiting(self) -> list[Walk]:
        """The walks that keep the page from being certain: those that have not come past the first result behind it."""
        end = self._end_of_page()
        if self.end_of_day:
            behind = [walk for walk in self.walks if walk.frontier < self.end_of_day]
            if behind or self._certain():
                return behind
        return [walk for walk in self.walks if not walk.is_done and (end is None or walk.place <= end)]

    def _end_of_page(self) -> Place | None:
        """The place of the first result behind the page, so far as is known; None while the page is not full."""
        size = self.reach.size
        if size is None or self.reach.sort is Sort.ID:
            return None
        results = self.wanted
        return place_of(results[size], self.reach.sort) if len(results) > size else None

    def note_where_it_ends(self) -> None:
        """For the next first page of the same search, where that is likely to find it by one question to each node."""
        if self.horizon is None or not _is_of_all(self.reach) or all(walk.is_whole for walk in self.walks):
            return
        end, has_much = self._end_of_page(), any(walk.has_much for walk in self.walks)
        day = day_of(end[0], self.reach.sort) if end and not has_much else ""
        if not any(walk.failure for walk in self.walks):
            self.federation.reached.note(_name(self.query, self.nodes, self.reach), day)

    def page(self, issues: Sequence[Issue]) -> Page:
        """The page, so far as its rows tell. Raises as `require_an_answer` where it is empty because nodes failed."""
        page = _cut(self.found, self.wanted, self.reach, issues, min(self.frontier, self.stopped_at))
        if not page.items:
            page = _cut(self.found, self.wanted, self.reach, issues, self.frontier)
        if not page.items:
            self.require_an_answer()
        if not all(walk.is_whole or walk.start == "" for walk in self.walks):
            page = replace(page, total=None)
        # What a node that failed did not tell may be passed over for having been told: not in turn any more. What it keeps back it
        # will not tell another time either.
        will_stay = {issue for walk in self.walks for issue in walk.declared}
        if (
            self.by_node
            and page.items
            and page.last
            and will_stay.issuperset(issues)
            and self._is_told_in_turn(page.last.moment)
        ):
            page = replace(page, last=replace(page.last, in_turn=True))
        return page

    def _is_told_in_turn(self, moment_: str) -> bool:
        """Whether what is of a moment is best told node by node from here on: it is already, or is that of very many."""
        sort, enough = self.reach.sort, _PAGES * (self.reach.size or 0)
        day = day_of(moment_, sort)
        if not day:
            return False
        if not all(walk.knows(moment_) for walk in self.walks):
            return True
        rows = self.rows()
        if moment_ != timeless(day, sort) or len(rows) < enough:
            return False
        return sum(moment_of(row.attributes, sort) == moment_ for row in rows) >= enough

    @property
    def answering(self) -> str:
        return _answering(self.nodes, {walk.node.id for walk in self.walks if walk.failure and not walk.has_answered})

    def rows(self) -> list[Row]:
        return [row for walk in self.walks for row in walk.rows.values()]

    def issues(self) -> list[Issue]:
        failures = [Issue.of(walk.failure) for walk in self.walks if walk.failure]
        seen = self.watch.issues if self.watch is not None else ()
        return [*failures, *(issue for walk in self.walks for issue in walk.issues), *self.gaps, *seen]


def _answering(nodes: Sequence[Node], silent: Collection[str]) -> str:
    """A digest of the nodes that gave anything at all."""
    names = sorted(node.id for node in nodes if node.id not in silent)
    return digest(*names)[:12]


def _placed(page: Page, query: Query, reach: Reach, answering: str) -> Page:
    """Its last place is one among the studies of the nodes that answered; said is if those are others than on the page before."""
    last = page.last and replace(page.last, answering=answering)
    before = reach.after.answering if reach.after and reach.sort is not Sort.ID and query.level is Level.STUDY else ""
    if before in ("", answering):
        return replace(page, last=last)
    return replace(page, last=last, issues=(*page.issues, Issue("", "GW209", _OTHER_NODES)), total=None)


async def _advance(walks: Mapping[str, Walk], node: Node) -> None:
    """The node's walk goes on, within the node's own deadline. Raises NodeError."""
    await node.guard.in_time(walks[node.id].advance())


def _wanted(found: Sequence[Found], reach: Reach) -> list[Found]:
    """What follows the position, as far as the caller's conditions take it, less what is to be skipped."""
    rest = reach.after.rest(found, reach.sort) if reach.after else list(found)
    if reach.accepts:
        rest = [one for one in rest if reach.accepts(one)]
    return rest[reach.skip :]


def _certain(wanted: list[Found], reach: Reach, frontier: Place) -> list[Found]:
    """Those of the wanted results that lie before `frontier`."""
    if frontier == _ALL:
        return wanted
    return wanted[: bisect_left(wanted, frontier, key=lambda one: place_of(one, reach.sort))]


def _cut(found: Sequence[Found], wanted: list[Found], reach: Reach, issues: Sequence[Issue], frontier: Place) -> Page:
    """The page out of the ordered results, and of those that are `wanted`, of which those before `frontier` are certain."""
    results = _certain(wanted, reach, frontier)
    items = results if reach.size is None else results[: reach.size]
    beyond = len(results) - len(items)
    total = None
    if frontier == _ALL and not issues:
        total = len([one for one in found if reach.accepts is None or reach.accepts(one)])
    last = Position.behind(items[-1], reach.sort) if items else reach.after
    return Page(tuple(items), tuple(issues), beyond > 0 or frontier != _ALL, last, beyond, total)
