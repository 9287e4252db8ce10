"""Remembers, node by node, whether it holds a study, so that half an answer is never taken for a whole one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gateway.cache.answers import Ttl
from gateway.cache.client import Cache
from gateway.cache.keys import key

_HELD, _NOT_HELD = b"1", b"0"


class Locations:
    """Study UID and node to yes or no; a node without an entry has to be asked."""

    def __init__(self, cache: Cache, ttl: Ttl | None = None) -> None:
        self._cache = cache
        self._ttl = ttl or Ttl()

    async def get(self, study: str, nodes: Iterable[str]) -> Mapping[str, bool]:
        """What is known of these nodes. A node missing from the answer is unknown, which is not the same as False."""
        asked = list(nodes)
        found = await self._cache.get_many([_key(study, node) for node in asked])
        return {node: each == _HELD for node, each in zip(asked, found, strict=True) if each in (_HELD, _NOT_HELD)}

    async def set(self, study: str, node: str, held: bool) -> None:
        """What a node itself said; never what its silence suggests. A no is kept for the shorter, negative time."""
        ttl = self._ttl.location if held else self._ttl.negative
        await self._cache.set(_key(study, node), _HELD if held else _NOT_HELD, ttl)

    async def forget(self, study: str, nodes: Iterable[str]) -> None:
        await self._cache.delete(*(_key(study, node) for node in nodes))


def _key(study: str, node: str) -> str:
    return key("location", node, study)
