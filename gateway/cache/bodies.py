"""Whole answers as they went out, kept in this process: for as long as the node answers they were made from are fresh.

The key names everything that shapes the answer, the caller's rights and view included, and never a token. What is kept is
complete by definition; whoever gives it out again has decided anew that the caller may have it, and written that down.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from gateway.cache import measures
from gateway.cache.envelope import Entry
from gateway.cache.purges import Purge
from gateway.cache.tags import Tag

_OVERHEAD = 1000
_PER_NAME = 100
_AGAIN, _MOST_DONE = 60.0, 1000
_LARGEST_SHARE = 8
"""No single answer takes more than this part of all the room."""
_MOST_PARTS_BYTES = 16 * 1024**2
"""JSON text of the node answers that a kept answer may be made from: with more it is not kept, and they are let go of."""

_HIT, _MISS = (measures.lookups.labels("whole", outcome) for outcome in ("hit", "miss"))

RawHeaders = tuple[tuple[bytes, bytes], ...]
Then = Callable[[Any], Awaitable[None]]
"""What giving an answer does besides, for the caller that it is given to."""


@dataclass(frozen=True, slots=True)
class Grounds:
    """What an answer was given on, so that the same can be asked of the next caller and written into the audit again.

    `resource` and `permission` are what the policy was asked; `names` the nodes asked for, `nodes` those that were then
    asked, as id and as digest of their configuration; `record` the part of the audit record that is the same each time.
    """

    resource: str
    permission: str
    names: tuple[str, ...]
    nodes: tuple[tuple[str, str], ...]
    record: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """One complete answer. `headers` are without Age, which goes on while it is kept.

    `made` and `expires` are by the monotonic clock. `age` is how old its oldest node answer was when it was made, in seconds.
    `route` names it in log and metrics. `keys` and `tags` are those of the node answers it was made from (see `tags`).
    `asked` is how many bytes its own key takes, which the caller decides.
    """

    status: int
    headers: RawHeaders
    body: bytes
    etag: bytes
    route: Any
    grounds: Grounds
    keys: frozenset[str]
    tags: frozenset[Tag]
    made: float
    expires: float
    age: float = 0.0
    then: Then | None = None
    asked: int = 0
    done: dict[Any, float] = field(default_factory=dict)

    async def do_then(self, caller: Any, now: float) -> None:
        """What giving the answer does besides; for one caller not more than once a minute."""
        if self.then is None or now - self.done.get(caller, -_AGAIN) < _AGAIN:
            return
        if len(self.done) >= _MOST_DONE:
            self.done.clear()
        self.done[caller] = now
        await self.then(caller)

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        named = len(self.tags) + 2 * len(self.keys)
        headers = sum(len(name) + len(value) for name, value in self.headers)
        return _OVERHEAD + self.asked + len(self.body) + headers + len(self.grounds.record) + _PER_NAME * named

    def is_reached(self, purge: Purge, tags: frozenset[Tag]) -> bool:
        """Whether a purge drops it; `tags` are the purge's own."""
        if purge.kind in ("node", "searches"):
            is_asked = any(identifier in purge.values for identifier, _ in self.grounds.nodes)
            return is_asked or any(map(purge.drops_key, self.keys))  # what tells patients apart may be another node's
        if purge.kind == "keys":
            return any(key in self.keys for key in purge.values)
        return not tags.isdisjoint(self.tags)


