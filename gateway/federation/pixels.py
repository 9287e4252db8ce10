"""One node's instances, however it gives them: retrieved, described, cut into frames, by itself or from the spool.

A node that can only send whole instances (DIMSE) is asked for a series once; the spool then serves its metadata, frames and
bulk data, so that a viewer's 200 requests are not 200 retrieves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from gateway.cache.answers import Answers, Loaded
from gateway.cache.keys import key
from gateway.errors import NodeError, NodeProtocolError, NodeTimeout, NotFound, Unsupported
from gateway.federation.node import Node, aclosing_iterator
from gateway.federation.opened import OpenedInstance, check_instance
from gateway.federation.spooled import Fetch, Sink, SpooledSeries, tee
from gateway.model.dataset import Dataset, text
from gateway.model.query import Ref
from gateway.model.seam import BulkData, Describes, FramePart, Frames, Part, Retrieves
from gateway.model.study import Row
from gateway.model.vocabulary import INSTANCE_UID
from gateway.wire.part10 import AFTER_UIDS, Part10Error, identify, open_part10

T = TypeVar("T")


@dataclass(slots=True)
class Pixels:
    """The instances of all nodes, one node at a time. `owner` is the row of the study: it says whose the instances must be."""

    answers: Answers
    spooled: SpooledSeries

    @asynccontextmanager
    async def instances(self, node: Node, ref: Ref, owner: Row) -> AsyncIterator[AsyncIterator[OpenedInstance]]:
        """Every instance under `ref` at `node`, as stored. Raises NodeError; leaving it closes what is open at the node."""
        adapter = await node.pixels(ref)
        if not isinstance(adapter, Retrieves) or not node.may("retrieve"):
            raise Unsupported(node.id, "does not give out instances")
        keeps = not (isinstance(adapter, Frames) and isinstance(adapter, Describes))
        async with (
            node.working("retrieve"),
            aclosing_iterator(_first_byte(adapter.retrieve(ref), node)) as parts,
            aclosing_iterator(self._opened(node, ref, owner, parts, keeps)) as opened,
        ):
            yield opened

    async def _opened(
        self, node: Node, ref: Ref, owner: Row, parts: AsyncIterator[Part], keeps: bool
    ) -> AsyncIterator[OpenedInstance]:
        given: list[str] = []
        async for part in parts:
            sink = Sink()
            body = tee(paced(part.body, node, node.config.idle_deadline), sink)
            one = await _open(node, ref, owner, body)
            if keeps:
                await self._keep(one, sink)
            else:
                sink.give_up()
            given.append(one.ref.instance or "")
            yield one
        if not given:
            raise NodeProtocolError(node.id, "lists the study but gives no instance of it")
        if keeps:
            self.spooled.spool.complete(node.id, ref, given)

    async def _keep(self, one: OpenedInstance, sink: Sink) -> None:
        ref, syntax = one.ref, one.stream.transfer_syntax
        spool = self.spooled.spool
        await sink.attach(
            spool.begin(one.node, ref.study, ref.series or "", ref.instance or "", transfer_syntax=syntax)
        )

    def _fetch(self, node: Node, owner: Row) -> Fetch:
        return lambda ref: self.instances(node, ref, owner)

    async def metadata(self, node: Node, ref: Ref, owner: Row) -> list[Dataset]:
        """One data set per instance of one series, or of one instance, with the node's own addresses of bulk data."""
        series = Ref(ref.study, ref.series)

        async def load() -> Loaded:
            return Loaded([dataset async for dataset in self._describe(node, series, owner)])

        name = key("metadata", node.digest, ref.study, ref.series)
        datasets: list[Dataset] = await self.answers.rows(name, node.ttl.metadata, load)
        for dataset in datasets:
            check_instance(node, series, owner, dataset)
        return [one for one in datasets if not ref.instance or text(one, INSTANCE_UID) == ref.instance]

    async def _describe(self, node: Node, series: Ref, owner: Row) -> AsyncIterator[Dataset]:
        adapter = await node.pixels(series)
        source = self.spooled.metadata(node.id, series, self._fetch(node, owner))
        if isinstance(adapter, Describes) and node.may("describe"):
            source = _or_else(_describe(node, adapter, series), source)
        async with aclosing_iterator(source) as datasets:
            async for dataset in datasets:
                yield dataset

    async def frames(self, node: Node, ref: Ref, numbers: Sequence[int], owner: Row) -> AsyncIterator[FramePart]:
        """Frames (1-based) of one instance, in the order asked for. Raises NotFound for an unknown instance."""
        adapter = await node.pixels(ref)
        source = self.spooled.frames(node.id, ref, numbers, self._fetch(node, owner))
        if isinstance(adapter, Frames) and node.may("frames"):
            # Frames carry no identifiers: the metadata says first that they are of this patient.
            await self._require(node, ref, owner)
            source = _or_else(_frames(node, adapter, ref, numbers), source)
        async with aclosing_iterator(source) as frames:
            async for frame in frames:
                yield frame

    async def _require(self, node: Node, ref: Ref, owner: Row) -> Dataset:
        found = await self.metadata(node, ref, owner)
        if not found:
            raise NotFound(f"the series has no instance {ref.instance}")
        return found[0]

    async def bulkdata(self, node: Node, ref: Ref, path: tuple[str, ...], owner: Row) -> AsyncIterator[FramePart]:
        """One bulk data value, by its path of tags and 1-based item numbers, in one part or more. Raises NotFound."""
        adapter = await node.pixels(ref)
        address = bulk_address(await self._require(node, ref, owner), path)
        source = self.spooled.bulkdata(node.id, ref, address, self._fetch(node, owner))
        if isinstance(adapter, BulkData) and isinstance(adapter, Describes) and node.may("bulkdata"):
            source = _bulkdata(node, adapter, ref, address)
        async with aclosing_iterator(source) as parts:
            async for part in parts:
                yield part


