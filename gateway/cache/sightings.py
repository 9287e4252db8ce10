"""Remembers in Redis, for every replica, when the gateway first saw a study or saw it change, and whether it saw it go.

Of each study there is one record per view, with a part for each node that holds it: a digest of what the node says of the
study, and the moment from which on it has said so. A node that is silent leaves its part as it is. No name, number or UID of
anybody is in it: the key is a digest, and so is the patient in the name of a part.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gateway.cache.client import Cache
from gateway.cache.connections import Link
from gateway.errors import RecordUnavailable

T = TypeVar("T")

# Not below the prefix of what is cached: a purge must not make every study a new one.
_PREFIX = "gw:seen:"
_AT_ONCE = 100
"""Studies told in one round trip: it is to take a few milliseconds."""
_PATIENCE, _PAUSE = 1.5, 0.1
"""Seconds that a Redis which did not answer somebody just now is waited for, by who cannot do without."""
_WAITING = 4
"""Connections that they who wait take at once: the others are for those who do not."""
_LENGTH = 16
_GONE = "-" * _LENGTH

# KEYS: who asks; ARGV: ms that it is remembered, a digest of the nodes that he may ask now. Gives since when it is these.
_ASKED = """
local clock = redis.call('TIME')
local now = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000) + 1)
local kept = redis.call('GET', KEYS[1])
if not kept or string.sub(kept, 1, 16) ~= ARGV[2] then kept = ARGV[2] .. now end
redis.call('SET', KEYS[1], kept, 'PX', ARGV[1])
return string.sub(kept, 17)
"""
# KEYS: study; ARGV: ms that it is remembered, '/node/node/' that told all they have, then part and digest by turns ('' says
# that the part is there, and nothing of what it is; '?' before it, that it was so a while ago). The moment is the next whole
# millisecond, so that it is later than whatever the clock said before. What nodes told all of and is not among the parts is
# gone.
_OBSERVE = (
    """
local clock = redis.call('TIME')
local now = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000) + 1)
local here = {}
for i = 3, #ARGV, 2 do
  here[ARGV[i]] = true
  local said, had = ARGV[i + 1], redis.call('HGET', KEYS[1], ARGV[i])
  local old = string.sub(said, 1, 1) == '?'
  if said ~= '' and (not had or (not old and string.sub(had, 1, 16) ~= said)) then
    redis.call('HSET', KEYS[1], ARGV[i], (old and string.sub(said, 2) or said) .. now)
  end
end
if #ARGV > 2 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
local kept = redis.call('HGETALL', KEYS[1])
for i = 1, #kept, 2 do
  local told = string.find(ARGV[2], '/' .. string.match(kept[i], '^[^/]*') .. '/', 1, true)
  if told and not here[kept[i]] and string.sub(kept[i + 1], 1, 1) ~= '-' then
    kept[i + 1] = '"""
    + _GONE
    + """' .. now
    redis.call('HSET', KEYS[1], kept[i], kept[i + 1])
  end
end
return kept
"""
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One study as it is seen now. `parts`: by name (`part`), a digest (`digest_of`) of what its node says, or '' for
    the same as before. `told` are nodes that have told all they have of it. What `is_old` was heard a while ago: it says that
    the study was seen, and nothing of changes."""

    study: str
    parts: Mapping[str, str] = field(default_factory=dict)
    told: Iterable[str] = ()
    is_old: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """What a node says of a study (`digest_of`), and since when, in milliseconds since the epoch."""

    digest: str
    moment: int

    @property
    def is_gone(self) -> bool:
        """Whether it says that it has it not."""
        return self.digest == _GONE


Parts = Mapping[str, Part]


def part(node: str, study: str, issuer: str, identifier: str) -> str:
    """Names a node's part of a study of one patient."""
    return f"{node}/{digest(study, issuer, identifier)[:_LENGTH]}"


def node_of(part_: str) -> str:
    """The node whose part it is."""
    return part_.partition("/")[0]


