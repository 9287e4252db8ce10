"""One node at work: asks it one question through its mapping and the cache, within its deadline and its permits."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from gateway import metrics
from gateway.cache.answers import Answers, Loaded, Ttl
from gateway.cache.keys import node_digest, query_key
from gateway.errors import NodeError, NodeProtocolError, Unmappable, Unsupported, let_go
from gateway.federation.mentions import of_rows
from gateway.federation.nodes import NodeConfig
from gateway.federation.resilience import Guard, Turn
from gateway.mapping.ask import Asker
from gateway.mapping.read import Reader
from gateway.model.dataset import text
from gateway.model.moments import parse_date
from gateway.model.patient import PatientKey
from gateway.model.query import Operator, Query, Ref
from gateway.model.seam import Adapter, Finds, FindsByTime, Locates, Location, NativeQuery, Report, Shown
from gateway.model.study import Row, from_plain, to_plain
from gateway.model.vocabulary import ALWAYS_RETURNED, STUDY_DATE, STUDY_UID, Level
from gateway.telemetry import looking_up, node_operation, stage
from gateway.wire import maximum

T = TypeVar("T")
_NO_CHANCE = 0.1
"""The share of a search's time in which a question is begun no more."""
_SPEAK_JSON = frozenset({"dicomweb", "fhir"})


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """What one node said to one question: rows not yet matched again, and how far they can be relied on.

    `complete_rows`: an attribute missing from a row has no value. `truncated`: the node stopped at its maximum.
    `unreadable`: records that the mapping could not read. `gaps`: as in a Report. `sample` stands for the rows where that was
    all that was asked for.
    `stale_for`: the seconds since the node said it, where it could not be asked anew; whoever shows it says so.
    """

    rows: tuple[Row, ...] = ()
    complete_rows: bool = False
    truncated: bool = False
    unreadable: int = 0
    sample: tuple[Shown, ...] = ()
    gaps: tuple[str, ...] = ()
    stale_for: float | None = None

    @property
    def given(self) -> int:
        """How many rows it had."""
        return len(self.rows) or len(self.sample)


