"""Purges: what is dropped, how the other replicas hear of it, and how Redis forgets it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, get_args

import orjson

from gateway.cache.connections import Cursor, Link
from gateway.cache.keys import PREFIX, is_of_node, is_search_of, node_patterns, search_patterns
from gateway.cache.tags import ANY_ISSUER, Tag, index_key, patient_tag, study_tag

T = TypeVar("T")
Kind = Literal["study", "patient", "node", "searches", "keys", "all"]
CHANNEL = f"{PREFIX}:purge"
EVERYTHING = f"{PREFIX}:*"
_INDEXES, _LOCKS = f"{PREFIX}:tag:", f"{PREFIX}:lock:"
_STEP = 500
_READ_STEP = 10
"""Entries read at once: as many as may be megabytes each come within the deadline of a command."""


@dataclass(frozen=True, slots=True)
class Purge:
    """What is dropped. `values` are study UIDs, node ids or keys; "searches" are those nodes' answers to searches. A patient is
    named by the hex of his tags (`tags.patient_tag` under his issuer and under any), since the message crosses Redis. "all" is also
    said when a purge may have been missed; where somebody wants it, it is EVERYTHING_KEPT."""

    kind: Kind
    values: tuple[str, ...] = ()

    @staticmethod
    def of_patient(issuer: str, identifier: str) -> Purge:
        tags = (patient_tag(each, identifier) for each in (issuer, ANY_ISSUER))
        return Purge("patient", tuple(tag.hex() for tag in tags))

    def tags(self) -> frozenset[Tag]:
        """The tags of the entries it drops; none for kinds that go by the key."""
        if self.kind == "study":
            return frozenset(map(study_tag, self.values))
        return frozenset(map(bytes.fromhex, self.values)) if self.kind == "patient" else frozenset()

    def drops_key(self, key: str) -> bool:
        """Whether it drops an entry for its key alone."""
        if self.kind == "node":
            return any(is_of_node(key, node) for node in self.values)
        if self.kind == "searches":
            return any(is_search_of(key, node) for node in self.values)
        return self.kind == "all" or (self.kind == "keys" and key in self.values)

    def message(self, sender: str) -> bytes:
        return orjson.dumps({"from": sender, "kind": self.kind, "values": self.values})


EVERYTHING_KEPT = Purge("all", ("kept",))


def heard(message: bytes, self_: str) -> Purge | None:
    """The purge of another replica that a message tells; None for one's own. What cannot be read purges everything."""
    try:
        told = orjson.loads(message)
        purge = Purge(told["kind"], tuple(map(str, told["values"])))
        if purge.kind not in get_args(Kind):
            return Purge("all")
        purge.tags()
    except (ValueError, KeyError, TypeError):
        return Purge("all")
    return None if told.get("from") == self_ else purge


ReadsTags = Callable[[str, bytes], frozenset[Tag] | None]
"""What a stored entry mentions; None for one that cannot be read. It is called in a thread."""


class PurgeLog:
    """The purges that this process heard last: what was being read or loaded meanwhile must not be kept."""

    def __init__(self, length: int = 1000) -> None:
        self._purged: deque[tuple[int, Purge, frozenset[Tag]]] = deque(maxlen=length)
        self.position = 0

    def add(self, purge: Purge) -> None:
        self.position += 1
        self._purged.append((self.position, purge, purge.tags()))

    def has_touched(self, key: str, tags: frozenset[Tag], since: int, until: int | None = None) -> bool:
        """Whether an entry was purged after the log was at `since` (and before it was past `until`); also when that is no
        longer known."""
        last = self.position if until is None else until
        if since >= last:
            return False
        if self._purged[0][0] > since + 1:
            return True
        heard_then = (told for told in self._purged if since < told[0] <= last)
        return any(purged & tags or purge.drops_key(key) for _, purge, purged in heard_then)


class Step(Protocol):
    """Has one command done within a deadline of its own, or raises."""

    async def __call__(self, command: Callable[[Link], Awaitable[T]]) -> T: ...


