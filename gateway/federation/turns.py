"""A day of very many studies without a time is told node by node, since any order of them will do: the others are asked for the
page's own studies alone, by UID."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gateway.federation.holders import MOST_COMPLETED
from gateway.federation.horizon import MARGIN
from gateway.federation.node import Node
from gateway.federation.page import Reach, Sort, place_of
from gateway.federation.walk import Walk
from gateway.model.answer import Found
from gateway.model.query import Query
from gateway.model.vocabulary import STUDY_DATE


def may_take_turns(query: Query, nodes: Sequence[Node], reach: Reach) -> bool:
    """Whether a page may be told so: of all studies, or those of some days. Other keys, and the caller's own conditions, are put to
    what all holders say."""
    few = reach.size is not None and reach.skip + reach.size <= MOST_COMPLETED
    is_plain = all(match.path == (STUDY_DATE,) for match in query.matches)
    return few and is_plain and len(nodes) > 1 and not (reach.accepts or reach.ends_with_day)


@dataclass(slots=True)
class Turns:
    """Whose turn it is among the walks of one search."""

    walks: Sequence[Walk]
    sort: Sort
    _taken: int = 0

    def of(self, waiting: list[Walk], missing: Callable[[], int]) -> list[Walk]:
        """Those of the walks that go on now. Of a day that is told node by node as many as may hold the `missing` results; before
        that, whatever of others comes before it."""
        in_turn = [walk for walk in waiting if walk.takes_turns]
        if not in_turn:
            return waiting
        at = min(walk.frontier for walk in in_turn)
        before = [walk for walk in waiting if not walk.takes_turns and walk.frontier <= at]
        if not all(walk.is_at_a_crowded_day for walk in before):
            return before
        return [*before, *self._next([walk for walk in in_turn if walk.frontier == at], missing())]

    def _next(self, in_turn: Iterable[Walk], missing: int) -> list[Walk]:
        """By what is expected of each; as many as so far where nothing tells."""
        chosen: list[Walk] = []
        expected = 0.0
        for walk in sorted(in_turn, key=lambda walk: walk.node.id):
            if chosen and (expected >= MARGIN * missing or (not expected and len(chosen) >= self._taken)):
                break
            chosen.append(walk)
            expected += walk.expected
        self._taken += len(chosen)
        return chosen

    def unasked(self, items: Sequence[Found]) -> list[Node]:
        """The nodes that may hold a study of these, but were not asked for all of its moment."""
        partly = [walk for walk in self.walks if not walk.is_whole]
        moments = {place_of(one, self.sort)[0] for one in items} if partly else ()
        return [walk.node for walk in partly if not all(map(walk.knows, moments))]


def are_as_found(found: Sequence[Found], completed: Sequence[Found], sort: Sort) -> bool:
    """Whether what the other nodes have of a page's studies leaves each where it was found, with what it was found by, and makes
    no two of them one. Otherwise one was told already, or is to be told elsewhere."""
    stay = all(
        place_of(before, sort) == place_of(after, sort) and set(before.holders) <= set(after.holders)
        for before, after in zip(found, completed, strict=True)
    )
    return stay and len(set(map(id, completed))) == len(completed)
