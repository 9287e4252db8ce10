"""One node's answer to a search, complete: pushes what it can, matches every row again, and descends where a row cannot say.

House rules of searching hierarchical and limited nodes. A filter is pushed, matched here, or refused; it is never dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from gateway.cache.answers import Answers
from gateway.errors import BudgetExceeded, NodeProtocolError
from gateway.federation.availability import declared, undeclared
from gateway.federation.fanout import in_parallel
from gateway.federation.node import Node, NodeAnswer
from gateway.model.answer import STALE, Issue, stale_issue
from gateway.model.dataset import Dataset, attribute, text
from gateway.model.matching import Verdict, decider, matches
from gateway.model.patient import PatientKey
from gateway.model.query import Match, Operator, Query
from gateway.model.seam import Shown
from gateway.model.study import Row
from gateway.model.vocabulary import (
    DECIDED_BELOW,
    ISSUER,
    MODALITY,
    SERIES_KEYS,
    STUDY_DATE,
    STUDY_KEYS,
    STUDY_TIME,
    STUDY_UID,
    Level,
    level_of,
)

_SHARE_OF_PATIENCE = 0.8
_FEW_STUDIES = 20
_UIDS_A_QUESTION = 110  # those of a page of 101, as viewers ask for: below what PACS accept, and the 8 KB of an address


@dataclass(slots=True)
class Budget:
    """How much looking below its rows one search may cost one node."""

    node: str
    parents: int
    seconds: float
    _ends: float = field(init=False)

    def __post_init__(self) -> None:
        self._ends = time.monotonic() + self.seconds

    def spend(self, parents: int, key: str) -> None:
        """Raises BudgetExceeded, naming the key that cannot be matched at this node's own level."""
        self.parents -= parents
        if self.parents < 0 or time.monotonic() > self._ends:
            raise BudgetExceeded(
                self.node,
                f"cannot match {key} itself and too many studies would have to be looked through; "
                "add StudyDate, PatientID, AccessionNumber or StudyInstanceUID",
            )


