"""Remembers what Redis was to forget while it could not be asked."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.cache.purges import Purge

MAX_MISSED = 10_000


class Missed:
    """Keys to delete and purges to carry out; too much of it becomes a purge of everything."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.purges: set[Purge] = set()

    def __bool__(self) -> bool:
        return bool(self.keys or self.purges)

    def add(self, keys: Iterable[str] = (), purges: Iterable[Purge] = ()) -> None:
        if Purge("all") in self.purges:
            return
        self.keys.update(keys)
        self.purges.update(purges)
        if Purge("all") in self.purges or len(self.keys) + len(self.purges) > MAX_MISSED:
            self.keys, self.purges = set(), {Purge("all")}

    def take(self) -> tuple[list[str], set[Purge]]:
        """All of it; nothing is left."""
        taken = list(self.keys), self.purges
        self.keys, self.purges = set(), set()
        return taken