@dataclass(slots=True)
class Node:
    """A configured node: its adapters for searching and for the pixels, its mapping, the guard before it."""

    config: NodeConfig
    finder: Adapter
    asker: Asker
    reader: Reader
    opener: Callable[[Location], Awaitable[Adapter]]
    retriever: Adapter | None = None
    ttl: Ttl = field(default_factory=Ttl)
    guard: Guard = field(init=False)
    digest: str = field(init=False)
    _finds: bool = field(init=False)
    _most_given: int = 0

    def __post_init__(self) -> None:
        self.guard = Guard(self.config.id, self.config)
        self.digest = node_digest(self.config.id, [self.config.model_dump(mode="json"), self.asker.digest])
        self._finds = isinstance(self.finder, Finds) and self.may("find")

    @property
    def id(self) -> str:
        return self.config.id

    @property
    def source(self) -> str:
        """A digest of where its studies are and how they are read: with another one it is another archive."""
        config = self.config
        place = config.connection.model_dump(mode="json", exclude={"max_connections", "max_associations"})
        return node_digest(config.id, [config.adapter, place, config.issuer, self.asker.digest])

    def may(self, capability: str) -> bool:
        """A configuration narrows what an adapter can do, never widens it."""
        return self.config.capabilities is None or capability in self.config.capabilities

    @property
    def takes_times(self) -> bool:
        """Whether its answer to a range of times is no more than that: it can be asked for a crowded day in parts."""
        return isinstance(self.finder, FindsByTime) and self.finder.takes_times

    @property
    def moves_patient_id(self) -> bool:
        """Whether the mapping takes the patient's id from elsewhere than (0010,0020): the files' own then says nothing."""
        mapping = self.asker.mapping
        entry = mapping.study.get("PatientID")
        return mapping.protocol != "dicom" or (entry is not None and entry.path not in (None, "PatientID"))

    def says_all_of(self, path: tuple[str, ...], complete_rows: bool) -> bool:
        """Whether an attribute missing from a row has no value: the node gives all it has, and the mapping reads it."""
        return complete_rows and (self.asker.mapping.protocol == "dicom" or self.asker.reads(path))

    def says_none_of(self, path: tuple[str, ...], complete_rows: bool) -> bool:
        """Whether an attribute missing from a row is one without a value: as `says_all_of`, and of what QIDO-RS obliges
        every server to give."""
        is_obliged = self.config.adapter == "dicomweb" and len(path) == 1 and path[0] in ALWAYS_RETURNED
        return is_obliged or self.says_all_of(path, complete_rows)

    async def places(self, ref: Ref) -> list[tuple[Adapter, Ref]]:
        """The adapters that have the instances under `ref`, each with its part: the node's own, or those of the addresses
        that it gives, at least one. Raises NodeError."""
        if self.retriever is not None:
            return [(self.retriever, ref)]
        if not isinstance(self.finder, Locates):
            return [(self.finder, ref)]
        finder = self.finder
        locations = await self.asking("locate", lambda _: finder.locate(ref))
        if not locations:
            raise Unsupported(self.id, "gives no address for the instances of this study")
        # Of several addresses for one thing the first serves; one for the whole serves for its parts as well.
        first = {location.ref: location for location in reversed(locations)}
        wanted = [first[ref]] if ref in first else [first[each] for each in dict.fromkeys(one.ref for one in locations)]
        return [(await self.opener(location), location.ref) for location in wanted]

    async def probe(self) -> None:
        """Has the adapter learn what the node can do; what it learns it keeps. A node that fails is down until it answers."""
        self._most_given = 0
        try:
            await self.asking("probe", lambda _: self.finder.probe())
        except NodeError:
            return  # remembered by the guard

    async def ask(
        self,
        query: Query,
        answers: Answers,
        limit: int | None = None,
        patience: float | None = None,
        *,
        samples: bool = False,
        patients: frozenset[PatientKey] = frozenset(),
    ) -> NodeAnswer:
        """The node's rows for `query` at its level, at most `limit` where that is below its own ceiling. With `samples` there may
        be a sample in the place of rows that were cut off. `patients` are those known to be asked about: a purge of them drops
        the answer.

        Raises NodeError; Unsupported when it cannot search at that level. After `patience` seconds, or when the node cannot
        be asked now, an older answer stands in where there is one.
        """
        if not self._finds:
            raise Unsupported(self.id, "cannot be searched")
        most = min(limit or self.config.max_results, self.config.max_results)
        asked = self.asker.ask(query, most, samples=samples and self.reader.as_sent)
        if asked is None:
            return NodeAnswer(complete_rows=True)
        key, ttl = self._key(query, asked), self.ttl.of(_kind(query))
        with stage("cache"):
            load = looking_up(lambda: self._load(asked, query, patients))
            kept = await answers.answer(key, ttl, load, self._read, patience=patience)
        answer: NodeAnswer = kept.value
        return replace(answer, stale_for=kept.age) if kept.is_stale else answer

    def _read(self, plain: Any) -> NodeAnswer:
        return _answer_from_plain(plain, self.id)

    async def forget(self, query: Query, answers: Answers) -> None:
        """Has the node asked anew the next time."""
        asked = self.asker.ask(query, limit=self.config.max_results)
        if asked is not None:
            await answers.forget(self._key(query, asked))

    def _key(self, query: Query, asked: NativeQuery) -> str:
        return query_key(_kind(query), self.digest, asked, *(["undated"] if query.undated else []))

    async def _load(self, asked: NativeQuery, query: Query, patients: frozenset[PatientKey]) -> Loaded:
        answer = await self.asking("find", lambda turn: self._collect(asked, query, turn))
        if await self._hides_some(asked, query, answer):
            answer = replace(answer, truncated=True)
        ttl = self.ttl.of(_kind(query))
        is_nothing = not answer.given and not query.undated  # of an archive that gives all it has, undated rows are few
        may_change_soon = is_nothing or bool(answer.gaps)
        if may_change_soon:
            ttl = min(ttl, self.ttl.negative)
        tags = partial(of_rows, answer.rows, query, patients)
        rows = len(answer.rows) if self.config.adapter in _SPEAK_JSON else None
        return Loaded(
            answer,
            ttl=ttl,
            tags=tags,
            may_be_stale=not may_change_soon,
            to_plain=_answer_to_plain,
            rows=rows,
        )

    async def _collect(self, asked: NativeQuery, query: Query, turn: Turn) -> NodeAnswer:
        rows: list[Row] = []
        given = unreadable = 0
        report: Report | None = None
        clock = asyncio.get_running_loop().time
        async with aclosing_iterator(self.finder.find(asked)) as records:  # type: ignore[attr-defined]
            async for record in records:
                turn.heard_at = clock()
                if isinstance(record, Report):
                    report = record
                    continue
                try:
                    found = self.reader.rows(record, query.level, study=query.study or "", series=query.series or "")
                except Unmappable:
                    unreadable += 1
                    continue
                if query.study or query.series:
                    for row in found:
                        self._check_place(row, query)
                given += len(found)
                # Let go as they come: asked for what has no date, an archive gives all that it has.
                rows += [row for row in found if not _is_dated(row)] if query.undated else found
        if report is None:
            raise NodeProtocolError(self.id, "broke off in the middle of its answer")
        given += len(report.sample)
        self._check_asked(rows, asked, report)
        if unreadable and not given:
            raise NodeProtocolError(self.id, "gave only records that cannot be read")
        metrics.rows_of(self.id).inc(given)
        if query.level is Level.STUDY:
            self._most_given = max(given, self._most_given)
        truncated = report.truncated or self._stops_at(given, asked.limit)
        return NodeAnswer(tuple(rows), report.complete_rows, truncated, unreadable, report.sample, report.gaps)

    def _stops_at(self, count: int, limit: int | None) -> bool:
        """Whether so many rows are a maximum: the one asked for, or the node's own, which it may keep to without a word."""
        own = self.config.node_maximum
        return count >= min(limit or self.config.max_results, own or self.config.max_results)

    async def _hides_some(self, asked: NativeQuery, query: Query, answer: NodeAnswer) -> bool:
        """Whether a DIMSE node stopped at a maximum of its own, for which C-FIND has no word, as far as parts of a round number of
        studies tell, which are asked for alone: one has others, or is no less. Not where it once gave more in one answer."""
        is_told = answer.truncated or query.undated or self.config.adapter != "dimse"
        count = len(answer.rows)
        if is_told or query.level is not Level.STUDY or count < self._most_given or not maximum.smells(count):
            return False
        if maximum.names_as_many(asked, count):
            return False
        rows = [row.attributes for row in answer.rows]
        return await maximum.hides_some(asked, rows, lambda part: self._part(part, query))

    async def _part(self, part: NativeQuery, query: Query) -> list[str]:
        """The studies that the node has of it; none where it does not say."""
        try:
            found = await self.asking("find", lambda turn: self._collect(part, query, turn))
        except NodeError:
            return []
        return [row.study for row in found.rows]

    def _check_place(self, row: Row, query: Query) -> None:
        """A row of another study or series than asked for is a node gone wrong, not an answer."""
        if (query.study and row.study != query.study) or (query.series and row.series != query.series):
            raise NodeProtocolError(self.id, "answered with another study than the one asked for")

    def _check_asked(self, rows: Sequence[Row], asked: NativeQuery, report: Report) -> None:
        """As `_check_place`, for studies asked for by their UIDs, where the node says that it matches those."""
        for match in asked.match:
            if match.of == (STUDY_UID,) and match.path in report.matched and match.operator is not Operator.WILDCARD:
                wanted = {uid.removeprefix("urn:oid:") for uid in match.values}
                if any(row.study not in wanted for row in rows):
                    raise NodeProtocolError(self.id, "answered with another study than the one asked for")

    async def asking(self, operation: str, ask: Callable[[Turn], Awaitable[T]]) -> T:
        """What `ask` gives within the deadline of a search, retries and all. It is asked anew after a transient failure, so
        it must change nothing at the node and keep nothing of a failed try."""
        seconds = self.guard.patience
        ends = asyncio.get_running_loop().time() + self.config.search_deadline
        # Who has waited so long for a place is told that the node is busy, before whoever asked takes it for silent.
        waits = ends - _NO_CHANCE * self.config.search_deadline

        async def once() -> T:
            async with self.working(operation, waits, seconds) as turn, asyncio.timeout_at(ends):
                return await ask(turn)

        return await self.guard.retried(operation, once, ends)

    def working(self, operation: str, ends: float | None = None, patience: float = math.inf) -> Working:
        """Takes one turn at the node in `async with`; translates a deadline into a NodeError; counts the outcome.

        `ends` is as far as it waits for its permit (the loop's clock), by default the deadline of a search from now.
        """
        if ends is None:
            ends = asyncio.get_running_loop().time() + self.config.search_deadline
        return Working(self.guard, operation, ends, patience)


