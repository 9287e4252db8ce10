"""A kept answer in its envelope: when it was fetched, how long it is fresh, how long it may still serve, what it mentions."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.cache.tags import LENGTH, Tag

_VERSION = 1
_HEADER = struct.Struct(">BddddI")
_UNREAD = object()
_A_ROW = 1024

Text = bytes | Callable[[], bytes]
"""JSON text, or what writes it."""

Mentions = frozenset[Tag] | Callable[[], frozenset[Tag]]
"""The tags of an entry, or what tells them."""

now: Callable[[], float] = time.time
"""Seconds since the epoch. Replicas read each other's envelopes, so their clocks must agree, as NTP keeps them."""


@dataclass(slots=True, eq=False)
class Entry:
    """One node's answer as JSON text. Times are seconds: `fetched` since the epoch, `ttl` how long it is fresh, and
    `while_revalidate` and `if_error` how much longer it may serve while it is asked for anew, or while the node is silent.

    `made` is what was decoded of it, once that is there.
    """

    text: Text
    fetched: float
    ttl: float
    while_revalidate: float = 0.0
    if_error: float = 0.0
    mentions: Mentions = frozenset()
    made: Any = field(default=_UNREAD, repr=False)
    rows: int = 1

    @property
    def body(self) -> bytes:
        """Its JSON text; written when it is asked for the first time, so whoever answers somebody does not ask."""
        if not isinstance(self.text, bytes):
            self.text = self.text()
        return self.text

    @property
    def size(self) -> int:
        """The bytes of its text; before that is written, what the text of so many rows has about."""
        return len(self.text) if isinstance(self.text, bytes) else _A_ROW * self.rows

    @property
    def tags(self) -> frozenset[Tag]:
        """What it mentions; told for the first time, that takes its time, so whoever answers somebody does not ask."""
        if not isinstance(self.mentions, frozenset):
            self.mentions = self.mentions()
        return self.mentions

    @property
    def age(self) -> float:
        """Seconds; of an answer from the future how far that is, so that no clock that was put back keeps it for ever."""
        return abs(now() - self.fetched)

    @property
    def remaining(self) -> float:
        """How long it is still fresh."""
        return max(0.0, self.ttl - self.age)

    @property
    def kept_for(self) -> float:
        """How long it is worth a place at all."""
        return self.ttl + max(self.while_revalidate, self.if_error) if self.ttl > 0 else 0.0

    def is_fresh(self) -> bool:
        return self.age < self.ttl

    def serves_while_revalidated(self) -> bool:
        return self.age < self.ttl + self.while_revalidate

    def serves_if_error(self) -> bool:
        return self.age < self.ttl + self.if_error

    def value(self, decode: Callable[[Any], Any]) -> Any:
        """What `decode` makes of the JSON value, made once and shared by all who ask: treat it as frozen."""
        if self.made is _UNREAD:
            self.made = decode(orjson.loads(self.body))
        return self.made


def sealed(entry: Entry) -> bytes:
    """The bytes of an entry; `opened` is the inverse."""
    times = (entry.fetched, entry.ttl, entry.while_revalidate, entry.if_error)
    return _HEADER.pack(_VERSION, *times, len(entry.tags)) + b"".join(sorted(entry.tags)) + entry.body


def opened(stored: bytes | None) -> Entry | None:
    """The entry; None for anything that `sealed` did not write."""
    if stored is None or len(stored) < _HEADER.size:
        return None
    version, fetched, ttl, while_revalidate, if_error, count = _HEADER.unpack_from(stored)
    begins = _HEADER.size + count * LENGTH
    if version != _VERSION or begins > len(stored):
        return None
    tags = frozenset(stored[at : at + LENGTH] for at in range(_HEADER.size, begins, LENGTH))
    return Entry(stored[begins:], fetched, ttl, while_revalidate, if_error, tags)
