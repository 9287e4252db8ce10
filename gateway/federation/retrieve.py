"""A study, series or instance over all its holders: each instance once, from its winner, never a mix of copies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from gateway.cache import freshness
from gateway.errors import NodeError, NodeProtocolError, NotFound
from gateway.federation.fanout import fault_over, in_parallel
from gateway.federation.federate import Federation, absent
from gateway.federation.node import Node, aclosing_iterator, first_then
from gateway.federation.opened import OpenedInstance
from gateway.federation.pixels import Pixels
from gateway.model.answer import Found, Issue
from gateway.model.query import Ref
from gateway.model.seam import FramePart
from gateway.model.study import Row
from gateway.model.vocabulary import Level
from gateway.telemetry import log
from gateway.wire.written import Written

T = TypeVar("T")

__all__ = ["Opened", "OpenedInstance", "OpenedParts", "Piece", "Retrieval", "share_out"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One retrieve: what, from which row's node, and the rows of nodes with an equal copy of exactly the same instances."""

    ref: Ref
    owner: Row
    stand_ins: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True)
class Opened:
    """Instances on their way. `silent` are nodes that might hold more but did not answer; `gaps` is what a holder has and
    did not give, known before the first byte: only that makes the answer a partial one (206). `study` is where they lie."""

    instances: AsyncIterator[OpenedInstance]
    study: Found
    silent: tuple[Issue, ...]
    gaps: tuple[Issue, ...]


@dataclass(frozen=True, slots=True)
class OpenedParts:
    """Frames or bulk data of one instance on their way, the first of them there; `silent` as in Opened.

    `described` is the instance's metadata, by the node that gives its frames. Without it they hold no turn at a node; with it
    they may, and whoever reads them must not wait for another."""

    parts: AsyncIterator[FramePart]
    silent: tuple[Issue, ...]
    described: Written | None = None


@dataclass(frozen=True, slots=True)
class Described:
    """The metadata of every instance once, in one piece per series and holder, with what is missing as in Opened."""

    pieces: tuple[Written, ...]
    study: Found
    silent: tuple[Issue, ...]
    gaps: tuple[Issue, ...]


