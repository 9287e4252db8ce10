"""Keeps in touch with Redis: up, down or off; what it could not be told while it was away is told before it is up again."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Literal, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.cache import measures, restarts
from gateway.cache.connections import CONNECTIONS, Link, connect, hang_up
from gateway.cache.embedded import EmbeddedServer
from gateway.cache.missed import Missed
from gateway.cache.purges import Purge, Step, unlink

T = TypeVar("T")
State = Literal["up", "down", "off"]

_log = logging.getLogger(__name__)

_DOUBTFUL = 60.0
"""Seconds in which a purge may not have reached the replica that is the primary next."""
_NOTICED = 5.0
"""Seconds within which it is noticed that a server is gone."""
_BETWEEN_WARNINGS = 60.0
_MOST_DONE = 1000
_LATE = 2.0
"""Seconds that a server may be late with the end of a wait: it looks at those only now and then."""


class Session:
    """The commands that Redis is given, each within `timeout` seconds; none of them raises. Of one event loop.

    `state` is "up", "down" (a task of its own asks again every `retry_after` seconds) or "off" (there is no server); `trouble` is
    what kept it from getting up the last time.
    A dead or hanging Redis costs those who are asking one `timeout` together, and nothing after that until it is back.
    """

    def __init__(self, url: str | None, server: EmbeddedServer | None, timeout: float, retry_after: float) -> None:
        self.state: State = "off" if url is None else "down"
        self.timeout, self.retry_after = timeout, retry_after
        self.failures = 0
        self.trouble = "no answer"
        self._server = server
        self._link: Link | None = None if url is None else connect(url, timeout)
        self._permits = asyncio.Semaphore(CONNECTIONS)
        self._recovery: asyncio.Task[None] | None = None
        self._last_fall = self._last_warning = float("-inf")
        self._missed = Missed()
        self._done: deque[tuple[float, Purge]] = deque()

    async def close(self) -> None:
        """Ends the recovery, the connections and the embedded server; it is "off" from then on."""
        self.state = "off"
        await end(self._recovery)
        if self._link is not None:
            await hang_up(self._link)
        if self._server is not None:
            await self._server.close()

    @property
    def owes(self) -> bool:
        """Whether something that was to be deleted or purged still waits for Redis to be back."""
        return bool(self._missed)

    async def ask(self, command: Callable[[Link], Awaitable[T]]) -> T | None:
        """The server's answer, or None. A permit is waited for outside the deadline: a queue is not a silent server."""
        if self.state != "up":
            return None
        async with self._permits:
            return await self._within(command, self.timeout)

    async def wait(self, command: Callable[[Link], Awaitable[T]], seconds: float) -> T | None:
        """As `ask`, for a command that the server itself may take so many seconds to answer; it takes no permit meanwhile."""
        return await self._within(command, seconds + max(self.timeout, _LATE))

    async def _within(self, command: Callable[[Link], Awaitable[T]], seconds: float) -> T | None:
        if self.state != "up" or self._link is None:
            return None
        try:
            async with asyncio.timeout(seconds):
                return await command(self._link)
        except (RedisConnectionError, RedisTimeoutError) as error:
            self._fall(type(error).__name__)
        except RedisError as error:
            self._refused(type(error).__name__)
        except Exception as error:  # noqa: BLE001 - a transport closed underneath redis-py shows as anything
            self._fall(type(error).__name__)
        return None

    async def insist(self, command: Callable[[Link], Awaitable[T]]) -> T:
        """As `ask`. Raises Unanswered where that gives None."""
        answer = await self.ask(command)
        if answer is None:
            raise Unanswered
        return answer

    def _refused(self, reason: str) -> None:
        """A full Redis refuses every write: it is counted each time, and said once in a while."""
        measures.refusals.inc()
        now = asyncio.get_running_loop().time()
        if now - self._last_warning > _BETWEEN_WARNINGS:
            self._last_warning = now
            _log.warning("the cache refused a command: %s", reason)

    def _fall(self, reason: str) -> None:
        """From "up" to "down". The first try to get up comes at once, unless the last fall was a window ago or less."""
        if self.state == "off" or (self._recovery is not None and not self._recovery.done()):
            return
        self.state = "down"
        measures.up.set(0)
        self.failures += 1
        _log.warning("the cache is down (%s): going on without it", reason)
        now = asyncio.get_running_loop().time()
        again, self._last_fall = now - self._last_fall < self.retry_after, now
        # What was purged lately is purged again: a replica that is the primary next may not have heard of it.
        self._missed.add(purges=[purge for when, purge in self._done if now - when < _DOUBTFUL])
        self._recovery = asyncio.create_task(self._recover(again), name="cache recovery", context=contextvars.Context())

    async def _recover(self, wait_first: bool) -> None:
        while wait_first or not await self._probe():
            wait_first = False
            await asyncio.sleep(self.retry_after)
        _log.info("the cache is up")

    async def _probe(self, revive: bool = True) -> bool:
        """Whether the server answers and has forgotten what it should have; then the cache is up."""
        link = self._link
        if link is None:
            return False
        try:
            async with asyncio.timeout(self.timeout * link.steps):
                await link.reset()
            await self._catch_up(link)
        except Exception as error:  # noqa: BLE001 - whatever it is, the answer is no
            self.trouble = type(error).__name__
            return revive and await self._revive() and await self._probe(revive=False)
        if self.state == "down":
            self.state = "up"
            measures.up.set(1)
        return True

    async def _catch_up(self, link: Link) -> None:
        """Deletes what was missed, and all of a server that read its file while nobody looked: what was purged since that was
        written is not known. Nothing is awaited between the last look at the list and the return to "up"."""

        async def step(command: Callable[[Link], Awaitable[T]]) -> T:
            async with asyncio.timeout(self.timeout):
                return await command(link)

        down = asyncio.get_running_loop().time() - self._last_fall + _NOTICED
        runs = await step(lambda link: link.runs())
        if await restarts.are_in_doubt(runs, down, step):
            await self._carry_out(Purge("all"), step)
        await restarts.vouch_for(runs, step)
        while self._missed:
            keys, purges = self._missed.take()
            try:
                for purge in purges:
                    await self._carry_out(purge, step)
                await unlink(keys, step)
            except BaseException:
                self._miss(keys, purges)
                raise

    async def _carry_out(self, purge: Purge, step: Step) -> int:
        """Has Redis forget what a purge drops."""
        raise NotImplementedError

    async def _revive(self) -> bool:
        """Starts the embedded server again when it is gone; a new one is empty, so nothing was missed."""
        if self._server is None or self.state == "off" or await self._server.is_listening():
            return False
        if not await self._server.restart() or self._server.url is None:
            return False
        old, self._link = self._link, connect(self._server.url, self.timeout)
        self._missed.take()
        if old is not None:
            await hang_up(old)
        return True

    def _remember(self, purge: Purge) -> None:
        """What was purged lately; too much of it becomes a purge of everything."""
        now = asyncio.get_running_loop().time()
        while self._done and now - self._done[0][0] >= _DOUBTFUL:
            self._done.popleft()
        if len(self._done) >= _MOST_DONE:
            self._done.clear()
            purge = Purge("all")
        self._done.append((now, purge))

    def _miss(self, keys: Iterable[str] = (), purges: Iterable[Purge] = ()) -> None:
        """To be forgotten yet. A server that refuses to is none to go on with: it is asked again until it has forgotten."""
        if self.state != "off":
            self._missed.add(keys, purges)
        if self.state == "up":
            self._fall("it does not forget")


class Unanswered(Exception):
    """Redis could not be asked."""


async def end(task: asyncio.Task[None] | None) -> None:
    """Cancels a task and waits until it has ended."""
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
