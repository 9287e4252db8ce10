"""Keys that a study's holders answer differently: one has the CT, another the RTSTRUCT, and the study is both.

A study answers such a key when any of its holders does, and is then told with all its holders, whether their own part answers or
not (house rules of merging: what exists is the union).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gateway.errors import InvalidQuery
from gateway.federation.page import newest_first
from gateway.model.answer import Found
from gateway.model.patient import PatientKey
from gateway.model.query import Match, Operator, Query
from gateway.model.study import Row
from gateway.model.vocabulary import (
    INSTANCE_AVAILABILITY,
    MODALITIES_IN_STUDY,
    STUDY_INSTANCE_COUNT,
    STUDY_SERIES_COUNT,
    STUDY_UID,
    Level,
    level_of,
    tag,
)

_OF_A_HOLDER = frozenset(
    {MODALITIES_IN_STUDY, tag("SOPClassesInStudy"), STUDY_SERIES_COUNT, STUDY_INSTANCE_COUNT, INSTANCE_AVAILABILITY}
)
_MOST_QUESTIONS = 32
MOST_COMPLETED = 1000
"""Results whose other holders are looked up in one search; the newest go first."""

Held = tuple[str, PatientKey, str]


def questions(query: Query) -> list[Query]:
    """The query once per key that holders answer differently, each with all other keys; or the query alone. Raises InvalidQuery
    for more of them than nodes are to be asked for one search."""
    own = [match for match in query.matches if depends_on_holder(match)]
    if len(own) > _MOST_QUESTIONS:
        name = own[-1].name
        text = (
            f"{name}: at most {_MOST_QUESTIONS} conditions on series and instances, each of which every node is asked"
        )
        raise InvalidQuery(text, parameter=name)
    rest = tuple(match for match in query.matches if match not in own)
    return [replace(query, matches=(*rest, match)) for match in own] or [query]


def depends_on_holder(match: Match) -> bool:
    """Whether two holders of one study may answer the key differently, each rightly for its own part."""
    return match.path[0] in _OF_A_HOLDER or level_of(match.path) is not Level.STUDY


@dataclass(frozen=True, slots=True)
class Hits:
    """The rows that answered each of several questions, in their order."""

    rows: tuple[tuple[Row, ...], ...]

    def studies(self) -> list[str]:
        """The UIDs of studies that answered every question at some holder, newest first."""
        answered = [{row.study for row in rows} for rows in self.rows]
        wanted = set.intersection(*answered) if answered else set()
        return list(dict.fromkeys(row.study for row in newest_first(self.all_rows()) if row.study in wanted))

    def all_rows(self) -> list[Row]:
        """Each node's row of each patient's study once."""
        return list({_held(row): row for rows in self.rows for row in rows}.values())

    def missing(self, studies: Iterable[str], nodes: Iterable[str]) -> dict[str, list[str]]:
        """For each node the studies that it gave no row of."""
        given = {(row.node, row.study) for row in self.all_rows()}
        wanted = {node: [uid for uid in studies if (node, uid) not in given] for node in nodes}
        return {node: uids for node, uids in wanted.items() if uids}

    def answering_all(self, found: Iterable[Found]) -> list[Found]:
        """The patients' studies that answered every question at one of their holders or another."""
        answered = [{_held(row) for row in rows} for rows in self.rows]
        return [one for one in found if all(any(_held(row) in held for row in one.rows) for held in answered)]


def by_uid(uids: Sequence[str]) -> Query:
    """The search for just these studies."""
    return Query(Level.STUDY, (Match((STUDY_UID,), Operator.LIST if len(uids) > 1 else Operator.EXACT, tuple(uids)),))


def _held(row: Row) -> Held:
    return row.node, row.patient, row.study
