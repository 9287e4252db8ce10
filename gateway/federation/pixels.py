"""One node's instances, however it gives them: retrieved, described, cut into frames, by itself or from the spool.

A node that can only send whole instances (DIMSE) is asked for a series once; the spool then serves its metadata, frames and
bulk data, so that a viewer's 200 requests are not 200 retrieves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from gateway.cache.answers import Answers, Loaded
from gateway.cache.keys import key
from gateway.errors import NodeError, NodeProtocolError, NodeTimeout, NotFound, Unsupported
from gateway.federation.availability import first_byte_deadline, late
from gateway.federation.mentions import of_row
from gateway.federation.node import Node, aclosing_iterator
from gateway.federation.opened import Bearer, OpenedInstance
from gateway.federation.spooled import Fetch, Sink, SpooledSeries, tee, version
from gateway.model.answer import Issue, stale_issue
from gateway.model.dataset import Dataset, whole_number
from gateway.model.query import Ref
from gateway.model.seam import Adapter, BulkData, Describes, FramePart, Frames, Identifies, Lists, Part, Retrieves
from gateway.model.study import Row
from gateway.model.vocabulary import STUDY_INSTANCE_COUNT, STUDY_SERIES_COUNT
from gateway.telemetry import log, looking_up, stage
from gateway.wire.part10 import AFTER_UIDS, Part10Error, identified, open_part10
from gateway.wire.threads import apart
from gateway.wire.written import Writing, Written, read

_LATER = 0.05
"""Seconds after which what an answer was made of is let go of."""

T = TypeVar("T")


@dataclass(slots=True)
class Pixels:
    """The instances of all nodes, one node at a time. `owner` is the row of the study: it says whose the instances must be."""

    answers: Answers
    spooled: SpooledSeries

    @asynccontextmanager
    async def instances(
        self, node: Node, ref: Ref, owner: Row, *, keep: bool = False
    ) -> AsyncIterator[AsyncIterator[OpenedInstance]]:
        """Every instance under `ref` at `node`, as stored, at least one. Raises NodeError, NotFound when the node gives
        none; leaving it closes what is open at the node. With `keep` they pass through the spool: for metadata, frames and
        bulk data only, since whoever has had the instances themselves asks for none of these."""
        places = await node.places(ref)
        if not node.may("retrieve"):
            raise Unsupported(node.id, "does not give out instances")
        if keep:
            self.spooled.settle(owner)
        async with begun(node, "retrieve", owner, lambda: self._opened(node, ref, owner, places, keep)) as opened:
            yield opened

    async def _opened(
        self, node: Node, ref: Ref, owner: Row, places: Sequence[tuple[Adapter, Ref]], keeps: bool
    ) -> AsyncIterator[OpenedInstance]:
        given: list[str] = []
        bearer, since, is_whole = Bearer(node, owner), self.spooled.spool.position, True
        for adapter, place in places:
            here: set[str] = set()
            async with aclosing_iterator(_parts(node, adapter, place, owner, here)) as parts:
                async for part in parts:
                    body = paced(part.body, node, node.config.idle_deadline)
                    if keeps:
                        sink = Sink()
                        one = await _open(bearer, ref, tee(body, sink))
                        await self._keep(one, sink, since)
                    else:
                        one = await _open(bearer, ref, body)
                    here.add(one.ref.instance or "")
                    yield one
            is_whole = is_whole and bool(here)
            given += here
        if not given:
            raise NotFound(f"there is no {ref.path}")
        if not is_whole:
            raise NodeProtocolError(node.id, "gave nothing of a series that it lists")
        if keeps:
            self.spooled.spool.complete(node.id, ref, given)

    async def _keep(self, one: OpenedInstance, sink: Sink, since: int) -> None:
        ref, syntax = one.ref, one.stream.transfer_syntax
        place = one.node, ref.study, ref.series or "", ref.instance or ""
        await sink.attach(self.spooled.spool.begin(*place, transfer_syntax=syntax, since=since))

    def _fetch(self, node: Node, owner: Row) -> Fetch:
        return lambda ref: self.instances(node, ref, owner, keep=True)

    async def metadata(self, node: Node, ref: Ref, owner: Row, aged: list[Issue] | None = None) -> Written:
        """The metadata of one series, or of one instance.

        With `aged` an older answer stands in while the node cannot be asked, and is added to it.

        What is kept is of this patient, under the names that the study was found by, and of the number of instances that it
        had: a corrected patient id or a study that grows is described anew. That there is nothing is not kept, what lacks
        something only for as long as that there is nothing.
        """
        series = Ref(ref.study, ref.series)

        async def load() -> Loaded:
            self.spooled.settle(owner)
            bearer = Bearer(node, owner)
            adapter, place = await _place(node, series)
            writing, found = Writing(), []
            async for dataset in self._describe(node, adapter, series, owner):
                bearer.check(series, dataset)
                writing.add(dataset)
                found.append(dataset)
            written = await apart(len(found), writing.whole)
            lacking = await _undescribed(node, adapter, place, owner, writing.uids)
            # To let go of so many takes as long as to read them: not before the answer is on its way.
            asyncio.get_running_loop().call_later(_LATER, found.clear)
            stored = replace(written, lacking=lacking).stored
            ttl = min(node.ttl.metadata, node.ttl.negative) if lacking else None
            tags = frozenset(of_row(owner))
            return Loaded(stored, cacheable=bool(found), ttl=ttl, tags=tags, may_be_stale=not lacking)

        linked = sorted((patient.issuer, patient.id) for patient in owner.linked)
        name = key("metadata", node.digest, ref.study, ref.series, *version(owner), linked)
        with stage("cache"):
            kept = await self.answers.text(name, node.ttl.metadata, looking_up(load), read, stale=aged is not None)
        if kept.is_stale and aged is not None:
            aged.append(stale_issue(node.id, kept.age))
        written: Written = kept.value
        if not ref.instance:
            return written
        one = written.only({ref.instance})
        if not one and written.lacking:
            raise NodeProtocolError(node.id, written.lacking)
        return replace(one, lacking="")

    async def _describe(self, node: Node, adapter: Adapter, series: Ref, owner: Row) -> AsyncIterator[Dataset]:
        source = self.spooled.metadata(node.id, series, self._fetch(node, owner))
        if isinstance(adapter, Describes) and node.may("describe"):
            source = _or_else(_describe(node, adapter, series, owner), source)
        async with aclosing_iterator(source) as datasets:
            async for dataset in datasets:
                yield dataset

    async def frames(
        self, node: Node, ref: Ref, numbers: Sequence[int], owner: Row, told: list[Written] | None = None
    ) -> AsyncIterator[FramePart]:
        """Frames (1-based) of one instance, in the order asked for. Raises NotFound for an unknown instance.

        Added to `told`, before the first of them, is the metadata of the instance where the node had to give that; where
        nothing is, the frames are read from a file here and hold no turn at the node.
        """
        adapter, _ = await _place(node, ref)
        self.spooled.settle(owner)
        source = self.spooled.frames(node.id, ref, numbers, self._fetch(node, owner))
        if isinstance(adapter, Frames) and node.may("frames"):
            # Frames carry no identifiers: the metadata says first that they are of this patient.
            described = await self._require(node, ref, owner)
            if told is not None:
                told.append(described)
            asked = partial(adapter.frames, ref, numbers)
            source = _or_else(_frame_parts(node, "frames", adapter, ref, owner, asked), source)
        async with aclosing_iterator(source) as frames:
            async for frame in frames:
                yield frame

    async def _require(self, node: Node, ref: Ref, owner: Row) -> Written:
        found = await self.metadata(node, ref, owner)
        if not found:
            raise NotFound(f"the series has no instance {ref.instance}")
        return found

    async def bulkdata(self, node: Node, ref: Ref, path: tuple[str, ...], owner: Row) -> AsyncIterator[FramePart]:
        """One bulk data value, by its path of tags and 1-based item numbers, in one part or more. Raises NotFound."""
        adapter, _ = await _place(node, ref)
        address = (await self._require(node, ref, owner)).address(ref.instance or "", ".".join(path))
        if address is None:
            raise NotFound("there is no such bulk data")
        self.spooled.settle(owner)
        source = self.spooled.bulkdata(node.id, ref, address, self._fetch(node, owner))
        if isinstance(adapter, BulkData) and isinstance(adapter, Describes) and node.may("bulkdata"):
            asked = partial(adapter.bulkdata, ref, address)
            source = _frame_parts(node, "bulkdata", adapter, ref, owner, asked)
        async with aclosing_iterator(source) as parts:
            async for part in parts:
                yield part


async def _place(node: Node, ref: Ref) -> tuple[Adapter, Ref]:
    """Where a series, or an instance, is."""
    return (await node.places(ref))[0]


async def _parts(node: Node, adapter: Adapter, place: Ref, owner: Row, given: Collection[str]) -> AsyncIterator[Part]:
    """What is at one place; then, asked for alone, each instance that is listed there and not among those `given` so far: it
    came while the others went, or it cannot be given. Raises NodeError."""
    if not isinstance(adapter, Retrieves):
        raise Unsupported(node.id, "does not give out instances")
    async with aclosing_iterator(_first_byte(adapter.retrieve(place), node, owner)) as parts:
        async for part in parts:
            yield part
    for left in await _lacking(node, adapter, place, given, owner, has_turn=True):
        async with aclosing_iterator(_first_byte(adapter.retrieve(left), node, owner)) as parts:
            async for part in parts:
                yield part
        if left.instance not in given:
            raise NodeProtocolError(node.id, "did not give an instance that it lists")


async def _lacking(
    node: Node, adapter: Adapter, ref: Ref, given: Collection[str], owner: Row, *, has_turn: bool
) -> Sequence[Ref]:
    """What the node lists under `ref` and did not give; none where nothing was given, or where that is not known. It takes a
    turn at the node unless it is asked within one."""
    is_whole_study = ref.series is None or whole_number(owner.attributes, STUDY_SERIES_COUNT) == 1
    said = whole_number(owner.attributes, STUDY_INSTANCE_COUNT) if is_whole_study else None
    if not given or not isinstance(adapter, Lists) or ref.instance or len(given) == said:
        return ()
    ask = partial(adapter.lacking, ref, given)
    try:
        if not has_turn:
            return await node.asking("find", lambda _: ask())
        async with asyncio.timeout(node.config.search_deadline):
            return await ask()
    except (NodeError, TimeoutError) as error:
        log().warning("not known whether all came", node=node.id, error=type(error).__name__)
        return ()


async def _open(bearer: Bearer, ref: Ref, body: AsyncIterator[bytes]) -> OpenedInstance:
    node = bearer.node
    try:
        stream = await open_part10(body, until=AFTER_UIDS)
        found = await identified(stream)
    except Part10Error:
        raise NodeProtocolError(node.id, "sent something that is not a DICOM file") from None
    try:
        return OpenedInstance(node.id, bearer.check(ref, found), stream)
    except NodeError:
        await stream.aclose()
        raise


async def _describe(node: Node, adapter: Describes, ref: Ref, owner: Row) -> AsyncIterator[Dataset]:
    async with begun(node, "describe", owner, lambda: _first_byte(adapter.describe(ref), node, owner)) as datasets:
        async for dataset in datasets:
            yield dataset


async def _undescribed(node: Node, adapter: Adapter, place: Ref, owner: Row, uids: Collection[str]) -> str:
    """What the node lists and did not describe, in words; '' where that is nothing, or is not known."""
    lacking = await _lacking(node, adapter, place, uids, owner, has_turn=False)
    return f"did not give {len(lacking)} of the instances that it lists" if lacking else ""


async def _frame_parts(
    node: Node, operation: str, adapter: Adapter, ref: Ref, owner: Row, ask: Callable[[], AsyncIterator[FramePart]]
) -> AsyncIterator[FramePart]:
    """What `ask` asks the adapter for: frames or bulk data of one instance."""

    def source() -> AsyncIterator[FramePart]:
        return _first_byte(_of_owner(ask(), node, adapter, ref, owner), node, owner)

    async with begun(node, operation, owner, source) as parts:
        async for part in parts:
            yield replace(part, body=paced(part.body, node, node.config.idle_deadline))


async def _of_owner(
    parts: AsyncIterator[FramePart], node: Node, adapter: object, ref: Ref, owner: Row
) -> AsyncIterator[FramePart]:
    """The same parts, once the node has said, where it can, that what was opened for them is still the patient's whom the metadata
    name. Raises NodeProtocolError where it is not."""
    asks = adapter if isinstance(adapter, Identifies) else None
    async with aclosing_iterator(parts) as source:
        async for part in source:
            if asks and (found := await asks.identify(ref)):
                Bearer(node, owner).check(ref, found)
            asks = None
            yield part


@asynccontextmanager
async def begun(
    node: Node, operation: str, owner: Row, source: Callable[[], AsyncIterator[T]]
) -> AsyncIterator[AsyncIterator[T]]:
    """The items of `source()` in one turn at the node, once the first of them is there or it is known that there is none.

    Until then a transient failure has it begun anew; nothing of the failed try is left. Raises NodeError.
    """

    async def begin() -> tuple[AsyncExitStack, list[T], AsyncIterator[T]]:
        async with AsyncExitStack() as stack:
            turn = await stack.enter_async_context(node.working(operation))
            items = await stack.enter_async_context(aclosing_iterator(source()))
            first: list[T] = []
            with contextlib.suppress(StopAsyncIteration):
                first.append(await anext(items))
            turn.answered()
            return stack.pop_all(), first, items

    ends = asyncio.get_running_loop().time() + first_byte_deadline(owner, node.config)
    stack, first, rest = await node.guard.retried(operation, begin, ends)
    async with stack, aclosing_iterator(_chain(first, rest)) as items:
        yield items


async def _chain(first: Sequence[T], rest: AsyncIterator[T]) -> AsyncIterator[T]:
    for one in first:
        yield one
    async for one in rest:
        yield one


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


def _first_byte(items: AsyncIterator[T], node: Node, owner: Row) -> AsyncIterator[T]:
    """The first item within the time that a study of its availability has, each of the others within the idle deadline."""
    seconds = first_byte_deadline(owner, node.config)
    return paced(items, node, node.config.idle_deadline, first=seconds, late=lambda: late(owner, node.config))


async def paced(
    items: AsyncIterator[T],
    node: Node,
    seconds: float,
    *,
    first: float | None = None,
    late: Callable[[], NodeError] | None = None,
) -> AsyncIterator[T]:
    """The same items, each within `seconds`, the first within `first`. Raises NodeTimeout, for the first what `late` gives;
    leaving it closes the source."""

    def silent() -> NodeError:
        return NodeTimeout(node.id, f"went silent for {seconds:g} s")

    wait, failure = (first or seconds), (late or silent)
    async with aclosing_iterator(items) as source:
        while True:
            try:
                async with asyncio.timeout(wait):
                    item = await anext(source)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise failure() from None
            wait, failure = seconds, silent
            yield item