class Bodies:
    """Answers by key, those used last, up to `most_bytes` in all; 0 keeps none. Used on one event loop only."""

    def __init__(self, most_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most_bytes
        self._clock = clock
        self.is_coherent: Callable[[], bool] = lambda: True
        """Whether every purge is heard: only then is anything that is kept believed."""
        self._entries: OrderedDict[Hashable, Kept] = OrderedDict()
        self.bytes = 0
        self.generation = 0
        """Grows with every purge: what was begun before one is not kept after it."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_off(self) -> bool:
        return self._most <= 0

    def now(self) -> float:
        return self._clock()

    def get(self, key: Hashable) -> Kept | None:
        """The answer while it is fresh."""
        kept = self._entries.get(key)
        if kept is None or not self.is_coherent():
            _MISS.inc()
            return None
        if self._clock() >= kept.expires:
            self._remove(key)
            _MISS.inc()
            return None
        self._entries.move_to_end(key)
        _HIT.inc()
        return kept

    def keep(self, key: Hashable, kept: Kept, generation: int) -> None:
        """Keeps an answer that was begun at this `generation`, if it is still fresh and fits."""
        size = kept.size
        if (
            not self.is_coherent()
            or generation != self.generation
            or kept.expires <= self._clock()
            or size > self._most // _LARGEST_SHARE
        ):
            return
        self._remove(key)
        self._entries[key] = kept
        self.bytes += size
        self._trim()

    def _trim(self) -> None:
        """Drops what there is no room for, and what was used last before it was no longer fresh."""
        now = self._clock()
        while self._entries:
            key, oldest = next(iter(self._entries.items()))
            if self.bytes <= self._most and oldest.expires > now:
                return
            self._remove(key)

    def forget(self, key: Hashable) -> None:
        """Drops one answer."""
        self._remove(key)

    def drop(self, purge: Purge) -> None:
        """Drops what a purge reaches. Hears every purge (`Cache.on_purge`), so it does not fail."""
        if purge.kind == "all":
            self.clear()
            return
        self.generation += 1
        tags = purge.tags()
        for key in [key for key, kept in self._entries.items() if kept.is_reached(purge, tags)]:
            self._remove(key)

    def clear(self) -> None:
        """Drops everything: what shapes all answers has changed."""
        self.generation += 1
        self._entries.clear()
        self.bytes = 0

    def _remove(self, key: Hashable) -> None:
        kept = self._entries.pop(key, None)
        if kept is not None:
            self.bytes -= kept.size


@dataclass(slots=True)
class Making:
    """One answer being made, as its parts become known: the cache gives the node answers it used, the pipeline the grounds,
    the edge the whole response."""

    generation: int
    keys: set[str] = field(default_factory=set)
    parts: list[Entry] = field(default_factory=list)
    grounds: Grounds | None = None
    whole: tuple[int, RawHeaders, bytes] | None = None
    then: Then | None = None
    _bytes: int = 0
    _refused: bool = False

    def uses(self, key: str, part: Entry) -> None:
        """One node answer is part of it."""
        self._bytes += part.size
        if self._bytes > _MOST_PARTS_BYTES:
            self.refuse()
        if not self._refused:
            self.keys.add(key)
            self.parts.append(part)

    @property
    def tags(self) -> frozenset[Tag]:
        """The tags of all node answers it was made from."""
        return frozenset().union(*(part.tags for part in self.parts))

    def give_grounds(self, grounds: Grounds) -> None:
        """An answer with grounds of two kinds is not kept: which of them to ask again would be unclear."""
        if self.grounds is not None:
            self.refuse()
        self.grounds = grounds

    def refuse(self) -> None:
        """This answer is not to be kept, whatever else is said of it."""
        self._refused = True
        self.keys.clear()
        self.parts.clear()

    def end(self) -> None:
        """Lets go of everything: a connection that was opened meanwhile keeps this context, and with it this, for its life."""
        self.refuse()
        self.grounds = self.whole = self.then = None

    @property
    def may_be_kept(self) -> bool:
        return self.grounds is not None and self.whole is not None and not self._refused


_current: ContextVar[Making | None] = ContextVar("making", default=None)


def begin(generation: int) -> Making:
    """Starts on the answer to the request of this context."""
    making = Making(generation)
    _current.set(making)
    return making


def keep_nothing() -> None:
    """The answer to the request of this context is not for keeping; a pipelined one would inherit its predecessor's."""
    _current.set(None)


def current() -> Making | None:
    """The answer that the request of this context is making; None where nothing is kept."""
    return _current.get()