@dataclass(slots=True)
class NodeSearch:
    """One search on one node. `issues` collects what the rows found cannot claim.

    `limit` is a ceiling on the studies of one question, None for the node's own. Whoever sets `tells_truncation` False
    looks at `truncated` (the node, or the ceiling, kept studies back) and says so itself. `sample` is when the studies of a
    truncated answer were, as the node gave them and not matched again; who `samples` gets no rows of it. `ends` is when it is
    given up, on the loop's clock; by default the node's own deadline from now on.
    """

    node: Node
    answers: Answers
    limit: int | None = None
    tells_truncation: bool = True
    samples: bool = False
    sample: Sequence[Shown] = ()
    issues: list[Issue] = field(default_factory=list)
    truncated: bool = False
    ends: float | None = None
    budget: Budget = field(init=False)
    _stale_for: float = 0.0
    _patients: dict[str, frozenset[PatientKey]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.node.config
        self.budget = Budget(self.node.id, config.descent_parents, config.descent_seconds)

    async def rows(self, query: Query) -> tuple[Row, ...]:
        """The rows of `query`'s level that answer every key. Raises NodeError."""
        query = self.node.asker.canonical(query)
        if query.level is Level.STUDY:
            uids = query.match_on(STUDY_UID)
            if uids and len(uids.values) > _UIDS_A_QUESTION:
                return await self._studies_by_uid(query, frozenset(uids.values))
            return await self._studies(query)
        return await self._below_studies(query)

    async def _studies(self, query: Query) -> tuple[Row, ...]:
        upper, lower = _split(query)
        if lower and self.node.config.relational:
            uids = await self._studies_with(upper, lower)
            return await self._studies_by_uid(upper, uids)
        answer = await self._ask(upper, samples=self.samples)
        if self.samples and answer.truncated:
            return ()
        decide = decider(upper)
        decided = [(row, self._decided(decide(row), lower, answer.complete_rows)) for row in answer.rows]
        unsure = [(row, keys) for row, keys in decided if keys]
        verdicts = await in_parallel(unsure, lambda one: self._all_exist_below(*one))
        found = {id(row) for (row, _), verdict in zip(unsure, verdicts, strict=True) if verdict}
        return tuple(row for row, keys in decided if id(row) in found or (keys is not None and not keys))

    async def _studies_with(self, upper: Query, lower: Sequence[Match]) -> frozenset[str]:
        """The studies that have, for each key below STUDY, a row that answers it (each key may have its own row)."""
        found: frozenset[str] | None = None
        for match in lower:
            level = level_of(match.path)
            question = replace(upper, level=level, matches=(match,), return_=())
            answer = await self._ask(question)
            uids = frozenset(row.study for row in answer.rows if self._says(match, row, answer))
            found = uids if found is None else found & uids
        return found or frozenset()

    def _says(self, match: Match, row: Row, answer: NodeAnswer) -> bool:
        verdict = self._verdict(match, row, answer.complete_rows)
        if verdict is None and not self.node.says_all_of(match.path, answer.complete_rows):
            self._undecided(match)
        return bool(verdict)

    def _verdict(self, match: Match, row: Row, complete_rows: bool) -> bool | None:
        """As `matches`; where the node tells all it has, an absent attribute is one without a value."""
        verdict = matches(match, row.attributes)
        is_empty = verdict is None and match.operator is Operator.EMPTY
        return True if is_empty and self.node.says_none_of(match.path, complete_rows) else verdict

    async def _studies_by_uid(self, upper: Query, uids: frozenset[str]) -> tuple[Row, ...]:
        ordered = sorted(uids)
        kept = tuple(match for match in upper.matches if match.path != (STUDY_UID,))

        def question(start: int) -> Query:
            some = tuple(ordered[start : start + _UIDS_A_QUESTION])
            listed = Match((STUDY_UID,), Operator.LIST if len(some) > 1 else Operator.EXACT, some)
            return replace(upper, matches=(*kept, listed))

        starts = range(0, len(ordered), _UIDS_A_QUESTION)
        found = await in_parallel(starts, lambda start: self._studies(question(start)))
        rows = [row for some in found for row in some]
        decide = decider(upper)
        return tuple(row for row in rows if decide(row)[0] is not False)

    def _decided(self, decided: Verdict, lower: Sequence[Match], complete_rows: bool) -> Sequence[Match] | None:
        """The keys that only rows below can decide, none when the row answers all; None when it does not answer."""
        if decided[0] is True:
            return lower
        verdict, undecided = decided[0], self._without_empty(decided[1], complete_rows)
        if verdict is False or any(self.node.says_all_of(match.path, complete_rows) for match in undecided):
            return None
        untold = [match for match in undecided if match.operator is Operator.EMPTY]
        for match in untold:
            self._undecided(match)
        return None if untold else [*undecided, *lower]

    def _without_empty(self, undecided: Iterable[Match], complete_rows: bool) -> list[Match]:
        """Less the keys for attributes without a value that the node would have told, did they have one."""
        says_none_of = self.node.says_none_of
        return [m for m in undecided if m.operator is not Operator.EMPTY or not says_none_of(m.path, complete_rows)]

    async def _all_exist_below(self, row: Row, keys: Iterable[Match]) -> bool:
        for match in keys:
            if not await self._exists_below(row, match):
                return False
        return True

    async def _exists_below(self, row: Row, match: Match) -> bool:
        """Whether a row below `row` answers the key: series first, then instances, within the budget."""
        level, below = DECIDED_BELOW.get(match.path[0], (None, None))
        wanted = replace(match, path=(below, *match.path[1:])) if below else match
        children, complete_rows = row.children, False
        own_level = level_of(wanted.path)
        start = Level.IMAGE if Level.IMAGE in (own_level, level) else Level.SERIES
        if children and own_level is Level.STUDY:  # given with the row, out of the same words
            self._undecided(match)
            return False
        self._note_patients([row])
        if not children or start is Level.IMAGE:
            self.budget.spend(1, match.name)
            query = Query(Level.SERIES, study=row.study, return_=(wanted.path,))
            answer = await self._ask(query)
            children, complete_rows = answer.rows, answer.complete_rows
        children = tuple(child for child in children if _is_patient_of(child, row, self.node))
        verdicts = [self._verdict(wanted, child, complete_rows) for child in children]
        if True in verdicts:
            return True
        if None not in verdicts and children:
            return False
        if not children and own_level is Level.STUDY:  # there is no row below that could say it
            self._undecided(match)
            return False
        return await self._exists_in_instances(row, children, wanted, match)

    async def _exists_in_instances(self, row: Row, series: Iterable[Row], wanted: Match, match: Match) -> bool:
        undecided = False
        for one in series:
            self.budget.spend(1, match.name)
            query = Query(Level.IMAGE, study=row.study, series=one.series, return_=(wanted.path,))
            answer = await self._ask(query)
            mine = [instance for instance in answer.rows if _is_patient_of(instance, row, self.node)]
            verdicts = [self._verdict(wanted, instance, answer.complete_rows) for instance in mine]
            if True in verdicts:
                return True
            undecided |= None in verdicts and not self.node.says_all_of(wanted.path, answer.complete_rows)
        if undecided:
            self._undecided(match)
        return False

    def _undecided(self, match: Match) -> None:
        """No level of the node says: the row is left out, and the answer says so."""
        text = f"node {self.node.id}: does not give {match.name}, so its studies could not be matched on it"
        issue = Issue(self.node.id, BudgetExceeded.code, text)
        if issue not in self.issues:
            self.issues.append(issue)

    async def _below_studies(self, query: Query) -> tuple[Row, ...]:
        """SERIES or IMAGE rows, each completed with its study's patient and attributes."""
        studies_query, below = _parts(query)
        if self.node.config.relational and not studies_query.matches and not query.study:
            return await self._relational(query)
        parents = await self._studies(studies_query)
        by_uid = _by_uid(parents)
        self._note_patients(parents)
        if not query.study:
            self.budget.spend(len(by_uid), query.level.value)
        found = await in_parallel(list(by_uid), lambda uid: self._children(below, uid))
        rows = [row for part in found for row in part]
        owners: Mapping[str, Sequence[Row]] = by_uid
        if any(match.path != (STUDY_UID,) for match in studies_query.matches):
            owners = await self._owners(rows, by_uid)
        completed = self._completed(rows, owners)
        return tuple(row for row in completed if any(row.patient == parent.patient for parent in by_uid[row.study]))

    async def _owners(self, rows: Iterable[Row], by_uid: Mapping[str, Sequence[Row]]) -> Mapping[str, Sequence[Row]]:
        """The patients' studies that rows may belong to, the ones included that the search for studies left out: a row that
        does not name its patient may be of another one who shares the UID."""
        unsure = frozenset(row.study for row in rows if not _names_one_of(row, by_uid[row.study], self.node))
        if not unsure:
            return by_uid
        owners = _by_uid(await self._studies_by_uid(Query(Level.STUDY), unsure))
        return {uid: owners.get(uid) or parents for uid, parents in by_uid.items()}

    async def _relational(self, query: Query) -> tuple[Row, ...]:
        """One question at the level itself; the studies are asked for where a row does not name its patient."""
        answer = await self._ask(query)
        kept = self._answering(query, answer)
        if query.level is Level.IMAGE:
            bare = sorted({row.study for row in kept if MODALITY not in row.attributes})
            own = tuple(match for match in query.matches if level_of(match.path) is Level.SERIES)
            few = [Query(Level.SERIES, study=uid) for uid in bare]
            asked = await in_parallel(few if len(bare) <= _FEW_STUDIES else [Query(Level.SERIES, own)], self._ask)
            kept = _with_series(kept, [series for one in asked for series in one.rows])
        unnamed = frozenset(row.study for row in kept if not row.patient.is_named)
        by_uid = _by_uid(await self._studies_by_uid(Query(Level.STUDY), unnamed) if unnamed else ())
        return tuple(self._completed(kept, by_uid))

    def _completed(self, rows: Iterable[Row], owners: Mapping[str, Sequence[Row]]) -> Iterator[Row]:
        """Each row with its patient; those that could be of two are left out, and the answer says so."""
        for row in rows:
            try:
                yield complete(row, owners.get(row.study, ()), self.node)
            except NodeProtocolError as error:
                self._note(error.code, error.reason)

    async def _children(self, query: Query, study: str) -> list[Row]:
        """The rows of `query`'s level below one study, whosever they are."""
        if query.level is Level.IMAGE and not query.series and not self.node.config.relational:
            series_query = Query(
                Level.SERIES, tuple(m for m in query.matches if level_of(m.path) is Level.SERIES), study
            )
            series = await self._one_level(series_query)
            self.budget.spend(len(series) - 1, query.level.value)
            below = replace(query, matches=tuple(m for m in query.matches if level_of(m.path) is Level.IMAGE))
            under = [replace(below, study=study, series=one.series) for one in series]
            found = await in_parallel(under, self._one_level)
            return _with_series([row for rows in found for row in rows], series)
        rows = await self._one_level(replace(query, study=study))
        if query.level is not Level.IMAGE or query.series or all(MODALITY in row.attributes for row in rows):
            return rows
        return _with_series(rows, (await self._ask(Query(Level.SERIES, study=study))).rows)

    async def _one_level(self, query: Query) -> list[Row]:
        answer = await self._ask(query)
        return self._answering(query, answer)

    def _answering(self, query: Query, answer: NodeAnswer) -> list[Row]:
        decide = decider(query)
        return [row for row in answer.rows if self._row_answers(decide(row), answer)]

    def _row_answers(self, decided: Verdict, answer: NodeAnswer) -> bool:
        verdict, undecided = decided
        rest = self._without_empty(undecided, answer.complete_rows)
        if undecided and not rest:
            return True
        for match in rest:
            if not self.node.says_all_of(match.path, answer.complete_rows):
                self._undecided(match)
        return bool(verdict)

    async def _ask(self, query: Query, *, samples: bool = False) -> NodeAnswer:
        availability = self.node.config.availability
        limit = self.limit if query.level is Level.STUDY else None
        asked = undeclared(query, availability)
        patients = self._patients.get(query.study or "", frozenset())
        answer = await self.node.ask(asked, self.answers, limit, self._patience(), samples=samples, patients=patients)
        if availability:
            answer = replace(answer, rows=tuple(declared(row, availability) for row in answer.rows))
        if answer.stale_for is not None:
            self._note_stale(answer.stale_for)
        if answer.truncated and query.level is Level.STUDY:
            self.truncated = True
            self.sample = answer.sample or [shown(row) for row in answer.rows]
        if answer.truncated and (self.tells_truncation or query.level is not Level.STUDY):
            self._note("GW209", "stopped at its maximum number of results; narrow the search to see the rest")
        for gap in answer.gaps:
            self._note("GW212", gap)
        if answer.unreadable:
            self._note("GW302", f"gave {answer.unreadable} records that its mapping cannot read")
        return answer

    def _note_patients(self, studies: Iterable[Row]) -> None:
        """Whose studies are asked about below: what is kept of the answers is found by them, too."""
        for row in studies:
            known = self._patients.get(row.study, frozenset())
            self._patients[row.study] = known | {row.patient, *row.linked}

    def _patience(self) -> float:
        """How long to wait for the node where an older answer could stand in: what is left, less time to use it."""
        now = asyncio.get_running_loop().time()
        self.ends = now + self.node.config.search_deadline if self.ends is None else self.ends
        return max(0.0, (self.ends - now) * _SHARE_OF_PATIENCE)

    def _note_stale(self, seconds: float) -> None:
        """One issue for all stale answers of the node: the age of the oldest."""
        self._stale_for = max(self._stale_for, seconds)
        self.issues = [issue for issue in self.issues if issue.code != STALE]
        self.issues.append(stale_issue(self.node.id, self._stale_for))

    def _note(self, code: str, text: str) -> None:
        issue = Issue(self.node.id, code, f"node {self.node.id}: {text}")
        if issue not in self.issues:
            self.issues.append(issue)


@lru_cache(256)
def _split(query: Query) -> tuple[Query, Sequence[Match]]:
    """The query with the keys that a study can know, and the keys of lower levels."""
    lower = tuple(match for match in query.matches if level_of(match.path) is not Level.STUDY)
    upper = tuple(match for match in query.matches if match not in lower)
    return replace(query, matches=upper), lower


def _parts(query: Query) -> tuple[Query, Query]:
    """A SERIES or IMAGE query as the study search above it, and what is asked below each study."""
    upper = tuple(match for match in query.matches if level_of(match.path) is Level.STUDY)
    lower = tuple(match for match in query.matches if level_of(match.path) is not Level.STUDY)
    by_uid = (Match((STUDY_UID,), Operator.EXACT, (query.study,)),) if query.study else ()
    upper = (*(match for match in upper if match.path != (STUDY_UID,) or not query.study), *by_uid)
    studies = Query(Level.STUDY, upper, combined_datetime=query.combined_datetime)
    return studies, replace(query, matches=lower)


def shown(row: Row) -> Shown:
    """What a row tells of when its study was."""
    clock = text(row.attributes, STUDY_TIME) if STUDY_TIME in row.attributes else None
    return text(row.attributes, STUDY_DATE), clock


def complete(row: Row, parents: Sequence[Row], node: Node) -> Row:
    """A row below STUDY with its patient and study attributes.

    The row's own patient counts, where it names one; else its study's, unless the study is two patients': then nobody can
    tell whose the row is, and NodeProtocolError is raised rather than guessing.
    """
    if not parents:
        return row
    mine = [parent for parent in parents if _is_patient_of(row, parent, node)]
    if len({parent.patient for parent in mine}) != 1:
        raise NodeProtocolError(node.id, "does not say which patient of a study a series or instance belongs to")
    return _with_study(row, mine[0])


def _by_uid(studies: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for study in studies:
        found[study.study].append(study)
    return found


def _names_one_of(row: Row, parents: Iterable[Row], node: Node) -> bool:
    return row.patient.is_named and any(_is_patient_of(row, parent, node) for parent in parents)


def _is_patient_of(row: Row, parent: Row, node: Node) -> bool:
    """A row without an issuer of its own is given the node's, so the id alone decides then; one without an id fits any."""
    if not row.patient.is_named or row.patient == parent.patient:
        return True
    return row.patient.id == parent.patient.id and row.patient.issuer == node.reader.issuer


def _with_series(rows: Sequence[Row], series: Iterable[Row]) -> list[Row]:
    """Instances with the attributes of their series, which are theirs where the path does not name it (PS3.18 Table
    10.6.3-2). A series that two patients share says nothing."""
    known: dict[tuple[str, str], Dataset | None] = {}
    for one in series:
        known[one.study, one.series] = None if (one.study, one.series) in known else one.attributes
    return [_inheriting(row, known.get((row.study, row.series)) or {}) for row in rows]


def _inheriting(row: Row, series: Dataset) -> Row:
    own = {tag: value for tag, value in series.items() if tag in SERIES_KEYS and tag not in row.attributes}
    return replace(row, attributes={**own, **row.attributes}) if own else row


def _with_study(row: Row, parent: Row) -> Row:
    inherited: Dataset = {tag: value for tag, value in parent.attributes.items() if tag in STUDY_KEYS - SERIES_KEYS}
    attributes = {**inherited, **row.attributes, ISSUER: attribute(ISSUER, [parent.patient.issuer])}
    return replace(row, patient=parent.patient, linked=parent.linked, attributes=attributes)
