"""The associations of one node: so many at a time, each used by a thread that works for a task and ends with it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar

from pynetdicom.presentation import PresentationContext, build_context

from gateway.adapters.dimse.associations import NodeAssociation, Peer
from gateway.adapters.dimse.channel import Channel, Left
from gateway.errors import NodeBusy, NodeError, NodeProtocolError, deadline_told

T = TypeVar("T")
KEPT_IDLE = 3.0
"""Seconds that an association for C-FIND is kept for the next one."""
_PARTING = 1.0


class Operation(Generic[T]):
    """Work in a thread. Whoever reads `channel` may leave at any time: the association in use is then aborted."""

    def __init__(self, channel: Channel[T]) -> None:
        self.channel = channel
        self._association: NodeAssociation | None = None
        self._lock = threading.Lock()

    def run(self, node: str, work: Callable[[Operation[T]], None]) -> None:
        try:
            work(self)
        except Left:
            # Whoever still reads must not take this for the end of an answer.
            self.channel.end(None if self.channel.left else NodeBusy(node, "the operation was stopped"))
        except NodeError as error:
            self.channel.end(error.alone())
        except Exception as error:  # noqa: BLE001 - a reader must never wait for a thread that has died
            self.channel.end(NodeProtocolError(node, f"could not be understood ({type(error).__name__})"))
        else:
            self.channel.end()

    @contextmanager
    def using(self, association: NodeAssociation) -> Iterator[NodeAssociation]:
        """While it lasts, leaving stops this association. Raises Left when the reader has gone already."""
        with self._lock:
            if self.channel.left:
                raise Left
            self._association = association
        try:
            yield association
        finally:
            with self._lock:
                self._association = None

    def leave(self) -> None:
        """From the event loop; does not block."""
        self.channel.leave()
        self.stop()

    def break_off(self, node: str) -> None:
        """From the event loop, by another than the reader, who must not take it for the end of an answer; does not block."""
        self.channel.break_off(NodeBusy(node, "the operation was stopped"))
        self.stop()

    def stop(self) -> None:
        """From any thread: the association in use is aborted by the thread that uses it."""
        with self._lock:
            if self._association:
                self._association.stop()


class Associations:
    """At most `limit` associations with the node, idle ones included. A permit is waited for `patience` seconds.

    `reading_patience` is how long a thread waits for a reader that takes nothing.
    """

    def __init__(
        self,
        peer: Peer,
        new_for_find: Callable[[], NodeAssociation],
        limit: int,
        *,
        patience: float,
        reading_patience: float,
    ) -> None:
        self.peer = peer
        self._new_for_find = new_for_find
        self._limit = limit
        self._patience = patience
        self._reading_patience = reading_patience
        self._permits = asyncio.Semaphore(limit)
        self._threads: ThreadPoolExecutor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: list[tuple[float, NodeAssociation]] = []
        self._lock = threading.Lock()
        self._active = 0
        self._operations: set[Operation[Any]] = set()

    @property
    def in_use(self) -> int:
        return self._active

    @property
    def idle(self) -> int:
        return len(self._idle)

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        # One thread more than associations, to end idle ones.
        self._threads = ThreadPoolExecutor(self._limit + 1, thread_name_prefix=f"dimse-{self.peer.node}")

    async def close(self) -> None:
        """Aborts what is under way, releases what is idle; returns when no thread is left."""
        threads, self._threads = self._threads, None
        if threads is None:
            return
        for operation in list(self._operations):
            operation.break_off(self.peer.node)
        for association in self._taken_idle(0):
            threads.submit(association.end, release=True)
        await asyncio.to_thread(threads.shutdown, True)

    @asynccontextmanager
    async def operation(self, work: Callable[[Operation[T]], None], capacity: int) -> AsyncIterator[Channel[T]]:
        """Runs `work` in a thread; the body reads what it puts. Raises NodeBusy when no permit comes free."""
        await self._acquire()
        if self._threads is None or self._loop is None:  # also where it was closed meanwhile
            self._permits.release()
            raise NodeBusy(self.peer.node, "not open")
        operation: Operation[T] = Operation(Channel(capacity, self._reading_patience))
        self._active += 1
        self._operations.add(operation)
        done = self._loop.run_in_executor(self._threads, operation.run, self.peer.node, work)
        done.add_done_callback(lambda _: self._give_back(operation))
        try:
            yield operation.channel
        finally:
            operation.leave()
            # The thread ends within its deadlines; mostly at once, and then the permit is back before we go on.
            await asyncio.wait({done}, timeout=_PARTING)

    async def _acquire(self) -> None:
        with deadline_told(self._full):
            async with asyncio.timeout(self._patience):
                await self._permits.acquire()

    def _full(self) -> NodeBusy:
        return NodeBusy(self.peer.node, f"all {self._limit} associations are in use", retry_after=1.0)

    def _give_back(self, operation: Operation[Any]) -> None:
        self._active -= 1
        self._operations.discard(operation)
        self._permits.release()

    @contextmanager
    def searching(self, operation: Operation[Any]) -> Iterator[NodeAssociation]:
        """In the thread: an association for C-FIND, kept for the next one when it ends well."""
        association = self._reusable() or self._new_for_find()
        with _ended_on_failure(association), operation.using(association):
            if not association.is_usable:
                self._make_room()
                association.request()
            yield association
        self._keep(association)

    @contextmanager
    def other(self, operation: Operation[Any], association: NodeAssociation) -> Iterator[NodeAssociation]:
        """In the thread: an association of its own, released at the end, or aborted when the body fails."""
        self._make_room()
        with _ended_on_failure(association), operation.using(association):
            association.request()
            yield association
            association.end(release=True)

    def _reusable(self) -> NodeAssociation | None:
        while True:
            with self._lock:
                association = self._idle.pop()[1] if self._idle else None
            if association is None or association.is_usable:
                return association
            association.end()

    def _make_room(self) -> None:
        for association in self._taken_idle(max(0, self._limit - self._active)):
            association.end(release=True)

    def _taken_idle(self, keep: int) -> Sequence[NodeAssociation]:
        with self._lock:
            cut = len(self._idle) - keep
            taken = [association for _, association in self._idle[: max(0, cut)]]
            self._idle = self._idle[max(0, cut) :]
        return taken

    def _keep(self, association: NodeAssociation) -> None:
        threads, loop = self._threads, self._loop
        if threads is None or loop is None or not association.is_usable:
            association.end()
            return
        with self._lock:
            self._idle.append((time.monotonic(), association))
        try:
            loop.call_soon_threadsafe(lambda: loop.call_later(KEPT_IDLE, self._expire))
        except RuntimeError:  # the event loop has gone, and no timer will come
            self._make_room()

    def _expire(self) -> None:
        threshold = time.monotonic() - KEPT_IDLE + 0.01
        with self._lock:
            expired = [association for since, association in self._idle if since <= threshold]
            self._idle = [(since, association) for since, association in self._idle if since > threshold]
        for association in expired:
            if self._threads is not None:
                self._threads.submit(association.end, release=True)


@contextmanager
def _ended_on_failure(association: NodeAssociation) -> Iterator[None]:
    """Around all that is done with it: also a reader who has left before it was begun leaves none open."""
    try:
        yield
    except BaseException:
        association.end()
        raise


def find_context(model: str) -> list[PresentationContext]:
    """One context for a query model; Explicit VR first, because it tells the VR of private attributes."""
    return [build_context(model, ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])]
