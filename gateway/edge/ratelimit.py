"""How often one caller may ask this process: a bucket of tokens for each, filled evenly. Pure ASGI, after Authentication."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.edge import problems
from gateway.edge.middleware import address_of, is_open
from gateway.errors import TooManyRequests
from gateway.security.caller import Caller
from gateway.security.turned_away import TurnedAway

_MOST_CALLERS = 10_000


@dataclass(slots=True)
class Buckets:
    """One bucket of `burst` tokens for each caller, filled with `rate` tokens a second; a request takes one.

    The caller who has not asked for longest is forgotten beyond ten thousand: its bucket is full, or nearly so.
    """

    rate: float
    burst: int
    clock: Callable[[], float] = time.monotonic
    _levels: OrderedDict[int, tuple[float, float]] = field(default_factory=OrderedDict)

    def wait(self, caller: int) -> float:
        """0 when the request is within the rate, which it then counts towards; else the seconds until one would be."""
        now = self.clock()
        level, since = self._levels.pop(caller, (float(self.burst), now))
        level = min(float(self.burst), level + (now - since) * self.rate)
        wait = 0.0 if level >= 1.0 else (1.0 - level) / self.rate
        self._levels[caller] = (level if wait else level - 1.0), now
        if len(self._levels) > _MOST_CALLERS:
            self._levels.popitem(last=False)
        return wait


class RateLimit:
    """Answers 429 with Retry-After to a caller who asks more than `rate` requests a second, after a burst of `burst`.

    What needs no token is not counted. A caller is the subject and the client of its token, kept as a hash only. Who is refused
    is told to `turned_away`.
    """

    def __init__(self, app: ASGIApp, rate: float, burst: int, turned_away: TurnedAway | None = None) -> None:
        self._app = app
        self._turned_away = turned_away or TurnedAway()
        self._buckets = Buckets(rate, burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        caller: Caller = scope["caller"]
        wait = self._buckets.wait(hash((caller.subject, caller.client)))
        if not wait:
            await self._app(scope, receive, send)
            return
        error = TooManyRequests(
            f"more than {self._buckets.rate:g} requests a second; ask again later", retry_after=wait
        )
        self._turned_away.note("request", error.code, address_of(scope), caller)
        await (await problems.gateway_error(Request(scope), error))(scope, receive, send)