async def _open(node: Node, ref: Ref, owner: Row, body: AsyncIterator[bytes]) -> OpenedInstance:
    try:
        stream = await open_part10(body, until=AFTER_UIDS)
        found = identify(stream)
    except Part10Error:
        raise NodeProtocolError(node.id, "sent something that is not a DICOM file") from None
    try:
        return OpenedInstance(node.id, check_instance(node, ref, owner, found), stream)
    except NodeError:
        await stream.aclose()
        raise


async def _describe(node: Node, adapter: Describes, ref: Ref) -> AsyncIterator[Dataset]:
    async with node.working("describe"), aclosing_iterator(_first_byte(adapter.describe(ref), node)) as datasets:
        async for dataset in datasets:
            yield dataset


async def _frames(node: Node, adapter: Frames, ref: Ref, numbers: Sequence[int]) -> AsyncIterator[FramePart]:
    async with node.working("frames"), aclosing_iterator(_first_byte(adapter.frames(ref, numbers), node)) as frames:
        async for frame in frames:
            yield frame


async def _bulkdata(node: Node, adapter: BulkData, ref: Ref, address: str) -> AsyncIterator[FramePart]:
    async with node.working("bulkdata"), aclosing_iterator(_first_byte(adapter.bulkdata(ref, address), node)) as parts:
        async for part in parts:
            yield part


async def _or_else(first: AsyncIterator[T], second: AsyncIterator[T]) -> AsyncIterator[T]:
    """The first source; the second instead when the node turns out not to support the first before it gave anything."""
    started = False
    try:
        async with aclosing_iterator(first) as items:
            async for item in items:
                started = True
                yield item
        return
    except Unsupported:
        if started:
            raise
    async with aclosing_iterator(second) as items:
        async for item in items:
            yield item


def bulk_address(dataset: Dataset, path: tuple[str, ...]) -> str:
    """The node's own address of the value at `path` ('54000100', '1', '54001010'). Raises NotFound where there is none."""
    tag, *rest = path
    attribute = dataset.get(tag, {})
    if not rest:
        address = attribute.get("BulkDataURI")
        if address:
            return str(address)
        raise NotFound("there is no such bulk data")
    items = attribute.get("Value", [])
    number = int(rest[0]) if rest[0].isdecimal() else 0
    if not 1 <= number <= len(items) or len(rest) < 2 or not isinstance(items[number - 1], dict):
        raise NotFound("there is no such bulk data")
    return bulk_address(items[number - 1], tuple(rest[1:]))


def _first_byte(items: AsyncIterator[T], node: Node) -> AsyncIterator[T]:
    """Each item within the node's first-byte deadline."""
    return paced(items, node, node.config.first_byte_deadline)


async def paced(items: AsyncIterator[T], node: Node, seconds: float) -> AsyncIterator[T]:
    """The same items, each within `seconds`. Raises NodeTimeout; leaving it closes the source."""
    async with aclosing_iterator(items) as source:
        while True:
            try:
                async with asyncio.timeout(seconds):
                    item = await anext(source)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise NodeTimeout(node.id, f"went silent for {seconds:g} s") from None
            yield item