async def carry_out(purge: Purge, sender: str, step: Step, reads_tags: ReadsTags) -> int:
    """Tells the other replicas, has Redis forget, tells them again; returns how many entries that were.

    Told first, so that what they are loading is not kept; told again, so that what they read meanwhile is dropped too.
    Where Redis evicts, it may have dropped an index before its entries: what these mention is read from them, and those that
    are sealed with another key are dropped.
    """
    if purge.kind == "keys":
        dropped = await unlink(purge.values, step)
        await step(lambda link: link.publish(CHANNEL, purge.message(sender)))
        return dropped
    await step(lambda link: link.publish(CHANNEL, purge.message(sender)))
    if purge.tags():
        dropped = await _drop_tagged(purge.tags(), step, reads_tags)
    elif purge.kind == "all":
        # Indexes before entries: one that is made from here on is of an entry that came since, and is to find it.
        await _drop_indexes(step)
        dropped = await _drop_matching(EVERYTHING, step)
    else:
        of_node = search_patterns if purge.kind == "searches" else node_patterns
        patterns = [pattern for node in purge.values for pattern in of_node(node)]
        dropped = sum([await _drop_matching(pattern, step) for pattern in patterns])
    await step(lambda link: link.publish(CHANNEL, purge.message(sender)))
    return dropped


async def _drop_tagged(tags: frozenset[Tag], step: Step, reads_tags: ReadsTags) -> int:
    indexes = [index_key(tag) for tag in tags]
    listed = [await step(lambda link, index=index: link.members(index)) for index in indexes]  # type: ignore[misc]
    keys = {key.decode() for part in listed for key in part}
    if await step(lambda link: link.has_evicted()):
        keys |= await _searched(tags, step, reads_tags)
    # The indexes end by themselves: an entry that came since may be in them.
    return await unlink(keys, step)


async def _searched(tags: frozenset[Tag], step: Step, reads_tags: ReadsTags) -> set[str]:
    """The keys of entries that bear a tag, or may, found by reading every entry."""

    def may_bear(key: str, value: bytes | None) -> bool:
        borne = frozenset() if value is None else reads_tags(key, value)
        return borne is None or bool(borne & tags)

    def bearing(keys: Iterable[str], values: Iterable[bytes | None]) -> set[str]:
        return {key for key, value in zip(keys, values, strict=True) if may_bear(key, value)}

    found: set[str] = set()
    async for page in _pages(EVERYTHING, step):
        entries = [key for key in page if not key.startswith((_INDEXES, _LOCKS))]
        for first in range(0, len(entries), _READ_STEP):
            some = entries[first : first + _READ_STEP]
            values: list[Any] = await step(lambda link, some=some: link.mget(some))  # type: ignore[misc]
            # Not on the event loop: of large answers each takes tens of milliseconds.
            found |= await asyncio.to_thread(bearing, some, values)
    return found


async def _drop_matching(pattern: str, step: Step) -> int:
    """Entries, whose number it returns, and locks."""
    dropped = 0
    async for page in _pages(pattern, step):
        dropped += await unlink([key for key in page if not key.startswith((_INDEXES, _LOCKS))], step)
        await unlink([key for key in page if key.startswith(_LOCKS)], step)
    return dropped


async def _drop_indexes(step: Step) -> None:
    async for page in _pages(f"{_INDEXES}*", step):
        await unlink(page, step)


async def _pages(pattern: str, step: Step) -> AsyncIterator[list[str]]:
    cursor: Cursor | None = Cursor()
    while cursor is not None:
        cursor, page = await step(lambda link, at=cursor: link.scan(pattern, at, _STEP))  # type: ignore[misc]
        yield [key.decode() for key in page]


async def unlink(keys: Iterable[str], step: Step) -> int:
    """Deletes the keys, some at a time; returns how many there were."""
    listed, dropped = list(keys), 0
    for first in range(0, len(listed), _STEP):
        some = listed[first : first + _STEP]
        dropped += await step(lambda link, some=some: link.unlink(some))  # type: ignore[misc]
    return dropped
