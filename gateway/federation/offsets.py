"""Where the pages of a search by offset begin: for ten minutes an offset means the same place, whatever is stored meanwhile."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace

from gateway.cache.client import Cache
from gateway.cache.keys import federated_key
from gateway.federation.page import Position
from gateway.model.query import Query

KEPT = 600.0
_MOST_HERE = 10_000


@dataclass(frozen=True, slots=True)
class Walked:
    """One caller's way through one search: `name` is the same for the same caller, question, nodes and view."""

    name: str

    @staticmethod
    def of(caller: object, view: str, query: Query, nodes: Sequence[str]) -> Walked:
        """`caller` is whatever tells callers apart, its rights included; the order of keys and of nodes does not matter."""
        asked = replace(query, matches=tuple(sorted(query.matches, key=lambda match: (match.path, match.values))))
        return Walked(federated_key("offsets", view, caller, asked, sorted(nodes)))


@dataclass(slots=True)
class Offsets:
    """The places behind which pages begin, in the cache for every replica, and here for when there is none."""

    cache: Cache
    _here: OrderedDict[str, tuple[float, list[str]]] = field(default_factory=OrderedDict)

    async def place(self, walked: Walked, offset: int) -> Position | None:
        """Behind what the results from `offset` on begin; None where that is not known (any more)."""
        name = f"{walked.name}:{offset}"
        kept = await self.cache.get_json(name) or self._recall(name)
        try:
            return Position(*kept) if kept else None
        except TypeError:
            return None

    async def remember(self, walked: Walked, offset: int, position: Position) -> None:
        """The results from `offset` on begin behind this position."""
        name, plain = f"{walked.name}:{offset}", list(astuple(position))
        self._here[name] = (time.monotonic() + KEPT, plain)
        self._here.move_to_end(name)
        if len(self._here) > _MOST_HERE:
            self._here.popitem(last=False)
        await self.cache.set_json(name, plain, KEPT)

    def _recall(self, name: str) -> list[str] | None:
        ends, plain = self._here.get(name, (0.0, None))
        return plain if time.monotonic() < ends else None