class Working:
    """A turn at a node that is counted, and whose deadline has a name (see `Node.working`, and HeldTurn)."""

    __slots__ = ("_counted", "_guard", "_held", "_turn")

    def __init__(self, guard: Guard, operation: str, ends: float, patience: float) -> None:
        self._guard = guard
        self._held = guard.turn(operation, ends, patience)
        self._counted = node_operation(guard.node, operation)

    async def __aenter__(self) -> Turn:
        self._turn = await self._held.__aenter__()
        self._counted.__enter__()
        return self._turn

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._counted.__exit__(kind, error, trace)
        if not isinstance(error, TimeoutError):
            await self._held.__aexit__(kind, error, trace)
            return
        let_go(error)  # the timeout holds this task
        del trace
        late = self._guard.too_late(self._turn)
        await self._held.__aexit__(type(late), late, None)
        raise late.alone() from None


class aclosing_iterator(Generic[T]):  # noqa: N801 - as contextlib.aclosing, of what may be no generator
    """Closes a generator when its reader leaves early, so that the adapter gives its connection back at once."""

    __slots__ = ("_iterator",)

    def __init__(self, iterator: AsyncIterator[T]) -> None:
        self._iterator = iterator

    async def __aenter__(self) -> AsyncIterator[T]:
        return self._iterator

    async def __aexit__(self, *_: object) -> None:
        close: Callable[[], Awaitable[None]] | None = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()


