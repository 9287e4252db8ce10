"""A day of very many studies without a time is told node by node, since any order of them will do: the others are asked for the
page's own studies alone, by UID, and what a node before told of it is left out of later pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gateway.federation.holders import MOST_COMPLETED
from gateway.federation.node import Node
from gateway.federation.page import Reach, moment_of, place_of
from gateway.federation.walk import Walk
from gateway.model.answer import Found
from gateway.model.matching import decider
from gateway.model.patient import PatientKey
from gateway.model.query import Query
from gateway.model.study import Row
from gateway.model.vocabulary import Level, level_of

_MARGIN = 2


def may_take_turns(query: Query, nodes: Sequence[Node], reach: Reach) -> bool:
    """Whether a page may be told so. Not where the caller's conditions are put to what all holders say together, or rows do not
    tell what answers the query."""
    few = reach.size is not None and reach.skip + reach.size <= MOST_COMPLETED
    told_by_rows = all(level_of(match.path) is Level.STUDY for match in query.matches)
    return few and told_by_rows and len(nodes) > 1 and not (reach.accepts or reach.ends_with_day)


@dataclass(slots=True)
class Turns:
    """Whose turn it is among the walks of one search."""

    query: Query
    reach: Reach
    walks: Sequence[Walk]
    _taken: int = 0
    _told_before: set[tuple[str, PatientKey]] = field(default_factory=set)

    def of(self, waiting: list[Walk], missing: int) -> list[Walk]:
        """Those of the walks that go on now. Of a day that is told node by node as many as may hold the `missing` results; before
        that, whatever of others comes before it."""
        in_turn = [walk for walk in waiting if walk.takes_turns]
        if not in_turn:
            return waiting
        at = min(walk.frontier for walk in in_turn)
        before = [walk for walk in waiting if not walk.takes_turns and walk.frontier <= at]
        if not all(walk.is_at_a_crowded_day for walk in before):
            return before
        return [*before, *self._next([walk for walk in in_turn if walk.frontier == at], missing)]

    def _next(self, in_turn: Iterable[Walk], missing: int) -> list[Walk]:
        """By what is expected of each; as many as so far where nothing tells."""
        chosen: list[Walk] = []
        expected = 0.0
        for walk in sorted(in_turn, key=lambda walk: walk.node.id):
            if chosen and (expected >= _MARGIN * missing or (not expected and len(chosen) >= self._taken)):
                break
            chosen.append(walk)
            expected += walk.expected
        self._taken += len(chosen)
        return chosen

    def unasked(self, items: Sequence[Found]) -> list[Node]:
        """The nodes that may hold a study of these, but were not asked for all of its moment."""
        moments = {place_of(one, self.reach.sort)[0] for one in items}
        return [walk.node for walk in self.walks if not all(map(walk.knows, moments))]

    def leave_out(self, items: Sequence[Found]) -> bool:
        """Whether some of the completed results were on a page before: a node that was passed over here has the study at the same
        moment. From now on `left` leaves them out."""
        after = self.reach.after
        if after is None or not after.in_turn:
            return False
        decide = decider(self.query)

        def was_told(row: Row) -> bool:
            is_before = row.node < after.node and moment_of(row.attributes, self.reach.sort) == after.moment
            return is_before and decide(row)[0] is True

        told = [one for one in items if any(map(was_told, one.rows))]
        self._told_before.update((one.study, patient) for one in told for patient in one.patients)
        return bool(told)

    def left(self, found: Iterable[Found]) -> list[Found]:
        """Without those that were on a page before."""
        told = self._told_before
        return [one for one in found if not told or not any((one.study, patient) in told for patient in one.patients)]
