"""Stands before one node: who may ask it now, who waits, who is turned away, and what is asked once more."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TypeVar

from gateway.errors import GatewayError, NodeBusy, NodeError, NodeTimeout, NodeUnreachable, Unsupported, deadline_told
from gateway.federation.breaker import Breaker, BreakerState, Pass
from gateway.federation.nodes import NodeConfig
from gateway.federation.retrying import Retries, RetryBudget
from gateway.metrics import node_breaker_state, node_queued, node_retries, node_shed, up
from gateway.telemetry import log

T = TypeVar("T")

_SEARCHES_REMEMBERED = 256
_NEARLY_ALL = 0.75
_NUMBERS = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class Shed(NodeBusy):
    """Turned away here, for want of a place: nothing was asked of the node, so it says nothing about it."""


@dataclass(slots=True)
class Turn:
    """One operation that was let through. `ends` (the loop's clock) is when a search is to end: what it waited counts.

    `waited` is how many seconds it was in the queue, `leave` the breaker's pass for it. `patience` is how many seconds
    of silence are the node's failure even when it is the caller who ends them. `heard_at` is when it last told something.
    """

    ends: float
    waited: float
    began: float
    patience: float
    _guard: Guard
    leave: Pass
    heard_at: float = -math.inf

    @property
    def seconds(self) -> float:
        """How long it has been at work, without its wait for a permit."""
        return asyncio.get_running_loop().time() - self.began

    @property
    def is_silent(self) -> bool:
        """Whether the node has used up nearly all of that patience and said nothing."""
        is_late = self.seconds >= _NEARLY_ALL * self.patience
        return is_late and not self.leave.is_settled and not self.is_telling

    @property
    def is_telling(self) -> bool:
        """Whether it has told something lately: it has more to tell than there is time for, and is not silent."""
        return self.heard_at >= self.began + _NEARLY_ALL * self.seconds

    @property
    def was_short(self) -> bool:
        """Whether the queue took so much of the time that the node had no fair chance to answer."""
        return self.waited > 0 and self.seconds < _NEARLY_ALL * self.patience < math.inf

    def answered(self) -> None:
        """The node has begun to answer: a failure from here on is not one of reaching it."""
        self._guard.heard_of(self.leave)


class HeldTurn:
    """A turn for as long as an `async with` lasts. Written out, as generators are slow to enter and leave: each question of
    each search has one."""

    __slots__ = ("_asked", "_guard", "_operation", "_turn")

    def __init__(self, guard: Guard, operation: str, ends: float, patience: float) -> None:
        self._guard, self._operation, self._asked = guard, operation, (ends, patience)

    async def __aenter__(self) -> Turn:
        self._turn = await self._guard._begin(*self._asked)
        return self._turn

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guard._end(self._turn, self._operation, error)


@dataclass(frozen=True, slots=True)
class Health:
    """How a node does, for people and for alarms: our own words only.

    `state`: up, degraded (it answers, but not always, or not rightly), down (it does not answer), unknown (not asked yet).
    Times are seconds; `failure` is the class and `code` the code of the last failure, '' when there was none.
    """

    state: str
    breaker: str
    asked_again_in: float
    in_flight: int
    queued: int
    failure: str = ""
    code: str = ""
    failed_ago: float | None = None
    p50: float | None = None
    p95: float | None = None


class Guard:
    """One node's breaker, permits, queue and retries. `patience` is the seconds after which a search gives it up.

    How an operation ended counts for the breaker like this. NodeUnreachable and NodeTimeout: failed. NodeRefused,
    NodeProtocolError and everything else that the node said: answered, since it costs nobody a deadline. NodeBusy and
    Unsupported: neither; a busy node is there, and what it cannot do may never have been asked. Whoever leaves: neither,
    unless the node had been silent for nearly all the time it had. After the first byte of a body: answered; so is a search that
    is given up while its rows are coming.
    """

    def __init__(self, node: str, config: NodeConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.node = node
        self.config = config
        self.patience = config.search_deadline
        self.breaker = Breaker(config.breaker, clock)
        self.retries = Retries(config.retries, RetryBudget(clock=clock))
        self.permits = asyncio.Semaphore(config.at_once)
        self.in_flight = self.queued = 0
        self.failure: NodeError | None = None
        self._last_failure: tuple[float, NodeError] | None = None
        self._answered_at = -math.inf
        self._clock = clock
        self._searches: deque[float] = deque(maxlen=_SEARCHES_REMEMBERED)
        self._shown = BreakerState.CLOSED
        self._is_in_force = True

    def put_in_force(self) -> None:
        """From now on metrics tell of this one, whatever there was before it under the node's name."""
        node_breaker_state.labels(self.node).set(_NUMBERS[self._shown])

    def retire(self) -> None:
        """No new request comes here: what those under way still find out is nothing to be alarmed by."""
        self._is_in_force = False
        node_breaker_state.labels(self.node).set(0)
        up(self.node).set(1)

    def turn(self, operation: str, ends: float, patience: float = math.inf) -> HeldTurn:
        """Holds one of the permits in `async with`. Raises the remembered failure while the breaker is open, Shed when the
        queue is full or no permit came by `ends` (the loop's clock)."""
        return HeldTurn(self, operation, ends, patience)

    async def _begin(self, ends: float, patience: float) -> Turn:
        if self.breaker.refuses():
            raise self._not_now()
        waited = await self._permit(ends)
        self.in_flight += 1
        try:
            turn = self._let_through(ends, waited, patience)
            self._show()
        except BaseException:
            self._give_back()
            raise
        return turn

    def _end(self, turn: Turn, operation: str, error: BaseException | None) -> None:
        is_told = error is None or (isinstance(error, NodeError) and not isinstance(error, Unsupported))
        if is_told and self._is_in_force:
            up(self.node).set(0 if error is not None else 1)
        try:
            if error is not None:
                self._settle(turn, error)
                return
            turn.answered()
            self.failure = None
            if operation == "find":
                self._searches.append(turn.seconds)
        finally:
            self._give_back()

    def _give_back(self) -> None:
        self.in_flight -= 1
        self.permits.release()
        self._show()

    async def retried(self, operation: str, ask: Callable[[], Awaitable[T]], ends: float) -> T:
        """What `ask` gives, asked again after a transient failure as often as `retries`, `ends` and the budget allow.

        `ask` starts from nothing each time. What fails here is raised as it came.
        """
        loop, tried = asyncio.get_running_loop(), 0
        self.retries.budget.earn()
        while True:
            began = loop.time()
            try:
                return await ask()
            except Shed:
                raise
            except NodeError as error:
                now = loop.time()
                pause = self.retries.pause(error, tried, now - began, ends - now) if self.breaker.is_closed else None
                if pause is None:
                    raise
            tried += 1
            node_retries.labels(self.node, operation).inc()
            await asyncio.sleep(pause)

    def heard_of(self, one: Pass) -> None:
        """The node has begun to answer."""
        self.breaker.answered(one)
        self._answered_at = self._clock()

    async def in_time(self, work: Awaitable[T]) -> T:
        """What `work` gives within the node's search deadline, whatever is asked of the node in it. Raises NodeTimeout."""
        seconds = self.config.search_deadline
        with deadline_told(partial(self.gave_up, seconds)):
            async with asyncio.timeout(seconds):
                return await work

    def gave_up(self, seconds: float) -> NodeTimeout:
        """A search went on without the node after so many seconds. A node that answered others meanwhile is just busy."""
        error = NodeTimeout(self.node, f"did not answer within {seconds:g} s")
        if self._clock() - self._answered_at >= seconds:
            self._note(error)
        return error

    def too_late(self, turn: Turn) -> NodeError:
        """What it is called when the time of a question is over."""
        if turn.was_short:
            return self._shed(self.config.search_deadline)
        return NodeTimeout(self.node, f"did not answer within {self.config.search_deadline:g} s")

    def health(self) -> Health:
        """The node's state now."""
        at, last = self._last_failure or (0.0, None)
        return Health(
            self._state(),
            self.breaker.state.value,
            self.breaker.seconds_left,
            self.in_flight,
            self.queued,
            last.title if last else "",
            last.code if last else "",
            self._clock() - at if last else None,
            percentile(self._searches, 0.5),
            percentile(self._searches, 0.95),
        )

    def _state(self) -> str:
        last = self._last_failure[0] if self._last_failure else -math.inf
        is_gone = isinstance(self.failure, (NodeUnreachable, NodeTimeout)) and last >= self._answered_at
        if not self.breaker.is_closed or is_gone:
            return "down"
        if self.failure or self.breaker.recent_failures:
            return "degraded"
        return "up" if self._answered_at > -math.inf else "unknown"

    async def _permit(self, ends: float) -> float:
        """First come, first served; a caller who leaves the queue gives the place back. The seconds it took."""
        if not self.permits.locked():
            await self.permits.acquire()
            return 0.0
        if self.queued >= self.config.max_queued:
            raise self._shed(1.0)
        self.queued += 1
        began = asyncio.get_running_loop().time()
        node_queued.labels(self.node).inc()
        try:
            with deadline_told(partial(self._shed, self.config.search_deadline)):
                async with asyncio.timeout_at(ends):
                    await self.permits.acquire()
        finally:
            self.queued -= 1
            node_queued.labels(self.node).dec()
        return asyncio.get_running_loop().time() - began

    def _shed(self, retry_after: float) -> Shed:
        node_shed.labels(self.node).inc()
        return Shed(self.node, "has too many requests waiting", retry_after=retry_after)

    def _let_through(self, ends: float, waited: float, patience: float) -> Turn:
        """The breaker may have opened while the permit was waited for."""
        one = self.breaker.admit()
        if one is None:
            raise self._not_now()
        return Turn(ends, waited, asyncio.get_running_loop().time(), patience, self, one)

    def _not_now(self) -> NodeError:
        """What the node failed with, said at once instead of after its deadline."""
        left, cause = max(1, math.ceil(self.breaker.seconds_left)), self.breaker.cause
        kind, why = (type(cause), cause.reason) if cause else (NodeUnreachable, "cannot be reached")
        return kind(self.node, f"{why}; it is not asked again for {left} s after it failed", retry_after=left)

    def _settle(self, turn: Turn, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError) and turn.is_silent:
            error = NodeTimeout(self.node, f"did not answer within {turn.patience:g} s")
        if isinstance(error, NodeError) and not isinstance(error, (Unsupported, Shed)):
            self._note(error)
        if turn.is_telling and isinstance(error, NodeTimeout):
            turn.answered()
        elif isinstance(error, (NodeUnreachable, NodeTimeout)):
            self.breaker.failed(turn.leave, error.alone())
        elif isinstance(error, GatewayError) and not isinstance(error, (NodeBusy, Unsupported)):
            self.breaker.answered(turn.leave)
        else:
            self.breaker.left(turn.leave)

    def _note(self, error: NodeError) -> None:
        error = error.alone()
        self.failure = error
        self._last_failure = self._clock(), error

    def _show(self) -> None:
        """The breaker's state as a metric, and a word in the log when it changed."""
        state = self.breaker.state
        if state is self._shown or not self._is_in_force:
            return
        self._shown = state
        node_breaker_state.labels(self.node).set(_NUMBERS[state])
        log().warning("breaker", node=self.node, state=state.value, seconds=round(self.breaker.seconds_left, 1))


def percentile(seconds: Sequence[float] | deque[float], share: float) -> float | None:
    """The value that `share` of them do not exceed (nearest rank); None when there are none."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
