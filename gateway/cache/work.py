"""Hands out work to whichever replica is free: a Redis stream with one consumer group, or a queue of this process alone.

An entry names a job that has something to do next, and nothing else: what there is to do is written down elsewhere, so that
losing the stream loses no work. There is at most one entry per job.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.cache.session import Session

LEASE = 6.0
"""Seconds after which an entry that nobody says to be working on is given to another."""

# Not below the prefix of what is cached: a purge of everything must not stop the work.
_STREAM, _GROUP = "gw:work:export", "replicas"
_BLOCK = 1.0
_KEPT = 7 * 24 * 3600 * 1000

# KEYS: stream; ARGV: job, ms that the stream outlives its last entry.
_PUT = """
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do
  if entry[2][2] == ARGV[1] then return 0 end
end
redis.call('XADD', KEYS[1], '*', 'job', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
# KEYS: stream; ARGV: group, entry.
_DONE = """
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
return redis.call('XDEL', KEYS[1], ARGV[2])
"""
# As one: a job is never without its entry. KEYS: stream; ARGV: job, ms, group, entry.
_NEXT = (
    """
redis.call('XACK', KEYS[1], ARGV[3], ARGV[4])
redis.call('XDEL', KEYS[1], ARGV[4])
"""
    + _PUT
)
# KEYS: stream; ARGV: group, consumer, ms of the lease.
_CLAIM = """
redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
return redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], '0', 'COUNT', 1)[2]
"""
# KEYS: stream; ARGV: group, consumer, entry.
_HOLD = "return #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID')"


@dataclass(frozen=True, slots=True)
class Entry:
    """A job to work on; `id` is the entry's own."""

    job: str
    id: str


class Queue(Protocol):
    """No method raises for what Redis does or fails to do: whoever finds a job without an entry puts it in again."""

    async def put(self, job: str) -> None:
        """Has somebody work on the job, unless it is waiting or being worked on already."""

    async def take(self) -> Entry | None:
        """The next one, waited for about a second; None when there was none."""

    async def hold(self, entry: Entry) -> None:
        """Says that the entry is being worked on."""

    async def next(self, entry: Entry) -> None:
        """Done, and the job has more to do: it goes to the end of the queue."""

    async def done(self, entry: Entry) -> None:
        """Done, and the job needs nobody any more."""


class Stream:
    """A stream in Redis: every replica takes part."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._name = secrets.token_hex(8)

    async def put(self, job: str) -> None:
        await self._run(_PUT, job, _KEPT)

    async def take(self) -> Entry | None:
        entries = await self._run(_CLAIM, _GROUP, self._name, int(LEASE * 1000))
        if entries is None:  # Redis is away
            await asyncio.sleep(_BLOCK)
            return None
        if not any(entries):
            block = int(_BLOCK * 1000)
            read = await self._session.wait(lambda link: link.read(_STREAM, _GROUP, self._name, block), _BLOCK)
            entries = read[0][1] if read else ()
        for entry in entries:
            if entry and entry[1]:
                return _entry(entry)
        return None

    async def hold(self, entry: Entry) -> None:
        await self._run(_HOLD, _GROUP, self._name, entry.id)

    async def next(self, entry: Entry) -> None:
        await self._run(_NEXT, entry.job, _KEPT, _GROUP, entry.id)

    async def done(self, entry: Entry) -> None:
        await self._run(_DONE, _GROUP, entry.id)

    async def _run(self, script: str, *arguments: Any) -> Any:
        return await self._session.ask(lambda link: link.run(script, [_STREAM], arguments))


def _entry(raw: Any) -> Entry:
    """(id, fields), where the fields are a list out of a script and a dict out of the client."""
    identifier, fields = raw
    job = fields[b"job"] if isinstance(fields, dict) else fields[1]
    return Entry(job.decode(), identifier.decode())


class Alone:
    """A queue of this process, for when there is no Redis at all."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._taken: set[str] = set()
        self._some = asyncio.Event()

    async def put(self, job: str) -> None:
        if job not in self._taken and job not in self._waiting:
            self._waiting.append(job)
            self._some.set()

    async def take(self) -> Entry | None:
        try:
            async with asyncio.timeout(_BLOCK):
                await self._some.wait()
        except TimeoutError:
            return None
        if not self._waiting:  # another of this process was quicker
            self._some.clear()
            return None
        job = self._waiting.popleft()
        self._taken.add(job)
        if not self._waiting:
            self._some.clear()
        return Entry(job, "")

    async def hold(self, entry: Entry) -> None:
        """Nobody else could take it."""

    async def next(self, entry: Entry) -> None:
        await self.done(entry)
        await self.put(entry.job)

    async def done(self, entry: Entry) -> None:
        self._taken.discard(entry.job)


def queue_of(session: Session) -> Queue:
    """The stream where there is a Redis, at hand or away at the moment; else a queue of this process."""
    return Alone() if session.state == "off" else Stream(session)