@dataclass(slots=True)
class Retrieval:
    """Whatever concerns instances rather than rows."""

    federation: Federation
    pixels: Pixels

    @asynccontextmanager
    async def open(self, ref: Ref, nodes: Sequence[Node]) -> AsyncIterator[Opened]:
        """The instances under `ref`. Entering it waits for the first one, so that its failure can still be an error status.

        Raises NotFound, Conflict (the UID names several patients), NodeError. A failure after the first instance is raised
        from `instances`: the answer then breaks off, it is not ended.
        """
        async with AsyncExitStack() as stack:
            with freshness.only_fresh():
                (instances, gaps), study, silent = await self._current(
                    ref, nodes, lambda study: self._begin(ref, study, stack)
                )
            yield Opened(instances, study, silent, gaps)

    async def _begin(
        self, ref: Ref, study: Found, stack: AsyncExitStack
    ) -> tuple[AsyncIterator[OpenedInstance], tuple[Issue, ...]]:
        pieces, gaps = await self._plan(ref, study)
        return await _started(self._stream(pieces), stack), gaps

    async def metadata(self, ref: Ref, nodes: Sequence[Node]) -> Described:
        """The metadata of each instance under `ref`, once. Raises as `open`; a holder that fails is a gap if others gave."""
        aged: list[Issue] = []
        (described, gaps), study, silent = await self._current(
            ref, nodes, lambda study: self._all_described(ref, study, aged)
        )
        return Described(described, study, tuple(dict.fromkeys((*silent, *aged))), gaps)

    async def _all_described(
        self, ref: Ref, study: Found, aged: list[Issue]
    ) -> tuple[tuple[Written, ...], tuple[Issue, ...]]:
        refs, missing = await self._at_series(ref, study)
        pieces, gaps = await self._plan(refs, study)
        found = await in_parallel(pieces, lambda piece: self._described(piece, aged))
        failures = [failure for _, failure in found if failure]
        described = _each_once(part for part, _ in found if part)
        gaps = tuple(dict.fromkeys((*missing, *gaps, *map(Issue.of, failures))))
        if not described:
            raise failures[0] if failures else absent(ref.path, gaps)
        return described, gaps

    @asynccontextmanager
    async def frames(self, ref: Ref, numbers: Sequence[int], nodes: Sequence[Node]) -> AsyncIterator[OpenedParts]:
        """The frames of one instance, from its winner, or from another holder where that gives none. Raises as `open`."""
        told: list[Written] = []

        def source(owner: Row) -> AsyncIterator[FramePart]:
            told.clear()  # another holder's copy may be encoded in another way
            return self.pixels.frames(self.federation.nodes[owner.node], ref, numbers, owner, told)

        async with self._parts(ref, nodes, source) as opened:
            yield replace(opened, described=told[0] if told else None)

    @asynccontextmanager
    async def bulkdata(self, ref: Ref, path: tuple[str, ...], nodes: Sequence[Node]) -> AsyncIterator[OpenedParts]:
        """One bulk data value of one instance, in one part or more, from where frames would come."""
        async with self._parts(
            ref, nodes, lambda owner: self.pixels.bulkdata(self.federation.nodes[owner.node], ref, path, owner)
        ) as opened:
            yield opened

    @asynccontextmanager
    async def _parts(
        self, ref: Ref, nodes: Sequence[Node], source: Callable[[Row], AsyncIterator[FramePart]]
    ) -> AsyncIterator[OpenedParts]:
        async with AsyncExitStack() as stack:

            async def begin(study: Found) -> AsyncIterator[FramePart]:
                pieces, _ = await self._plan(ref, study)
                *others, last = (pieces[0].owner, *pieces[0].stand_ins)
                for owner in others:
                    try:
                        return await _started(source(owner), stack)
                    except (NodeError, NotFound) as error:
                        log().warning("stand-in used", node=owner.node, code=error.code)
                return await _started(source(last), stack)

            with freshness.only_fresh():
                parts, _, silent = await self._current(ref, nodes, begin)
            yield OpenedParts(parts, silent)

    async def _current(
        self, ref: Ref, nodes: Sequence[Node], work: Callable[[Found], Awaitable[T]]
    ) -> tuple[T, Found, tuple[Issue, ...]]:
        """`work` on the study where it is remembered to be; where that gives nothing, once more where it is now; with the study.

        Raises NotFound when every node said no, NodeUnreachable when a silent node may have it, and NodeProtocolError
        when a node lists what it does not give.
        """
        study, silent = await self._study(ref, nodes)
        try:
            return await work(study), study, silent
        except NotFound:
            await self.federation.forget(ref.study, nodes)
        study, silent = await self._study(ref, nodes)
        try:
            return await work(study), study, silent
        except NotFound as error:
            if ref.level is Level.STUDY:
                raise NodeProtocolError(study.origin, "lists the study but gives no instance of it") from None
            raise absent(ref.path, silent) if silent else error from None

    async def _study(self, ref: Ref, nodes: Sequence[Node]) -> tuple[Found, tuple[Issue, ...]]:
        answer = await self.federation.locate(ref.study, nodes)
        return answer.items[0], answer.issues

    async def _plan(self, ref: Ref | Sequence[Ref], study: Found) -> tuple[list[Piece], tuple[Issue, ...]]:
        """The retrieves that give every instance under `ref` once. One holder needs no look-up at all."""
        refs = [ref] if isinstance(ref, Ref) else list(ref)
        if len(study.rows) == 1:
            return [Piece(one, study.rows[0]) for one in refs], ()
        pieces: list[Piece] = []
        issues: tuple[Issue, ...] = ()
        for one in refs:
            more, gaps = await self._plan_shared(one, study)
            pieces, issues = pieces + more, issues + gaps
        return pieces, issues

    async def _plan_shared(self, ref: Ref, study: Found) -> tuple[list[Piece], tuple[Issue, ...]]:
        series = await self.federation.series_of(study)
        wanted = [one for one in series.items if ref.series in (None, one.series)]
        if not wanted:
            raise absent(ref.path, series.issues)
        owners = {row.node: row for row in study.rows}
        planned = await in_parallel(wanted, lambda one: self._plan_series(one, ref, owners))
        issues = (*series.issues, *(issue for _, gaps in planned for issue in gaps))
        pieces = [piece for part, _ in planned for piece in part]
        if not pieces:
            raise absent(ref.path, issues)
        return pieces, issues

    async def _plan_series(
        self, series: Found, ref: Ref, owners: dict[str, Row]
    ) -> tuple[list[Piece], tuple[Issue, ...]]:
        """One series: whole from its only holder; whole from the fullest, and the rest one by one, where holders differ."""
        here = Ref(series.study, series.series, ref.instance)
        if len(series.rows) == 1:
            return [Piece(here, owners[series.origin])], ()
        instances = await self.federation.instances_of(series)
        return share_out(series, instances.items, ref.instance, owners), instances.issues

    async def _at_series(self, ref: Ref, study: Found) -> tuple[list[Ref], tuple[Issue, ...]]:
        """Metadata is kept by series: a study's is that of each of its series. The issues are what a holder did not say."""
        if ref.series:
            return [ref], ()
        series = await self.federation.series_of(study)
        return [Ref(ref.study, one.series) for one in sorted(series.items, key=lambda one: one.series)], series.issues

    async def _stream(self, pieces: Sequence[Piece]) -> AsyncIterator[OpenedInstance]:
        seen: set[str] = set()
        for piece in pieces:
            async with aclosing_iterator(self._piece(piece)) as instances:
                async for one in instances:
                    if one.ref.instance in seen:
                        await one.stream.aclose()
                        continue
                    seen.add(one.ref.instance or "")
                    yield one

    async def _piece(self, piece: Piece) -> AsyncIterator[OpenedInstance]:
        """One piece, from a stand-in if its winner fails before it gave anything; later copies are never mixed."""
        rows = (piece.owner, *piece.stand_ins)
        for position, owner in enumerate(rows):
            started = False
            try:
                node = self.federation.nodes[owner.node]
                async with self.pixels.instances(node, piece.ref, owner) as instances:
                    async for one in instances:
                        started = True
                        yield one
                return
            except (NodeError, NotFound) as error:
                if started or position == len(rows) - 1:
                    raise
                log().warning("stand-in used", node=owner.node, code=error.code)

    async def _described(self, piece: Piece, aged: list[Issue]) -> tuple[Written | None, NodeError | None]:
        """The first whole description; else the first one that lacks something. With what failed, or is lacking."""
        failure: NodeError | None = None
        partial: Written | None = None
        for owner in (piece.owner, *piece.stand_ins):
            try:
                node = self.federation.nodes[owner.node]
                found = await self.pixels.metadata(node, piece.ref, owner, aged)
                if not found.lacking:
                    return found, None
                partial = partial or found
                failure = failure or NodeProtocolError(owner.node, found.lacking)
            except NotFound:
                continue
            except NodeError as error:
                failure = failure or error
            except (LookupError, TypeError, ValueError, AttributeError) as error:  # hides no other copy
                failure = failure or fault_over(owner.node, error)
        return partial, failure


