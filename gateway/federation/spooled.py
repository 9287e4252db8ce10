"""Serves metadata, frames and bulk data of nodes that give whole instances only, from one retrieve through the spool."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path

from gateway.cache.purges import EVERYTHING_KEPT, Purge
from gateway.cache.spool import NotSpooled, Spool, SpooledInstance, Writer
from gateway.cache.tags import Tag
from gateway.errors import NodeProtocolError, NotFound
from gateway.federation.fanout import cancel_all
from gateway.federation.mentions import of_row
from gateway.federation.node import aclosing_iterator
from gateway.federation.opened import OpenedInstance, drain
from gateway.model.dataset import Dataset, text
from gateway.model.query import Ref
from gateway.model.seam import FramePart
from gateway.model.study import Row
from gateway.model.vocabulary import STUDY_INSTANCE_COUNT, STUDY_SERIES_COUNT
from gateway.wire.bodies import bulk_value_of, frames_of
from gateway.wire.instance import Part10Error, metadata
from gateway.wire.threads import Threads

Fetch = Callable[[Ref], AbstractAsyncContextManager[AsyncIterator[OpenedInstance]]]


_VERSIONS_KEPT = 10_000
_MOST_AT_HAND = 4 << 20
"""Bytes before the pixel data that are read from memory; an instance with more is read from its file."""
_READ_AT_ONCE = 4
_LINGER = 2.0
"""Seconds that a series goes on for nobody: who scrolls leaves one image for the next."""


def version(owner: Row) -> tuple[str, ...]:
    """What a node says of a study that changes when its instances do: whose it is, and how many there are."""
    counts = (text(owner.attributes, tag) for tag in (STUDY_SERIES_COUNT, STUDY_INSTANCE_COUNT))
    return owner.patient.issuer, owner.patient.id, *counts


@dataclass(slots=True)
class Sink:
    """Takes a body on its way: keeps its beginning until it is known which instance it is, then writes to the spool."""

    writer: Writer | None = None
    _beginning: list[bytes] = field(default_factory=list)

    async def attach(self, writer: Writer) -> None:
        """From here on the bytes go to `writer`, those kept so far first."""
        kept, self._beginning = self._beginning, []
        self.writer = writer
        for chunk in kept:
            await self.write(chunk)

    async def write(self, chunk: bytes) -> None:
        if self.writer is not None:
            await self.writer.write(chunk)
        else:
            self._beginning.append(chunk)


async def tee(body: AsyncIterator[bytes], sink: Sink) -> AsyncIterator[bytes]:
    """The same chunks; the sink gets each too, and commits only when the body ended by itself."""
    try:
        async with aclosing_iterator(body) as chunks:
            async for chunk in chunks:
                await sink.write(chunk)
                yield chunk
        if sink.writer is not None:
            await sink.writer.commit()
            sink.writer = None
    finally:
        if sink.writer is not None:
            await sink.writer.abort()


@dataclass(slots=True)
class _Arriving:
    """One series on its way into the spool, shared by all who wait for an instance of it. It goes on without those who have what
    they waited for; where the last one left before, `ending` ends it, unless somebody comes."""

    task: asyncio.Task[None] | None = None
    waiting: int = 0
    ending: asyncio.TimerHandle | None = None
    arrived: set[str] = field(default_factory=set)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    ended: bool = False

    @contextlib.contextmanager
    def waited_for(self, give_up: Callable[[], None]) -> Iterator[None]:
        if self.ending is not None:
            self.ending.cancel()
        self.waiting += 1
        try:
            yield
        except asyncio.CancelledError:
            if self.waiting == 1:
                self.ending = asyncio.get_running_loop().call_later(_LINGER, give_up)
            raise
        finally:
            self.waiting -= 1


@dataclass(slots=True)
class SpooledSeries:
    """`spool` may be off: every question then costs a retrieve of its own, through a file that is gone at once. Such files lie in
    `scratch`, by default in the system's temporary directory."""

    spool: Spool
    scratch: Path | None = None
    _arriving: dict[tuple[str, str, str], _Arriving] = field(default_factory=dict)
    _bringing: set[asyncio.Task[None]] = field(default_factory=set)
    _versions: OrderedDict[tuple[str, str], tuple[tuple[str, ...], frozenset[Tag]]] = field(default_factory=OrderedDict)

    async def close(self) -> None:
        """Ends the retrieves that still run."""
        await cancel_all(self._bringing)

    def forget(self, node: str) -> None:
        """The node is another one now: what is here of it goes, and nobody new waits for what comes from the one before."""
        for name in [name for name in self._arriving if name[0] == node]:
            del self._arriving[name]
        self.spool.forget(node)

    def settle(self, owner: Row) -> None:
        """Lets go of a study's instances when its node says something else of it now than when they came."""
        place, now = (owner.node, owner.study), version(owner)
        if place in self._versions and self._versions[place][0] != now:
            self.spool.forget(*place)
        self._versions[place] = now, frozenset(of_row(owner))
        self._versions.move_to_end(place)
        if len(self._versions) > _VERSIONS_KEPT:
            self._versions.popitem(last=False)

    def purged(self, purge: Purge) -> None:
        """Lets go of the instances of a node, a study or a patient that was purged, or of all. Not where a purge may merely have
        been missed: what is here is held against what its node says of it before it is used."""
        tags = purge.tags()
        for (node, study), (_, borne) in list(self._versions.items()):
            is_meant = purge == EVERYTHING_KEPT or (purge.kind == "node" and node in purge.values)
            if is_meant or tags & borne:
                self.spool.forget(node, study)

    async def metadata(self, node: str, series: Ref, fetch: Fetch) -> AsyncIterator[Dataset]:
        """One data set per instance; bulk data values are addressed by their path in the file."""
        if self.spool.is_complete(node, series.study, series.series):
            for found in self.spool.find(node, series.study, series.series):
                async with self._file(node, Ref(found.study, found.series, found.instance), fetch) as path:
                    yield await _threads(node).call(metadata, path, str)
            return
        left: list[Ref] = []
        async with fetch(series) as instances, aclosing_iterator(self._described(node, instances, left)) as described:
            async for dataset in described:
                yield dataset
        for ref in left:  # not before: the node may have one turn only
            with contextlib.ExitStack() as stack:
                yield await _threads(node).call(metadata, await self._pinned(None, ref, fetch, stack), str)

    async def _described(
        self, node: str, instances: AsyncIterator[OpenedInstance], left: list[Ref]
    ) -> AsyncIterator[Dataset]:
        """The metadata of each instance, in order; an instance is read while the next ones arrive. Added to `left` is what had
        to be read as a file and was not taken by the spool."""
        under_way: deque[asyncio.Task[Dataset]] = deque()
        try:
            async for one in instances:
                beginning = await _beginning(one)
                if beginning is not None:
                    reading = asyncio.create_task(_threads(node).call(metadata, BytesIO(beginning), str))
                    under_way.append(reading)
                    await drain(one)
                while len(under_way) > (0 if beginning is None else _READ_AT_ONCE):
                    yield await under_way.popleft()
                if beginning is None:
                    dataset = await self._read_whole(node, one)
                    if dataset is None:
                        left.append(one.ref)
                    else:
                        yield dataset
            while under_way:
                yield await under_way.popleft()
        finally:
            for reading in under_way:
                reading.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def frames(self, node: str, ref: Ref, numbers: Sequence[int], fetch: Fetch) -> AsyncIterator[FramePart]:
        """The frames asked for, in order, each in chunks. Raises InvalidQuery for a number the instance does not have."""
        async with (
            self._file(node, ref, fetch) as path,
            aclosing_iterator(frames_of(_threads(node), path, numbers)) as frames,
        ):
            async for frame in frames:
                yield frame

    async def bulkdata(self, node: str, ref: Ref, address: str, fetch: Fetch) -> AsyncIterator[FramePart]:
        """One bulk data value by its path, in one part or (encapsulated pixel data) one per frame. Raises NotFound."""
        async with (
            self._file(node, ref, fetch) as path,
            aclosing_iterator(bulk_value_of(_threads(node), path, address)) as parts,
        ):
            async for part in parts:
                yield part

    @asynccontextmanager
    async def _file(self, node: str, ref: Ref, fetch: Fetch) -> AsyncIterator[Path]:
        """The instance as a file that stays for the block: spooled, or fetched alone where the spool does not take it."""
        found = self._spooled(node, ref) or await self._await_instance(node, ref, fetch)
        with contextlib.ExitStack() as stack:
            yield await self._pinned(found, ref, fetch, stack)

    async def _read_whole(self, node: str, one: OpenedInstance) -> Dataset | None:
        """The metadata of an instance of a running retrieve, from its file; None where the spool did not take it."""
        with contextlib.ExitStack() as stack:
            if self.spool.directory is None:
                directory = stack.enter_context(tempfile.TemporaryDirectory(dir=self.scratch))
                return await _threads(node).call(metadata, await _save(one, Path(directory) / "instance"), str)
            await drain(one)
            found = self._spooled(one.node, one.ref)
            with contextlib.suppress(NotSpooled):
                path = stack.enter_context(self.spool.pin(found)) if found else None
                return await _threads(node).call(metadata, path, str) if path else None
        return None

    async def _pinned(self, found: SpooledInstance | None, ref: Ref, fetch: Fetch, stack: contextlib.ExitStack) -> Path:
        """The spooled file, kept for the stack's life; an instance that the spool does not have is fetched alone."""
        if found is not None:
            with contextlib.suppress(NotSpooled):
                return stack.enter_context(self.spool.pin(found))
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir=self.scratch))
        return await _fetch_alone(ref, fetch, Path(directory) / "instance")

    def _spooled(self, node: str, ref: Ref) -> SpooledInstance | None:
        return next(iter(self.spool.find(node, ref.study, ref.series, ref.instance)), None)

    async def _await_instance(self, node: str, ref: Ref, fetch: Fetch) -> SpooledInstance | None:
        """Has the whole series fetched, once for all who ask, and waits only for the one instance."""
        if self.spool.directory is None:
            return None
        name = (node, ref.study, ref.series or "")
        arriving = self._arriving.get(name)
        if arriving is None:
            arriving = self._arriving[name] = _Arriving()
            arriving.task = asyncio.create_task(self._bring(name, fetch, arriving))
            self._bringing.add(arriving.task)
            arriving.task.add_done_callback(self._bringing.discard)
            arriving.task.add_done_callback(_seen)
        with arriving.waited_for(partial(self._give_up, name, arriving)):
            async with arriving.news:
                await arriving.news.wait_for(lambda: ref.instance in arriving.arrived or arriving.ended)
        if arriving.ended and arriving.task and ref.instance not in arriving.arrived:
            await asyncio.shield(arriving.task)
        return self._spooled(node, ref)

    async def _bring(self, name: tuple[str, str, str], fetch: Fetch, arriving: _Arriving) -> None:
        """Drains a series into the spool. Its failure reaches those who wait for what did not arrive."""
        try:
            async with fetch(Ref(name[1], name[2])) as instances:
                async for one in instances:
                    await drain(one)
                    await self._tell(arriving, one.ref.instance)
        finally:
            if self._arriving.get(name) is arriving:
                del self._arriving[name]
            arriving.ended = True
            await self._tell(arriving, None)

    def _give_up(self, name: tuple[str, str, str], arriving: _Arriving) -> None:
        """Whoever comes from here on has it fetched anew."""
        if self._arriving.get(name) is arriving:
            del self._arriving[name]
        if arriving.task is not None:
            arriving.task.cancel()

    async def _tell(self, arriving: _Arriving, instance: str | None) -> None:
        async with arriving.news:
            if instance:
                arriving.arrived.add(instance)
            arriving.news.notify_all()


