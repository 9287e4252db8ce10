"""Gives answers from the cache, or has each loaded once, however many ask for it at the same time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.cache.client import Cache
from gateway.cache.flight import Flights
from gateway.cache.keys import is_of_node


@dataclass(frozen=True, slots=True)
class Ttl:
    """How long each kind of entry is kept, in seconds. `negative` is for answers that say "nothing here"."""

    find: float = 30.0
    location: float = 300.0
    metadata: float = 3600.0
    probe: float = 600.0
    negative: float = 10.0

    def of(self, kind: str) -> float:
        """Raises AttributeError for a kind that has no time of its own."""
        return float(getattr(self, kind))


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load found: a JSON value, whether it may be kept (a partial one may not), and a `ttl` unless the usual."""

    value: Any
    cacheable: bool = True
    ttl: float | None = None


@dataclass(frozen=True, slots=True)
class _Encoded:
    """An answer as JSON text; `ttl` is the time for which it is still to be kept, 0 for not at all."""

    body: bytes
    ttl: float


class Answers:
    """Answers by key, shared by all callers of this process. Close it before its cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._flights: Flights[_Encoded] = Flights()

    async def rows(self, key: str, ttl: float, load: Callable[[], Awaitable[Loaded]], *, detached: bool = False) -> Any:
        """The value for `key`, from the cache or from the one load that all present callers share.

        Every caller gets a copy of its own, made from JSON (so a tuple comes back as a list, cached or not). What
        `load` raises reaches all who wait and is not kept. A load goes on while one caller waits for it; with
        `detached`, to its end.
        """
        return orjson.loads(await self.text(key, ttl, load, detached=detached))

    async def text(
        self, key: str, ttl: float, load: Callable[[], Awaitable[Loaded]], *, detached: bool = False
    ) -> bytes:
        """The same value as its JSON text, for who can do without reading it."""
        encoded = await self._flights.fetch(
            key,
            lambda: self._find(key, ttl, load),
            afterwards=lambda *found: self._keep(key, *found),
            detached=detached,
        )
        return encoded.body

    async def forget(self, *keys: str) -> None:
        """Drops the entries, and keeps what is being loaded for them right now from being kept."""
        self._flights.forget(keys.__contains__)
        await self._cache.delete(*keys)

    async def purge_node(self, node: str) -> int:
        """Drops all that came from a node, as `Cache.purge_node`, and whatever is being loaded from it right now."""
        self._flights.forget(lambda key: is_of_node(key, node))
        return await self._cache.purge_node(node)

    async def close(self) -> None:
        await self._flights.close()

    async def _find(self, key: str, ttl: float, load: Callable[[], Awaitable[Loaded]]) -> _Encoded:
        kept = await self._cache.get(key)
        if kept is not None:
            return _Encoded(kept, 0.0)
        loaded = await load()
        usual = ttl if loaded.ttl is None else loaded.ttl
        return _Encoded(orjson.dumps(loaded.value), usual if loaded.cacheable else 0.0)

    async def _keep(self, key: str, encoded: _Encoded, is_wanted: Callable[[], bool]) -> None:
        if encoded.ttl <= 0 or not is_wanted():
            return
        await self._cache.set(key, encoded.body, encoded.ttl)
        # Forgotten while it was being written: the delete may have overtaken the write on another connection.
        if not is_wanted():
            await self._cache.delete(key)
