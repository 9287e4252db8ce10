"""Remembers in Redis, for every replica, as whose each StudyInstanceUID was shown, and by which nodes: a UID may name the
studies of two patients.

No name, number or UID of anybody is in it: the key is a digest, and so are each patient and each node.
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
_ISSUER, _WHOSE, _NODE = 8, 16, 8

# KEYS: study; ARGV: ms that it is remembered, an entry to add ('' for none), entries to take out. Gives all that are there,
# '/entry/entry/'. One UID for everything that an archive has does not make it endless.
_SHOWN = """
local kept = redis.call('GET', KEYS[1]) or '/'
for i = 3, #ARGV do
  local from, to = string.find(kept, '/' .. ARGV[i] .. '/', 1, true)
  if from then kept = string.sub(kept, 1, from) .. string.sub(kept, to + 1) end
end
if ARGV[2] ~= '' and #kept < 8192 and not string.find(kept, '/' .. ARGV[2] .. '/', 1, true) then
  kept = kept .. ARGV[2] .. '/'
end
redis.call('SET', KEYS[1], kept, 'PX', ARGV[1])
return kept
"""

Mark = tuple[str, str]
"""Stands for one identifier of a patient under one StudyInstanceUID: for its issuer, and for whom that means by it."""


def mark(study: str, issuer: str, whose: str) -> Mark:
    """`whose` is the identifier, or whatever else tells the patient apart."""
    return digest(study, issuer)[:_ISSUER], digest(study, issuer, whose)[:_WHOSE]


def node_mark(node: str) -> str:
    """What stands for a node."""
    return digest(node)[:_NODE]


@dataclass(frozen=True, slots=True)
class Entry:
    """A patient, by all identifiers that a study was shown with, and the nodes (`node_mark`) that showed it so."""

    marks: frozenset[Mark]
    nodes: frozenset[str]

    def __str__(self) -> str:
        return "+".join(sorted(map("".join, self.marks))) + "@" + "+".join(sorted(self.nodes))

    @classmethod
    def read(cls, text: str) -> Entry:
        marks, _, nodes = text.partition("@")
        pairs = frozenset((one[:_ISSUER], one[_ISSUER:]) for one in marks.split("+"))
        return cls(pairs, frozenset(nodes.split("+")))


@dataclass(frozen=True, slots=True)
class Shown:
    """A study (UID), as whose it is shown (None: it is not), and the entries of whom it is no more."""

    study: str
    entry: Entry | None
    gone: Iterable[Entry] = ()


class NamesakeRecord:
    """Kept in the Redis of `cache` for `days` after a study was last shown."""

    def __init__(self, cache: Cache, days: float) -> None:
        self._cache, self._days = cache, days

    async def shown(self, studies: Sequence[Shown]) -> list[list[Entry] | None]:
        """Writes down as whose the studies are shown, and gives as whom each was ever shown; None where there is no Redis, or it
        does not answer."""
        found: list[list[Entry] | None] = []
        for start in range(0, len(studies), _AT_ONCE):
            some = studies[start : start + _AT_ONCE]
            answers = await self._run(some) if self._days > 0 else None
            found += [None] * len(some) if answers is None else map(_entries, answers)
        return found

    async def _run(self, studies: Iterable[Shown]) -> list[bytes] | None:
        lasts = int(self._days * 86_400_000)
        calls = [
            (_PREFIX + digest(one.study)[:32], [lasts, str(one.entry or ""), *map(str, one.gone)]) for one in studies
        ]

        async def run(link: Link) -> list[bytes]:
            return await link.run_each(_SHOWN, calls)

        return await self._cache.ask(run)


def _entries(kept: bytes) -> list[Entry]:
    return [Entry.read(text) for text in filter(None, kept.decode().split("/"))]
