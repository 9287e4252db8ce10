"""Keeps the entries used last in this process, in front of Redis, up to a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from gateway.cache import measures
from gateway.cache.envelope import Entry
from gateway.cache.tags import Tag

COST = 10
"""Bytes of memory per byte of JSON: what is read of it (rows, data sets, tags) lies beside the text. Measured: 4 to 9."""
_FIXED = 1024


class Local:
    """Entries by key, the least recently used dropped first. Only fresh ones are worth keeping here: the caller decides."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, tuple[Entry, int]] = OrderedDict()
        self.used = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Entry | None:
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: str, entry: Entry) -> None:
        """Keeps the entry in place of an older one; one larger than a quarter of the whole is not kept. `trim` is due then."""
        self.drop(key)
        size = _size(key, entry)
        if size <= self._max_bytes // 4:
            self._entries[key] = entry, size
            self._count(size)

    def weigh(self, key: str, entry: Entry) -> None:
        """Counts what the entry takes now that its text is written; where another one has taken its place, that one stays."""
        if self._holds(key, entry):
            self.put(key, entry)

    def take_back(self, key: str, entry: Entry) -> None:
        """Drops the entry; another one that has taken its place stays."""
        if self._holds(key, entry):
            self.drop(key)

    def _holds(self, key: str, entry: Entry) -> bool:
        return key in self._entries and self._entries[key][0] is entry

    def trim(self) -> None:
        """Drops what there is no room for, and what was used last before it was no longer fresh. To let go of an answer takes
        as long as to read it, so this is done when nobody waits."""
        while self._entries:
            key, (entry, _) = next(iter(self._entries.items()))
            if self.used <= self._max_bytes and entry.is_fresh():
                return
            self.drop(key)

    def drop(self, key: str) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self._count(-found[1])

    def drop_where(self, matches: Callable[[str, frozenset[Tag]], bool]) -> None:
        """Drops the entries whose key and tags match."""
        for key in [key for key, (entry, _) in self._entries.items() if matches(key, entry.tags)]:
            self.drop(key)

    def clear(self) -> None:
        self._entries.clear()
        self._count(-self.used)

    def _count(self, more: int) -> None:
        self.used += more
        measures.local_bytes.inc(more)


def _size(key: str, entry: Entry) -> int:
    return _FIXED + len(key) + COST * entry.size
