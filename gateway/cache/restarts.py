"""Servers that began with what lay on their disk: it may have what was purged since, and by whoever is gone by now."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import isfinite

from redis.exceptions import ResponseError

from gateway.cache.connections import Run
from gateway.cache.purges import Step

_PREFIX = "gw:run:"  # not among what a purge of everything drops
_VOUCH = "redis.call('SET', KEYS[1], '1') return 1"
"""Without an end: what has one is evicted first, and then everything would be dropped by who comes next."""


async def are_in_doubt(runs: Sequence[Run], down: float, step: Step) -> bool:
    """Whether one of them began with old entries within the last `down` seconds; or, for who meets them for the first time
    (an infinite number), at any time, and nobody has dropped those since."""
    read = [run for run in runs if run.has_read]
    if isfinite(down) or not read:
        return any(run.seconds <= down for run in read)
    return None in await step(lambda link: link.mget(list(map(_key, read))))


async def vouch_for(runs: Sequence[Run], step: Step) -> None:
    """Says so, once those entries are gone: whoever comes next need not drop what came since."""
    for key in [_key(run) for run in runs if run.has_read]:
        with suppress(ResponseError):  # a server that is full: whoever comes next drops its entries once more
            await step(lambda link, key=key: link.run(_VOUCH, [key], ()))  # type: ignore[misc]


def _key(run: Run) -> str:
    return _PREFIX + run.id
