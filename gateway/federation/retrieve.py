"""A study, series or instance over all its holders: each instance once, from its winner, never a mix of copies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.errors import NodeError, NotFound
from gateway.federation.fanout import in_parallel
from gateway.federation.federate import Federation
from gateway.federation.node import Node, aclosing_iterator
from gateway.federation.opened import OpenedInstance
from gateway.federation.pixels import Pixels
from gateway.model.answer import Found, Issue
from gateway.model.dataset import Dataset, text
from gateway.model.query import Ref
from gateway.model.seam import FramePart
from gateway.model.study import Row
from gateway.model.vocabulary import INSTANCE_UID
from gateway.telemetry import log

__all__ = ["Opened", "OpenedInstance", "Piece", "Retrieval", "share_out"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One retrieve: what, from which row's node, and the rows of nodes with an equal copy of exactly the same instances."""

    ref: Ref
    owner: Row
    stand_ins: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True)
class Opened:
    """Instances on their way. `silent` are nodes that might hold more but did not answer; `gaps` is what a holder has and
    did not give, known before the first byte: only that makes the answer a partial one (206)."""

    instances: AsyncIterator[OpenedInstance]
    silent: tuple[Issue, ...]
    gaps: tuple[Issue, ...]


@dataclass(frozen=True, slots=True)
class Described:
    """One data set per instance, with what is missing as in Opened."""

    datasets: tuple[Dataset, ...]
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
        study, silent = await self._study(ref, nodes)
        pieces, gaps = await self._plan(ref, study)
        async with aclosing_iterator(self._stream(pieces)) as instances:
            first = await anext(instances, None)
            if first is None:
                raise NotFound("there is nothing to retrieve")
            async with aclosing_iterator(_chain(first, instances)) as chained:
                yield Opened(chained, silent, gaps)

    async def metadata(self, ref: Ref, nodes: Sequence[Node]) -> Described:
        """One data set per instance under `ref`, each once. Raises as `open`; a holder that fails is a gap if others gave."""
        study, silent = await self._study(ref, nodes)
        pieces, gaps = await self._plan(await self._at_series(ref, study), study)
        found = await in_parallel(pieces, self._described)
        failures = [failure for _, failure in found if failure]
        datasets = _each_once(dataset for part, _ in found for dataset in part)
        if not datasets:
            raise failures[0] if failures else NotFound(f"there is no {ref.path}")
        return Described(tuple(datasets), silent, tuple(dict.fromkeys((*gaps, *map(Issue.of, failures)))))

    async def frames(self, ref: Ref, numbers: Sequence[int], nodes: Sequence[Node]) -> AsyncIterator[FramePart]:
        """The frames of one instance, from its winner."""
        owner = await self._holder(ref, nodes)
        node = self.federation.nodes[owner.node]
        async with aclosing_iterator(self.pixels.frames(node, ref, numbers, owner)) as frames:
            async for frame in frames:
                yield frame

    async def bulkdata(self, ref: Ref, path: tuple[str, ...], nodes: Sequence[Node]) -> AsyncIterator[FramePart]:
        """One bulk data value of one instance, from its winner, in one part or more."""
        owner = await self._holder(ref, nodes)
        node = self.federation.nodes[owner.node]
        async with aclosing_iterator(self.pixels.bulkdata(node, ref, path, owner)) as parts:
            async for part in parts:
                yield part

    async def _study(self, ref: Ref, nodes: Sequence[Node]) -> tuple[Found, tuple[Issue, ...]]:
        answer = await self.federation.locate(ref.study, nodes)
        return answer.items[0], answer.issues

    async def _holder(self, ref: Ref, nodes: Sequence[Node]) -> Row:
        """The study row of the node that the instance is taken from."""
        study, _ = await self._study(ref, nodes)
        pieces, _ = await self._plan(ref, study)
        return next(iter(pieces)).owner

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
            raise NotFound(f"the study has no series {ref.series}")
        owners = {row.node: row for row in study.rows}
        planned = await in_parallel(wanted, lambda one: self._plan_series(one, ref, owners))
        issues = (*series.issues, *(issue for _, gaps in planned for issue in gaps))
        pieces = [piece for part, _ in planned for piece in part]
        if not pieces:
            raise NotFound(f"the series has no instance {ref.instance}")
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

    async def _at_series(self, ref: Ref, study: Found) -> list[Ref]:
        """Metadata is kept by series: a study's is that of each of its series."""
        if ref.series:
            return [ref]
        series = await self.federation.series_of(study)
        if series.issues and not series.items:
            raise NotFound(f"there is no {ref.path}")
        return [Ref(ref.study, one.series) for one in sorted(series.items, key=lambda one: one.series)]

    async def _stream(self, pieces: Sequence[Piece]) -> AsyncIterator[OpenedInstance]:
        seen: set[str] = set()
        for piece in pieces:
            async with aclosing_iterator(self._piece(piece)) as instances:
                async for one in instances:
                    if one.ref.instance not in seen:
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
            except NodeError as error:
                if started or position == len(rows) - 1:
                    raise
                log().warning("stand-in used", node=owner.node, code=error.code)

    async def _described(self, piece: Piece) -> tuple[list[Dataset], NodeError | None]:
        failure: NodeError | None = None
        for owner in (piece.owner, *piece.stand_ins):
            try:
                return await self.pixels.metadata(self.federation.nodes[owner.node], piece.ref, owner), None
            except NodeError as error:
                failure = failure or error
        return [], failure


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


async def _chain(first: OpenedInstance, rest: AsyncIterator[OpenedInstance]) -> AsyncIterator[OpenedInstance]:
    yield first
    async for one in rest:
        yield one


def _each_once(datasets: Iterable[Dataset]) -> list[Dataset]:
    return list({text(one, INSTANCE_UID): one for one in reversed(list(datasets))}.values())[::-1]
