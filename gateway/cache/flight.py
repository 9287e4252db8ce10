"""Makes many callers of one question wait for one load of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

from gateway.errors import GatewayError

T = TypeVar("T")
Afterwards = Callable[[T, Callable[[], bool]], Awaitable[None]]


class _Flight(Generic[T]):
    """One load under way. `result` is there before the task ends: what follows a load keeps no caller waiting."""

    def __init__(self, key: str, detached: bool) -> None:
        self.key = key
        self.detached = detached
        self.waiters = 0
        self.result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None

    @property
    def answer(self) -> T | None:
        """None while there is none."""
        is_there = self.result.done() and not self.result.cancelled() and self.result.exception() is None
        return self.result.result() if is_there else None


class Flights(Generic[T]):
    """The loads of one event loop. Close it to cancel what is still under way."""

    def __init__(self) -> None:
        self._flying: dict[str, _Flight[T]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._flying)

    async def fetch(
        self,
        key: str,
        load: Callable[[], Awaitable[T]],
        *,
        afterwards: Afterwards[T] | None = None,
        detached: bool = False,
    ) -> T:
        """The answer of the one load that is under way for `key`, which this call starts if there is none.

        The load runs in a task of its own, in a copy of the context of the caller that started it. A caller that is
        cancelled leaves alone; when the last one leaves, the load is cancelled, unless one of them said `detached`. A
        failure reaches everyone who waits (as one and the same exception) and is not remembered. `afterwards` gets the
        answer and a function that says whether it is still wanted (see `forget`); callers that come meanwhile get the
        answer too. All callers share the object that `load` returned. A load must not fetch its own key.
        """
        flight = self._flying.get(key)
        if flight is None:
            flight = self._depart(key, load, afterwards)
        flight.detached |= detached
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.result)
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.detached and not flight.result.done():
                self._abandon(flight)
            del flight  # what it ended with holds this frame

    def start(
        self,
        key: str,
        load: Callable[[], Awaitable[T]],
        *,
        afterwards: Afterwards[T] | None = None,
    ) -> None:
        """Has the load for `key` done to its end, unless one is under way; waits for nothing. As a detached `fetch`."""
        if self._closed:
            return
        flight = self._flying.get(key) or self._depart(key, load, afterwards)
        flight.detached = True

    def forget(self, matches: Callable[[str], bool]) -> None:
        """Lets nobody join the flights of these keys any more: who asks from now on gets a load that starts now."""
        for key in [key for key in self._flying if matches(key)]:
            del self._flying[key]

    def leave(self, key: str, answer: T) -> None:
        """As `forget`, of the flight that gave this answer; another one that has begun since is joined as before."""
        flight = self._flying.get(key)
        if flight is not None and flight.answer is answer:
            del self._flying[key]

    async def close(self) -> None:
        """Cancels every load and waits until each has given back what it held."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _depart(
        self,
        key: str,
        load: Callable[[], Awaitable[T]],
        afterwards: Afterwards[T] | None,
    ) -> _Flight[T]:
        if self._closed:
            raise GatewayError("the gateway is shutting down")
        flight: _Flight[T] = _Flight(key, False)
        flight.task = asyncio.create_task(self._fly(flight, load, afterwards), name="cache load")
        self._flying[key] = flight
        self._tasks.add(flight.task)
        flight.task.add_done_callback(lambda task: self._land(flight, task))
        return flight

    async def _fly(
        self, flight: _Flight[T], load: Callable[[], Awaitable[T]], afterwards: Afterwards[T] | None
    ) -> None:
        try:
            answer = await load()
            # An abandoned load may have finished all the same: its future is then already cancelled.
            if not flight.result.done():
                flight.result.set_result(answer)
            if afterwards is not None:
                await afterwards(answer, partial(self._is_flying, flight))
        finally:
            del flight  # what it ends with holds this frame

    def _is_flying(self, flight: _Flight[T]) -> bool:
        return self._flying.get(flight.key) is flight

    def _land(self, flight: _Flight[T], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._drop(flight)
        error = None if task.cancelled() else task.exception()
        if not flight.result.done():
            # Nobody who waits was cancelled, so nobody is told so: to a task group that would mean something else.
            flight.result.set_exception(error or GatewayError("the load was interrupted"))
            flight.result.exception()
        elif error is not None and not flight.result.cancelled():  # of an abandoned load nobody wants to know
            task.get_loop().call_exception_handler(
                {"message": "work after a load failed", "exception": error, "task": task}
            )

    def _abandon(self, flight: _Flight[T]) -> None:
        self._drop(flight)
        flight.result.cancel()
        if flight.task is not None:
            flight.task.cancel()

    def _drop(self, flight: _Flight[T]) -> None:
        if self._is_flying(flight):
            del self._flying[flight.key]