def _seen(ended: asyncio.Task[None]) -> None:
    """A failure that nobody waits for is no fault of ours: whoever waited had their instance before it, or has left."""
    if not ended.cancelled():
        ended.exception()


async def _beginning(one: OpenedInstance) -> bytes | None:
    """What stands before the pixel data, as it passes; None where only the whole file tells."""
    try:
        return await one.stream.beginning(_MOST_AT_HAND)
    except Part10Error:
        raise NodeProtocolError(one.node, "sent a truncated instance") from None


def _threads(node: str) -> Threads:
    """Reads spooled files in the loop's own threads; a broken one is what the node sent."""
    return Threads(
        None, (Part10Error, OSError), lambda _: NodeProtocolError(node, "sent an instance that cannot be read")
    )


async def _fetch_alone(ref: Ref, fetch: Fetch, path: Path) -> Path:
    """One instance into a file. Raises NotFound when the node does not give it."""
    found = False
    async with fetch(ref) as instances:
        async for one in instances:
            await _save(one, path)
            found = True
    if not found:
        raise NotFound(f"the series has no instance {ref.instance}")
    return path


async def _save(one: OpenedInstance, path: Path) -> Path:
    """The instance as a file. Raises NodeProtocolError when it is truncated."""
    try:
        with path.open("xb") as file:
            async for chunk in one.stream.raw():
                await asyncio.to_thread(file.write, chunk)
    except Part10Error:
        raise NodeProtocolError(one.node, "sent a truncated instance") from None
    return path
