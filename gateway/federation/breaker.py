"""The circuit breaker of one node: whether it may be asked now, from how its last questions ended. Pure: no I/O, no waiting."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.errors import NodeError
from gateway.federation.nodes import BreakerLimits

_MOST_REMEMBERED = 1000


class BreakerState(StrEnum):
    """`CLOSED`: the node is asked. `OPEN`: it is not, until its time is up. `HALF_OPEN`: one question finds out."""

    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"


@dataclass(slots=True, eq=False)
class Pass:
    """Leave to ask the node once. It is settled once, and counts only while the breaker has not changed its mind."""

    generation: int
    is_settled: bool = False


@dataclass(slots=True)
class Breaker:
    """Opens after `failures` failures in a row, or when `rate` of at least twice as many outcomes within `window` seconds
    were failures; stays open for `open` seconds, then lets one question through: its answer closes it, its failure opens
    it again. What counts as a failure is for the caller to say; `failures` 0 never opens it.
    """

    limits: BreakerLimits
    clock: Callable[[], float] = time.monotonic
    state: BreakerState = BreakerState.CLOSED
    cause: NodeError | None = None
    _generation: int = 0
    _in_a_row: int = 0
    _until: float = 0.0
    _probe: Pass | None = None
    _recent: deque[tuple[float, bool]] = field(default_factory=deque)
    _failed: int = 0

    @property
    def is_closed(self) -> bool:
        return self.state is BreakerState.CLOSED

    @property
    def seconds_left(self) -> float:
        """Until the node is asked again, at the earliest; 0 while it is asked."""
        return 0.0 if self.is_closed else max(0.0, self._until - self.clock())

    @property
    def recent_failures(self) -> int:
        """Failures within the window."""
        self._forget_old()
        return self._failed

    def refuses(self) -> bool:
        """Whether `admit` would give no pass now. Changes nothing."""
        if self.is_closed:
            return False
        return self.clock() < self._until

    def admit(self) -> Pass | None:
        """Leave to ask, or None. When the time of an open breaker is up, the first to come is the probe.

        A probe that is not settled within `open` seconds makes room for the next one: a long transfer must not keep
        everybody else out. Its answer counts all the same: a node that takes longer than that to answer is not down.
        """
        if self.refuses():
            return None
        if self.is_closed:
            return Pass(self._generation)
        if self.state is BreakerState.OPEN:
            self._change(BreakerState.HALF_OPEN)
        self._until = self.clock() + self.limits.open
        self._probe = Pass(self._generation)
        return self._probe

    def answered(self, one: Pass) -> None:
        """The node answered, whatever it said."""
        if not self._counts(one):
            return
        if self.state is BreakerState.HALF_OPEN:
            self._close()
            return
        self._in_a_row = 0
        self._remember(is_failure=False)

    def failed(self, one: Pass, cause: NodeError) -> None:
        """The node could not be reached, or did not answer in time. `cause` is what others are told meanwhile."""
        if not self._counts(one):
            return
        if self.state is BreakerState.HALF_OPEN:
            if one is self._probe:
                self._open(cause)
            return
        self._in_a_row += 1
        self._remember(is_failure=True)
        if self.limits.failures and (self._in_a_row >= self.limits.failures or self._fails_too_often()):
            self._open(cause)

    def left(self, one: Pass) -> None:
        """Nothing was learned: the caller left, or the node was not really asked. A probe's place is free again."""
        if self._counts(one) and one is self._probe:
            self._until = self.clock()

    def _counts(self, one: Pass) -> bool:
        """Settles the pass; whether its outcome says anything about the breaker as it stands now."""
        fresh = not one.is_settled and one.generation == self._generation
        one.is_settled = True
        return fresh

    def _fails_too_often(self) -> bool:
        total = len(self._recent)
        return total >= 2 * self.limits.failures and self._failed >= self.limits.rate * total

    def _open(self, cause: NodeError) -> None:
        self.cause = cause
        self._change(BreakerState.OPEN)
        self._until = self.clock() + self.limits.open

    def _close(self) -> None:
        self.cause = None
        self._change(BreakerState.CLOSED)
        self._in_a_row, self._failed = 0, 0
        self._recent.clear()

    def _change(self, state: BreakerState) -> None:
        self.state, self._probe = state, None
        self._generation += 1

    def _remember(self, *, is_failure: bool) -> None:
        self._recent.append((self.clock(), is_failure))
        self._failed += is_failure
        if len(self._recent) > _MOST_REMEMBERED:
            self._drop()
        self._forget_old()

    def _forget_old(self) -> None:
        oldest = self.clock() - self.limits.window
        while self._recent and self._recent[0][0] < oldest:
            self._drop()

    def _drop(self) -> None:
        self._failed -= self._recent.popleft()[1]
