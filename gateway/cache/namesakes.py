"""Remembers in Redis, for every replica, as whose each StudyInstanceUID was shown: a UID may name the studies of two patients.

No name, number or UID of anybody is in it: the key is a digest, and so is each patient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.cache.client import Cache
from gateway.cache.connections import Link
from gateway.cache.sightings import digest

# As with sightings: a purge of what is cached must not make anybody forgotten.
_PREFIX = "gw:whose:"
_AT_ONCE = 100
_LENGTH = 16

# KEYS: study; ARGV: ms that it is remembered, 'only' where nobody else is to be remembered any more, then the patients.
# Gives all who are. One UID for everything that an archive has does not make it endless.
_SHOWN = """
local kept = ARGV[2] ~= 'only' and redis.call('GET', KEYS[1]) or ''
for i = 3, #ARGV do
  if #kept < 4096 and not string.find(kept, ARGV[i], 1, true) then kept = kept .. ARGV[i] .. '/' end
end
redis.call('SET', KEYS[1], kept, 'PX', ARGV[1])
return kept
"""


def mark(study: str, issuer: str, whose: str) -> str:
    """Stands for one patient under one StudyInstanceUID; `whose` is his identifier, or whatever else tells him apart."""
    return digest(study, issuer, whose)[:_LENGTH]


@dataclass(frozen=True, slots=True)
class Shown:
    """A study (UID), and the `mark`s of all identifiers of the patient that it is shown as. With `only`, it was nobody else's
    when all who may have it were asked."""

    study: str
    marks: frozenset[str]
    only: bool = False


class NamesakeRecord:
    """Kept in the Redis of `cache` for `days` after a study was last shown."""

    def __init__(self, cache: Cache, days: float) -> None:
        self._cache, self._days = cache, days

    async def shown(self, studies: Sequence[Shown]) -> list[frozenset[str] | None]:
        """Writes down as whose the studies are shown, and gives the marks of all that each was ever shown as; None where there is
        no Redis, or it does not answer."""
        found: list[frozenset[str] | None] = []
        for start in range(0, len(studies), _AT_ONCE):
            some = studies[start : start + _AT_ONCE]
            answers = await self._run(some) if self._days > 0 else None
            found += [None] * len(some) if answers is None else map(_marks, answers)
        return found

    async def _run(self, studies: Iterable[Shown]) -> list[bytes] | None:
        lasts = int(self._days * 86_400_000)
        calls = [
            (_PREFIX + digest(one.study)[:32], [lasts, "only" if one.only else "", *sorted(one.marks)])
            for one in studies
        ]

        async def run(link: Link) -> list[bytes]:
            return await link.run_each(_SHOWN, calls)

        return await self._cache.ask(run)


def _marks(kept: bytes) -> frozenset[str]:
    return frozenset(filter(None, kept.decode().split("/")))