def share_out(series: Found, instances: Sequence[Found], wanted: str | None, owners: dict[str, Row]) -> list[Piece]:
    """A series of several holders, each instance once. Pure: the decision only.

    The winner is the series' own (the fullest, first by rank); a holder of exactly the same instances may stand in for it.
    What the winner lacks is fetched one by one from the first node that has it.
    """
    held = {row.node: {one.instance for one in instances if row.node in one.holders} for row in series.rows}
    if wanted:
        having = [row.node for row in series.rows if wanted in held[row.node]]
        if not having:
            return []
        first, *others = (owners[node] for node in having)
        return [Piece(Ref(series.study, series.series, wanted), first, tuple(others))]
    winner = max(held, key=lambda node: len(held[node]))
    equals = tuple(owners[node] for node in held if node != winner and held[node] == held[winner])
    pieces = [Piece(Ref(series.study, series.series), owners[winner], equals)]
    rest = [one for one in instances if one.instance not in held[winner]]
    return pieces + [Piece(Ref(one.study, one.series, one.instance), owners[one.origin]) for one in rest]


async def _started(items: AsyncIterator[T], stack: AsyncExitStack) -> AsyncIterator[T]:
    """The same items once the first one is there, so that its failure is known; `stack` closes them.

    Raises NotFound when there is none.
    """
    source = await stack.enter_async_context(aclosing_iterator(items))
    first = await anext(source, None)
    if first is None:
        raise NotFound("there is nothing to retrieve")
    return await stack.enter_async_context(aclosing_iterator(first_then(first, source)))


def _each_once(pieces: Iterable[Written]) -> tuple[Written, ...]:
    seen: set[str] = set()
    kept = []
    for piece in pieces:
        new = piece.only(set(piece.uids) - seen) if seen else piece
        seen.update(new.uids)
        if new:
            kept.append(new)
    return tuple(kept)