async def first_then(first: T, rest: AsyncIterator[T]) -> AsyncIterator[T]:
    """An item that was taken already, and what follows it."""
    yield first
    async for one in rest:
        yield one


def _kind(query: Query) -> str:
    """A search for one study by its UID alone is its location, which is remembered longer than an open search."""
    only = query.matches[0] if len(query.matches) == 1 and query.level is Level.STUDY else None
    return "location" if only is not None and only.path == (STUDY_UID,) else "find"


def _is_dated(row: Row) -> bool:
    return parse_date(text(row.attributes, STUDY_DATE)) is not None


def _answer_to_plain(answer: NodeAnswer) -> dict[str, Any]:
    return {
        "rows": [to_plain(row) for row in answer.rows],
        "complete_rows": answer.complete_rows,
        "truncated": answer.truncated,
        "unreadable": answer.unreadable,
        "sample": answer.sample,
        "gaps": answer.gaps,
    }


def _answer_from_plain(plain: Any, node: str) -> NodeAnswer:
    try:
        rows = tuple(from_plain(row) for row in plain["rows"])
        sample = tuple((day, clock) for day, clock in plain["sample"])
        unreadable, gaps = plain["unreadable"], tuple(plain["gaps"])
        return NodeAnswer(rows, plain["complete_rows"], plain["truncated"], unreadable, sample, gaps)
    except (KeyError, TypeError, ValueError):
        raise NodeProtocolError(node, "has an answer in the cache that cannot be read") from None
