"""How fresh the node answers behind one request's answer are: collected while it is made, told in Age and Cache-Control."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Freshness:
    """Of the answers used. They go on to age while the one made of them waits for slower ones. `stale` says that one of them is
    no longer fresh, because its node could not be asked anew."""

    stale: bool = False
    _oldest: float = float("inf")
    _ends: float = float("inf")

    @property
    def age(self) -> float:
        """Seconds since the oldest was given; 0 when none was used."""
        return max(0.0, time.monotonic() - self._oldest)

    @property
    def remaining(self) -> float:
        """Seconds until the first of them is no longer fresh; infinity when none was used."""
        return max(0.0, self._ends - time.monotonic())

    def note(self, age: float, remaining: float, *, stale: bool = False) -> None:
        """Counts one node's answer in."""
        now = time.monotonic()
        self._oldest = min(self._oldest, now - age)
        self._ends = min(self._ends, now + max(0.0, remaining))
        self.stale |= stale


_current: ContextVar[Freshness | None] = ContextVar("freshness", default=None)


_only_fresh: ContextVar[bool] = ContextVar("only_fresh", default=False)


@contextmanager
def only_fresh() -> Iterator[None]:
    """Inside, no older answer stands in: where pixels are fetched, a node that cannot be asked does not count as a holder."""
    token = _only_fresh.set(True)
    try:
        yield
    finally:
        _only_fresh.reset(token)


def allows_stale() -> bool:
    """Whether an older answer may stand in here."""
    return not _only_fresh.get()


_anew: ContextVar[str] = ContextVar("anew", default="")


@contextmanager
def asked_anew() -> Iterator[None]:
    """Inside, nodes are asked whatever is kept of their answers, by loads that began in here: nothing that they say is older
    than this."""
    token = _anew.set(secrets.token_hex(8))
    try:
        yield
    finally:
        _anew.reset(token)


def anew() -> str:
    """Names the loads that may be shared here where nodes are asked anew; '' where they are not."""
    return _anew.get()


def begin() -> Freshness:
    """Starts collecting for the request of this context; tasks that it starts add to the same object."""
    collected = Freshness()
    _current.set(collected)
    return collected


def current() -> Freshness:
    """What this request has collected so far; one of its own, that nobody sees, outside a request."""
    return _current.get() or Freshness()
