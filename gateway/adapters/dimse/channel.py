"""Hands items from a worker thread to the event loop through a bounded buffer: a slow reader makes the writer wait."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

from gateway.errors import NodeError

T = TypeVar("T")


class Left(Exception):
    """The reader has gone, or has not read for too long: the writer has nothing more to do."""


class Channel(Generic[T]):
    """One writing thread, one reading task. `capacity` is in the unit of the weights; one item may overshoot it.

    `patience` is how many seconds a writer waits for room before it takes the reader for gone.
    """

    def __init__(self, capacity: int, patience: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[tuple[T, int]] = deque()
        self._room = threading.Condition()
        self._ready = asyncio.Event()
        self._is_awaited = False
        self._capacity = capacity
        self._patience = patience
        self._held = 0
        self._ended = False
        self._failure: NodeError | None = None
        self.left = False

    def put(self, item: T, weight: int = 1) -> None:
        """From the thread. Waits for room. Raises Left when the reader has gone."""
        with self._room:
            has_room = self._room.wait_for(lambda: self.left or self._held < self._capacity, self._patience)
            if self.left or not has_room:
                raise Left
            self._items.append((item, weight))
            self._held += weight
            self._wake()

    def end(self, failure: NodeError | None = None) -> None:
        """From the thread. What was put before is still read, then the failure or the end; the first call wins."""
        with self._room:
            if self._ended:
                return
            self._ended, self._failure = True, failure
            self._wake()

    def leave(self) -> None:
        """From the reader: whatever is buffered is dropped, and a waiting writer goes free."""
        with self._room:
            self.left = True
            self._items.clear()
            self._room.notify_all()

    def break_off(self, failure: NodeError) -> None:
        """From the event loop: as if the reader had left, who is still there and hears of the failure."""
        with self._room:
            self._ended, self._failure = True, failure
            self.leave()
            self._wake()

    def __aiter__(self) -> Channel[T]:
        return self

    async def __anext__(self) -> T:
        while True:
            with self._room:
                if self._items:
                    return self._take()
                if self._ended:
                    raise self._failure.alone() if self._failure else StopAsyncIteration
                self._ready.clear()
                self._is_awaited = True
            await self._ready.wait()

    def _take(self) -> T:
        item, weight = self._items.popleft()
        self._held -= weight
        self._room.notify_all()
        return item

    def _wake(self) -> None:
        """Only who waits is woken: each time costs the event loop a turn."""
        if not self._is_awaited:
            return
        self._is_awaited = False
        with suppress(RuntimeError):  # the event loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._ready.set)