def digest_of(study: str, facts: bytes) -> str:
    """What a part is compared by."""
    return hashlib.sha256(study.encode() + b"\0" + facts).hexdigest()[:_LENGTH]


class Sightings:
    """The records in the Redis of `cache`, each for `days` after the study was last seen: then it counts as seen anew."""

    def __init__(self, cache: Cache, days: float) -> None:
        self._cache, self._days = cache, days
        self._permits = asyncio.Semaphore(_WAITING)

    @property
    def is_kept(self) -> bool:
        """Whether there is a Redis that is to keep them: one that this process started would begin anew with it."""
        return self._cache.is_shared and self._days > 0

    async def now(self) -> int:
        """The moment by the clock of Redis, in milliseconds since the epoch: what is recorded from now on is later.

        Raises RecordUnavailable.
        """
        return await self._patiently(lambda link: link.clock())

    async def asked_since(self, who: Iterable[str], nodes: Iterable[str]) -> int:
        """Since when it is these nodes that `who` (whatever decides which they are) may ask: what another one holds was not told
        before then. Raises RecordUnavailable."""
        key, nodes_now = f"{_PREFIX}asks:{digest(*who)[:32]}", digest(*sorted(nodes))[:_LENGTH]
        return int(await self._patiently(lambda link: link.run(_ASKED, [key], [self._lasts, nodes_now])))

    @property
    def _lasts(self) -> int:
        """In milliseconds."""
        return int(self._days * 86_400_000)

    async def observe(self, view: str, studies: Sequence[Seen], *, patiently: bool = False) -> list[Parts]:
        """Writes down what is seen through the view of this digest, and gives all that is recorded of each study.

        A page of studies is one round trip. `patiently` is for who needs the answer: a Redis that is only busy is waited for.
        Raises RecordUnavailable.
        """
        found: list[Parts] = []
        for start in range(0, len(studies), _AT_ONCE):
            calls = [(_key(view, one.study), self._arguments(one)) for one in studies[start : start + _AT_ONCE]]
            found += map(_parts, await self._run(calls, patiently))
        return found

    async def _run(self, calls: Sequence[tuple[str, Sequence[Any]]], patiently: bool) -> list[Any]:
        async def run(link: Link) -> list[Any]:
            return await link.run_each(_OBSERVE, calls)

        return await self._patiently(run) if patiently else _said(await self._cache.ask(run))

    async def _patiently(self, command: Callable[[Link], Awaitable[T]]) -> T:
        async with self._permits:
            ends = asyncio.get_running_loop().time() + _PATIENCE
            while True:
                answer = await self._cache.wait(command, _PATIENCE)
                if answer is not None or asyncio.get_running_loop().time() > ends:
                    return _said(answer)
                await asyncio.sleep(_PAUSE)

    def _arguments(self, seen: Seen) -> list[Any]:
        told = "/".join(("", *(() if seen.is_old else seen.told), ""))
        sign = "?" if seen.is_old else ""
        parts = [each for name, digest in seen.parts.items() for each in (name, digest and sign + digest)]
        return [self._lasts, told, *parts]


def _key(view: str, study: str) -> str:
    return _PREFIX + digest(view, study)[:32]


def digest(*texts: str) -> str:
    """What stands for texts in keys and records, in 64 hex: the same on every replica."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _parts(answer: Sequence[bytes]) -> Parts:
    texts = [each.decode() for each in answer]
    return {
        name: Part(value[:_LENGTH], int(value[_LENGTH:])) for name, value in zip(texts[::2], texts[1::2], strict=True)
    }


def _said(answer: T | None) -> T:
    """The answer of Redis. Raises RecordUnavailable where there is none."""
    if answer is None:
        raise RecordUnavailable(
            "Redis, which knows when studies were first seen, does not answer: ask again in a moment, or without "
            "_lastUpdated",
            parameter="_lastUpdated",
        )
    return answer
