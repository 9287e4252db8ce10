"""How far a page will reach into the archives, as what all its nodes have shown so far lets one expect. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil

from gateway.federation.page import UNDATED, Sort, day_begins, day_ends, day_of
from gateway.model.query import Query
from gateway.model.vocabulary import STUDY_DATE

_LEAST, _GUESSED, _FEW, _CLEARLY, _DENSER = 8, 64, 3, 8, 8
MARGIN = 2
"""As many times what a page lacks as is expected of what is opened for it."""
_REMEMBERED = 1000
_CROWDED, _HUGE = 1000, 8000
"""Rows of all nodes: to look at so many takes about as long as to ask once more, or several times."""


@dataclass(slots=True)
class Horizon:
    """The day up to which nodes are opened for a page of `wanted` results; '' while nothing tells.

    What a node shows of a part that is too large is a sample of it, in no order. How many results one sample stands for, `each`,
    is told by those that are known already; before that it is guessed, and less for samples of samples. A day that `is_crowded`
    holds far more than the page needs; it `waits` for what lies before it, where that may be enough. One that holds very many is
    opened `in_turn`, node by node, where the page `may_take_turns`. `expected` is how many rows each of the `nodes` has up to
    there, on the average, and `expected_before` how many before the day itself.
    """

    sort: Sort
    wanted: int
    may_take_turns: bool = False
    nodes: int = 1
    expected: float = 0
    expected_before: float = 0
    day: str = ""
    is_crowded: bool = False
    waits: bool = False
    in_turn: bool = False
    is_due: bool = False
    each: float = _GUESSED
    _moments: list[str] = field(default_factory=list)
    _generation: int = 0

    def saw(self, moments: Iterable[str], generation: int) -> None:
        """Of samples of samples the last count alone: they are closer to what is looked for."""
        if generation > self._generation:
            self._generation, self._moments = generation, []
        if generation == self._generation:
            self._moments += [each for each in moments if each < UNDATED]

    def move(self, known: int, frontier: str, end: str | None) -> None:
        """Where to go on from `frontier`, before which `known` results lie that the page may have. `end` is the moment of the
        first result behind the page, if so many were found: the page may end before, and not behind it."""
        self._moments.sort()
        passed = bisect_left(self._moments, frontier)
        self.each = max(1.0, known / passed) if passed and known else _GUESSED / _DENSER**self._generation
        place = passed + max(_LEAST, ceil(MARGIN * max(1, self.wanted - known) / self.each)) - 1
        self.day = day_of(min([*self._moments[place : place + 1], *([end] if end else [])], default=""), self.sort)
        self.is_crowded = self.waits = self.in_turn = self.is_due = False
        self.expected = self.expected_before = 0
        if not self.day:
            return
        first = bisect_left(self._moments, self.begin)
        here = bisect_right(self._moments, self.end) - first
        self.is_crowded = here * self.each > max(_CROWDED, 4 * self.wanted)
        is_most = 2 * here > len(self._moments) - passed
        self.in_turn = self.may_take_turns and here * self.each > _HUGE
        self.waits = self.is_crowded and (self.in_turn or first > passed or is_most)
        self.is_due = self.in_turn and first == passed
        self.expected_before = (first - passed) * self.each / self.nodes
        self.expected = self.expected_before + (0 if self.waits else here * self.each / self.nodes)

    @property
    def begin(self) -> str:
        """The moment at which its day begins, in the order of `sort`."""
        return day_begins(self.day, self.sort)

    @property
    def end(self) -> str:
        """The last moment of its day."""
        return day_ends(self.day, self.sort)

    def seen_by(self, shown: Sequence[str] | None) -> tuple[str, bool, bool]:
        """Its day, whether that is crowded at a node that has `shown` these moments of the part in question (None: no such),
        and whether it waits there."""
        if shown is None:
            return self.day, self.is_crowded, self.waits
        here = self.here(shown)
        is_crowded = self.is_crowded and here >= _FEW
        return self.day, is_crowded, is_crowded and (self.waits or 2 * here > len(shown))

    def here(self, shown: Sequence[str]) -> int:
        """How many of a node's moments lie on its day."""
        begin, end = self.begin, self.end
        return sum(begin <= each <= end for each in shown)

    def is_behind(self, frontier: str) -> bool:
        """Whether a node whose frontier that is has been opened as far as this."""
        return self.day != "" and frontier >= (self.begin if self.waits else self.end)


Search = tuple[Hashable, ...]


@dataclass(slots=True)
class Reached:
    """The day on which the first page of a search ended the last time: the next one looks there first, in one round trip."""

    _days: OrderedDict[Search, str] = field(default_factory=OrderedDict)

    def day(self, search: Search) -> str:
        """'' where nothing is known."""
        return self._days.get(search, "")

    def note(self, search: Search, day: str) -> None:
        self._days[search] = day
        self._days.move_to_end(search)
        if len(self._days) > _REMEMBERED:
            self._days.popitem(last=False)


def search_of(query: Query, nodes: Iterable[str], sort: Sort, results: int) -> Search:
    """What is the same for searches whose first pages end on about the same day: of a range of days only where they begin."""
    days = query.match_on(STUDY_DATE)
    begins = days.values[-1 if sort is Sort.NEWEST else 0] if days else ""
    keys = frozenset((match.path, match.operator, match.values) for match in query.matches if match is not days)
    return keys, begins, frozenset(nodes), sort, results.bit_length()


def runs_backwards(shown: Sequence[str]) -> bool:
    """Whether moments come in about the opposite order of the page's, as from an archive that gives what it was given first:
    of where the page begins they show nothing."""
    dated = [each for each in shown if each < UNDATED]
    pairs = list(pairwise(dated))
    down, up = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    return down >= _CLEARLY * max(1, up)
