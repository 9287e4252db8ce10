"""Whether a failed question to one node is asked once more, and after which pause. Pure: the decision only."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.errors import NodeError

_SHARE = 0.1
_MOST = 10.0
_A_SECOND = 0.1
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


@dataclass(slots=True)
class RetryBudget:
    """What retries may cost a node: a tenth of its questions, and one in ten seconds for a node that is seldom asked.

    A bucket of tokens, one a retry: every question puts in `share`, every second `a_second`, and no more than `most` stay.
    """

    share: float = _SHARE
    a_second: float = _A_SECOND
    most: float = _MOST
    clock: Callable[[], float] = time.monotonic
    tokens: float = field(init=False)
    _filled: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens, self._filled = self.most, self.clock()

    def earn(self) -> None:
        """A question is asked for the first time."""
        self.tokens = min(self.most, self.tokens + self.share)

    def spend(self) -> bool:
        """Takes the token of one retry, if there is one."""
        now = self.clock()
        self.tokens = min(self.most, self.tokens + (now - self._filled) * self.a_second)
        self._filled = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


@dataclass(slots=True)
class Retries:
    """At most `most` of one question, each after a pause of its own (full jitter), within the budget."""

    most: int
    budget: RetryBudget = field(default_factory=RetryBudget)
    chance: Callable[[], float] = random.random

    def pause(self, error: NodeError, tried: int, took: float, left: float) -> float | None:
        """Seconds until the question is asked again, or None: it is not. `tried` counts the retries so far.

        Only a transient failure, and only when what is `left` has room for the pause and for as long a try as the last
        one `took`: who ran out of time would do so again. The node's own Retry-After is the least of the pause.
        """
        if not error.transient or tried >= self.most:
            return None
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * float(2**tried))
        pause = (error.retry_after or 0.0) + self.chance() * longest
        if pause + took >= left or not self.budget.spend():
            return None
        return pause
