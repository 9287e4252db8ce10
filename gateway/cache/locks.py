"""Has one replica of many load an answer: a short lock in Redis, renewed while the load lasts, waited for within bounds."""

from __future__ import annotations

import asyncio
import contextvars
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gateway.cache.connections import Link
from gateway.cache.keys import PREFIX

T = TypeVar("T")

LOCK_SECONDS = 3.0
"""How long a lock outlives a replica that died with it."""
MOST_WAIT = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.004, 0.05

# KEYS: lock, entry (of one slot); ARGV: token, ms. Looking and locking are one: nothing can be kept in between.
_CLAIM = """
local got = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
return {got and 1 or 0, redis.call('GET', KEYS[2])}
"""
_RENEW = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0"
_RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('UNLINK', KEYS[1]) or 0"


class Asks(Protocol):
    """The cache: has a command done, or gives None when Redis cannot."""

    async def ask(self, command: Callable[[Link], Awaitable[T]]) -> T | None: ...


class Lock:
    """A lock held by this process, renewed until it is released."""

    def __init__(self, cache: Asks, name: str, token: str) -> None:
        self._cache, self._name, self._token = cache, name, token
        self._renewing: asyncio.Task[None] | None = None
        # Most are released before. It belongs to no request: a renewal must not carry the context of the one that started the load.
        self._starts = asyncio.get_running_loop().call_later(
            LOCK_SECONDS / 3, self._start, context=contextvars.Context()
        )

    async def release(self) -> None:
        """Lets the next one in; a lock that has meanwhile become another's stays."""
        self._starts.cancel()
        if self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None  # which holds this lock
        await _release(self._cache, self._name, self._token)

    def _start(self) -> None:
        self._renewing = asyncio.create_task(self._renew(), name="cache lock")

    async def _renew(self) -> None:
        arguments = [self._token, int(LOCK_SECONDS * 1000)]
        while True:
            await self._cache.ask(lambda link: link.run(_RENEW, [self._name], arguments))
            await asyncio.sleep(LOCK_SECONDS / 3)


@dataclass(frozen=True, slots=True)
class Claim:
    """What came of trying to be the one who loads: the lock if so, the entry as it lies in Redis at that moment.

    `is_taken` says that another one loads; without that and without a lock, Redis could not be asked.
    """

    lock: Lock | None = None
    stored: bytes | None = None
    is_taken: bool = False


async def claim(cache: Asks, key: str) -> Claim:
    """Tries to be the one who loads the entry `key`."""
    name, token = _name(key), secrets.token_hex(8)
    arguments = [token, int(LOCK_SECONDS * 1000)]
    try:
        said = await cache.ask(lambda link: link.run(_CLAIM, [name, key], arguments))
    except BaseException:
        await _release(cache, name, token)  # it may have been granted all the same
        raise
    if said is None:
        return Claim()
    got, stored = said
    return Claim(Lock(cache, name, token) if got else None, stored, not got)


async def released(cache: Asks, key: str) -> None:
    """Waits until nobody loads the entry any more, Redis cannot be asked, or it has lasted too long."""
    name, pause = _name(key), _FIRST_PAUSE
    ends = asyncio.get_running_loop().time() + MOST_WAIT
    while asyncio.get_running_loop().time() < ends:
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
        found = await cache.ask(lambda link: link.mget([name]))
        if found is None or found[0] is None:
            return


async def _release(cache: Asks, name: str, token: str) -> None:
    await cache.ask(lambda link: link.run(_RELEASE, [name], [token]))


def _name(key: str) -> str:
    """The braces put the lock into the slot of its entry."""
    return f"{PREFIX}:lock:{{{key}}}"
