"""One node's answer to a search, opened part by part in the order of the results, only as far as it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gateway.cache.answers import Answers
from gateway.errors import BudgetExceeded, NodeError
from gateway.federation.fanout import in_parallel
from gateway.federation.horizon import MARGIN, Horizon, runs_backwards
from gateway.federation.node import Node
from gateway.federation.page import Place, Sort, day_of, moment_at, timeless
from gateway.federation.search import NodeSearch
from gateway.federation.segments import END, Cutter, Segment, can_be_cut, from_moment, lies_elsewhere
from gateway.model.answer import Issue
from gateway.model.matching import decider
from gateway.model.patient import PatientKey
from gateway.model.query import Query
from gateway.model.seam import Shown
from gateway.model.study import Row

_STEPS, _STRIDE, _MOST_STEPS, _DEEP_PARTS = 2, 3, 8, 32
MOST_DEEP_QUESTIONS = 400
"""Parts below a day that one walk may ask a node for; what they do not cover is declared incomplete."""
_SHOWN = 200
_ELSEWHERE = 2
"""Answers that mostly lie on other days than were asked for, after which no more days are asked for."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """What a node showed of a part that is too large: moments, and whether all said that they have no time."""

    moments: list[str]
    is_timeless: bool


@dataclass(slots=True)
class Walk:
    """A search on its way through one node.

    `ceiling` is the rows that the first question may bring, None for all that the node gives. `start` is the moment from
    which on results are wanted; `horizon` is how far the page may reach, as all nodes' walks together show it. `rows` are
    those known so far; of what lies before `frontier` none is missing, but for what `issues` says. `expected` is how many rows
    there may be of the day that is opened in turn, 0 where nothing tells; `is_whole` says that all that the node has is known.
    `declared` are those of the `issues` that say what the node keeps back of a part, however often it is asked.
    """

    node: Node
    answers: Answers
    query: Query
    cutter: Cutter
    ceiling: int | None = None
    start: str = ""
    horizon: Horizon | None = None
    is_by_node: bool = False
    leads: bool = False
    resumes_in_turn: bool = False
    looks_up_to: str = ""
    rows: dict[tuple[str, PatientKey], Row] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)
    declared: set[Issue] = field(default_factory=set)
    failure: NodeError | None = None
    has_answered: bool = False
    expected: float = 0
    is_whole: bool = False
    _began: str = field(init=False)
    _pending: list[Segment] = field(init=False)
    _too_large: dict[Segment, _Sample] = field(default_factory=dict)
    _steps: int = _STEPS
    _shown: dict[str, Sequence[Row]] = field(default_factory=dict)
    _deep_questions: int = 0
    _seen: str = ""
    _is_empty: bool = True
    _is_dense: bool = False
    _elsewhere: int = 0
    _is_heedless: bool = False

    def __post_init__(self) -> None:
        self._began = self.start
        in_parts = self.ceiling is not None and can_be_cut(self.query)
        self._pending = from_moment(self.start, self.sort, self.query) if in_parts else [Segment()]
        likely = self.cutter.split(Segment(), self.looks_up_to, is_crowded=False, waits=False) if in_parts else []
        if likely:
            self._pending, self._steps = likely, 1
        if self.resumes_in_turn and self._pending and self._pending[0].is_day:
            first = self._pending[0]
            if self.start.startswith(timeless(first.low, self.sort)):
                self._pending[0] = replace(first, crowded=True, in_turn=True)

    @property
    def sort(self) -> Sort:
        return self.cutter.sort

    @property
    def is_done(self) -> bool:
        return not self._pending or self.failure is not None

    @property
    def frontier(self) -> str:
        """The moment before which everything is known, in the order of `sort`; END when all is."""
        return END if self.is_done else self._reached

    @property
    def place(self) -> Place:
        """The frontier among all nodes: of its moment, only what nodes before this one have is certain."""
        return (END, "") if self.is_done else self._reached_place

    @property
    def has_much(self) -> bool:
        """Whether it has more than another look of the first kind would show."""
        return self.ceiling is not None and len(self.rows) > 2 * self.ceiling

    @property
    def takes_turns(self) -> bool:
        """Whether the next part is a day that is opened node by node."""
        return not self.is_done and self._pending[0].in_turn

    @property
    def is_at_a_crowded_day(self) -> bool:
        return not self.is_done and self._pending[0].crowded

    def knows(self, moment_: str) -> bool:
        """Whether nothing of a moment is missing: of a day that is opened in turn only once all of it is known, since holders of a
        study may differ in having a time."""
        if self.failure is not None or self.is_whole:
            return True
        is_open = self.takes_turns and self._pending[0].low == day_of(moment_, self.sort)
        return not is_open and self._began <= moment_ < self.frontier

    @property
    def stopped_at(self) -> Place:
        """Where a walk that failed in the middle goes on another time; END where that is not so, or cannot be said."""
        if self.failure is None or not self.has_answered or not self._pending or not self._pending[0].start(self.sort):
            return END, ""
        return self._reached_place

    @property
    def _reached(self) -> str:
        return max(self._pending[0].start(self.sort), self.start)

    @property
    def _reached_place(self) -> Place:
        return self._reached, self.node.id if self.is_by_node else ""

    async def advance(self) -> None:
        """Opens the next parts. Raises NodeError, once the others of them have given what they have."""
        self._narrow()
        self._give_up_deep_parts()
        if not self._pending:
            return
        batch = self._next()
        before = len(self.rows)
        cut: list[list[Segment]] = []
        failure: NodeError | None = None
        for opened in await in_parallel(batch, self._try):
            if isinstance(opened, NodeError):
                failure = opened
                break
            cut.append(opened)
        self._pending[: len(cut)] = [part for parts in cut for part in parts if self._is_wanted(part)]
        self.has_answered = self.has_answered or bool(cut)
        if failure:
            raise failure.alone()
        self._give_up_days()
        self._come_past_the_first_day()
        self._is_empty, self._is_dense = len(self.rows) == before, any(cut)

    def _give_up_days(self) -> None:
        """A node that does not look at the days it is asked for is asked once more, for all that it gives."""
        if self._elsewhere >= _ELSEWHERE and not self._is_heedless:
            self._is_heedless, self._pending = True, [Segment()]

    def _give_up_deep_parts(self) -> None:
        """Of a day that would take more questions than a walk may ask, one word tells that it is not all there."""
        if self._deep_questions < MOST_DEEP_QUESTIONS:
            return
        for day in dict.fromkeys(part.low for part in self._pending if part.is_deep):
            self._declare(Segment(day, day, dated=True))
        self._pending = [part for part in self._pending if not part.is_deep]

    def _narrow(self) -> None:
        """Cuts what was too large, where the page is expected to end; elsewhere, where this node alone shows it."""
        if self._is_heedless:
            return
        narrowed: list[Segment] = []
        for part in self._pending:
            sample = self._too_large.pop(part, None)
            smaller: list[Segment] = []
            if self.horizon and self.horizon.day and part.is_range:
                smaller = self._split(part, self.horizon, sample)
            if sample and not smaller:  # by what it showed alone
                smaller = self.cutter.cut_range(part, sample.moments)
            narrowed += [one for one in smaller if self._is_wanted(one)] or [part]
        self._pending = narrowed
        if self.has_answered:
            self._steps = self._stride(is_empty=self._is_empty, is_dense=self._is_dense)

    def _split(self, part: Segment, horizon: Horizon, sample: _Sample | None) -> list[Segment]:
        if sample is None or not (horizon.in_turn and sample.is_timeless):
            day, is_crowded, waits = horizon.seen_by(sample.moments if sample else None)
            # Its day hides from this node alone what lies before, which may be far more than another node has there.
            return self.cutter.split(part, day, is_crowded, waits, in_steps=waits and not horizon.waits)
        self.expected = horizon.here(sample.moments) * horizon.each
        return self.cutter.split(part, horizon.day, is_crowded=True, waits=True, in_turn=True)

    def _come_past_the_first_day(self) -> None:
        """Once all of the day that the page begins on is known, nothing of it is asked for again."""
        day = day_of(self.start, self.sort)
        if self._pending and self._pending[0].is_everything and day:
            self.start = max(self.start, Segment(day, day, dated=True).end(self.sort))

    def _stride(self, *, is_empty: bool, is_dense: bool) -> int:
        """How many parts are opened at once: as far as the first look saw studies; more over an empty stretch, one where
        they lie thick."""
        seen, self._seen = self._seen, ""
        if seen:
            places = [place for place, part in enumerate(self._pending[:_STRIDE]) if part.holds_day(seen)]
            return places[0] + 1 if places else _STRIDE
        if is_dense:
            return 1
        return min(2 * self._steps, _MOST_STEPS) if is_empty else _STEPS

    def _next(self) -> list[Segment]:
        """The first part, with the ones after it that may be asked for in the same breath."""
        first = self._pending[0]
        if not first.dated or self.ceiling is None:
            most = 1 if first.is_everything or first.undated else _DEEP_PARTS
        else:
            most = _DEEP_PARTS if first.is_deep else self._up_to_horizon() or self._steps
        alike = 1
        while alike < min(most, len(self._pending)) and self._goes_with(first, self._pending[alike]):
            alike += 1
        return self._pending[:alike]

    def _goes_with(self, first: Segment, other: Segment) -> bool:
        return _are_alike(first, other) or (other.in_turn and self._is_due())

    def _is_due(self) -> bool:
        """Whether the first of all nodes opens its day at once: nothing was seen before it, and it has enough for the page."""
        if self.horizon is None or not (self.leads and self.horizon.is_due):
            return False
        return self.expected >= MARGIN * self.horizon.wanted

    def _up_to_horizon(self) -> int:
        """How many parts there are up to it; 0 where nothing tells."""
        if self.horizon is None or not self.horizon.day:
            return 0
        end = self.horizon.end
        return max(1, sum(part.start(self.sort) <= end for part in self._pending[:_STRIDE]))

    def _is_wanted(self, part: Segment) -> bool:
        return not part.ends_before(self.start, self.sort)

    async def _try(self, part: Segment) -> list[Segment] | NodeError:
        try:
            return await self._open(part)
        except NodeError as error:
            return error

    async def _open(self, part: Segment) -> list[Segment]:
        """Asks for a part. Gives the smaller ones that stand for it where it was too large; [] when it is done."""
        is_sampled = part.is_range and self._may_cut(part) and self.cutter.can_cut_range(part)
        limit = self._limit(part) if is_sampled else None
        search = NodeSearch(self.node, self.answers, limit, tells_truncation=False, samples=is_sampled)
        try:
            rows = await search.rows(part.narrowed(self.query))
        except BudgetExceeded:
            if part.timed:  # what has a time cannot be told by it: the day is opened as any other
                self._pending = [replace(one, in_turn=False) for one in self._pending]
                return []
            if not part.is_deep:
                raise
            self._declare(part)  # the node does not know the key that cuts it: nothing else is lost with it
            return []
        finally:
            self._deep_questions += part.is_deep
        self._note(search.issues)
        too_large = search.truncated
        self._elsewhere += too_large and lies_elsewhere(search.sample, part.narrowed(self.query))
        if too_large and is_sampled:
            return self._sampled(part, search.sample)
        smaller = self._cut(part, rows) if too_large and self._may_cut(part) else []
        if not smaller or part.is_day or part.is_deep or part.undated:
            self._keep(rows)
        self.is_whole = self.is_whole or (part.is_everything and not too_large)
        is_short = not smaller if too_large else self._lacks_what_was_shown(part, rows)
        if is_short:
            self._declare(part)
        return smaller

    def _cut(self, part: Segment, rows: Sequence[Row]) -> list[Segment]:
        smaller = self.cutter.cut(part, rows, takes_times=self.node.takes_times)
        if smaller and smaller[0].is_deep and part.is_day:
            self._shown[part.low] = rows[:_SHOWN]
        if smaller:
            self._declare_untold(part, smaller)
        return smaller

    def _declare_untold(self, part: Segment, smaller: Sequence[Segment]) -> None:
        """What has no time, no modality or one that is in no list, or another PatientID than all that were shown, is in none of
        the smaller parts: of that nothing tells."""
        first = smaller[0]
        if first.clock and not part.clock:
            self._declare(part, ", StudyTime unknown")
        if first.modality and not part.modality:
            self._declare(part, ", Modality unknown")
        if first.prefix == part.prefix:
            return
        self._declare(part, "" if part.prefix else ", PatientID unknown")
        if not part.prefix:
            for begin in {one.prefix[0] for one in smaller if len(one.prefix) > 1}:
                self._declare(part.below(prefix=begin))

    def _lacks_what_was_shown(self, part: Segment, rows: Sequence[Row]) -> bool:
        """Whether the node now hides something of it that it showed of the whole day: it does not match as it should."""
        shown = self._shown.get(part.low, ()) if part.is_deep else ()
        if not shown:
            return False
        decide, found = decider(part.narrowed(self.query)), {row.study for row in rows}
        return any(row.study not in found and decide(row)[0] for row in shown)

    def _may_cut(self, part: Segment) -> bool:
        if not can_be_cut(self.query) or self._is_heedless:
            return False
        return part.is_range or self._deep_questions < MOST_DEEP_QUESTIONS

    def _sampled(self, part: Segment, sample: Sequence[Shown]) -> list[Segment]:
        """What stands for days of which the node has more than it gave: themselves, until all nodes have shown where to cut."""
        moments = [moment_at(day, clock or "", self.sort) for day, clock in sample]
        if part.is_everything:
            self._seen = day_of(min((at for at in moments if self.start <= at), default=""), self.sort)
        if self.horizon is None:
            return self.cutter.cut_range(part, moments)
        if runs_backwards(moments):
            return self.cutter.blindly(part)
        self.horizon.saw(moments, part.growth)
        self._too_large[part] = _Sample(moments, all(clock == "" for _, clock in sample))
        return [part]

    def _limit(self, part: Segment) -> int | None:
        """Of what is sampled: a first look costs little, and so does another that will not show all."""
        if self.ceiling is None:
            return None
        most = self.ceiling << part.growth
        if self.horizon is None:
            return most
        is_before = bool(self.horizon.day) and part.ends_before(self.horizon.begin, self.sort)
        expected = self.horizon.expected_before if is_before else self.horizon.expected
        return self.ceiling if expected > most else most

    def _keep(self, rows: Sequence[Row]) -> None:
        self.rows.update({(row.study, row.patient): row for row in rows})

    def _note(self, issues: Sequence[Issue]) -> None:
        self.issues += [issue for issue in issues if issue not in self.issues]

    def _declare(self, part: Segment, rest: str = "") -> None:
        where = f"not all is shown of {part.name}{rest}" if part.name else "narrow the search to see the rest"
        if self._is_heedless:
            where = "it does not look at StudyDate; narrow the search by other keys to see the rest"
        issue = Issue(self.node.id, "GW209", f"node {self.node.id}: stopped at its maximum number of results; {where}")
        self._note([issue])
        if not self._is_heedless:
            self.declared.add(issue)


def _are_alike(one: Segment, other: Segment) -> bool:
    return one.dated == other.dated and one.is_deep == other.is_deep and not (other.undated or other.crowded)
