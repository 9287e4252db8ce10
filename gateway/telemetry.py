"""Request id, structured log, Server-Timing and what is counted of a request; whatever could carry patient data is dropped."""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import wraps
from types import TracebackType
from typing import Any, BinaryIO, ParamSpec, TypeVar

import orjson
import structlog

from gateway import metrics, tracing

P = ParamSpec("P")
T = TypeVar("T")

request_id: ContextVar[str] = ContextVar("request_id", default="")
_account: ContextVar[Account | None] = ContextVar("account", default=None)
_logger: Any = structlog.get_logger()
_request_lines: Lines | None = None

# The only keys a log record may carry: everything else is dropped, so that no attribute of a patient can slip in.
LOGGABLE = frozenset(
    {
        "event", "level", "timestamp", "request_id", "route", "method", "status", "seconds", "node", "operation", "outcome",
        "code", "reason", "count", "bytes", "adapter", "address", "state", "signal", "file", "key", "version", "nodes",
        "traceback", "kind", "cache", "logger",
    }
)  # fmt: skip
# In the order of the work, as Server-Timing lists them.
STAGES = ("auth", "plan", "cache", "nodes", "merge", "view", "render")
# Which of several at once a moment counts for: what the request has to wait for outside itself comes first.
_RANK = {name: rank for rank, name in enumerate(("nodes", "cache", "auth", "plan", "view", "render", "merge"))}


def _only_loggable(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: value for key, value in event.items() if key in LOGGABLE}


def _with_request_id(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    current = request_id.get()
    if current:
        event["request_id"] = current
    return event


def place_of(error: BaseException) -> str:
    """Where an exception was raised, as 'file.py:12': its text may quote what it stumbled over."""
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    return f"{place.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{place.tb_lineno}" if place else ""


class Lines:
    """A file for lines: what one turn of the event loop writes leaves at its end, in one call; outside a loop at once. What the
    file does not take is lost, and nobody who logs hears of it.

    Each call hands the interpreter to another thread for a while, which a line per request would wait for.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._waiting: deque[bytes] = deque()
        self._due: asyncio.AbstractEventLoop | None = None
        atexit.register(self.write_out)

    def write(self, line: bytes) -> int:
        self._waiting.append(line)
        return len(line)

    def flush(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.write_out()
            return
        if self._due is not loop:  # a loop that ended before its turn came leaves the rest to the next one
            self._due = loop
            loop.call_soon(self.write_out)

    def write_out(self) -> None:
        """Writes what waits."""
        self._due = None
        lines = []
        with suppress(IndexError):  # another thread may have taken the last one
            while self._waiting:
                lines.append(self._waiting.popleft())
        if lines:
            # A full disk, or nobody who reads: to tell of it would be one more line.
            with suppress(OSError, ValueError):
                self._file.write(b"".join(lines))
                self._file.flush()


def configure(level: str) -> None:
    """Sets up JSON logs on standard error, and keeps libraries that log payloads quiet."""
    global _logger, _request_lines
    lines = Lines(sys.stderr.buffer)
    _request_lines = lines if logging.getLevelName(level) <= logging.INFO else None
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _with_request_id,
            _only_loggable,
            structlog.processors.JSONRenderer(orjson.dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.BytesLoggerFactory(file=lines),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )
    _logger = structlog.get_logger().bind()  # as configured just now, rather than looked up at every line
    for library in ("pynetdicom", "pydicom", "httpx", "httpcore", "aiohttp"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def log() -> Any:
    """The logger. Only the keys of LOGGABLE are written."""
    return _logger


def _log_request(told: Mapping[str, str | int | float]) -> None:
    """The one line of a request, as `log` would write it: written without the detour, since every request pays for it."""
    if _request_lines is None:
        return
    end = {"event": "request", "level": "info", "timestamp": datetime.now(UTC), "request_id": request_id.get()}
    _request_lines.write(orjson.dumps({**told, **end}, option=orjson.OPT_UTC_Z) + b"\n")
    _request_lines.flush()


class Account:
    """What one request costs: the time of its stages, the nodes it asked, its look-ups, the bytes of its answer.

    Every moment counts for one stage at most, so the stages add up to no more than the whole: while several tasks of the
    request are in different stages, or one stage is inside another, it counts for the first of nodes (a node works for
    this request, or a look-up that the cache does not have is being loaded), cache, auth, plan, view, render, merge. What
    nodes and cache say is thus how long the request waited for them, however many were asked at once; work of ours that
    went on meanwhile is in it. Waiting for a load that another request began is cache. Some moments belong to no stage.
    """

    __slots__ = (
        "_begun",
        "_first",
        "_open",
        "_since",
        "asked",
        "bytes",
        "is_kept",
        "is_whole",
        "loads",
        "look_ups",
        "stages",
    )

    def __init__(self) -> None:
        self._begun = self._since = time.perf_counter()
        self._open = dict.fromkeys(_RANK, 0)
        self._first = ""
        self.stages: dict[str, float] = {}
        self.asked: set[str] = set()
        self.look_ups = self.loads = self.bytes = 0
        self.is_kept = self.is_whole = False

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self._begun

    def enter(self, name: str) -> None:
        self.tick()
        self._open[name] += 1
        if not self._first or _RANK[name] < _RANK[self._first]:
            self._first = name

    def leave(self, name: str) -> None:
        self.tick()
        self._open[name] -= 1
        if not self._open[name] and self._first == name:
            self._first = next((other for other, count in self._open.items() if count), "")

    def tick(self) -> None:
        """Counts the time since the last change of stages for the stage that it belongs to."""
        now = time.perf_counter()
        if self._first:
            self.stages[self._first] = self.stages.get(self._first, 0.0) + now - self._since
        self._since = now

    @property
    def cache(self) -> str:
        """What the cache was worth: 'kept' (the whole answer was), 'hit' (no node was asked for a look-up), 'miss', 'partial', or
        'none': no look-up."""
        if self.is_kept:
            return "kept"
        if not self.look_ups:
            return "none"
        return "hit" if not self.loads else "miss" if self.loads >= self.look_ups else "partial"

    def server_timing(self) -> str:
        """The Server-Timing header of the stages so far and of the whole, in milliseconds."""
        self.tick()
        told = [f"{name};dur={self.stages[name] * 1000:.1f}" for name in STAGES if name in self.stages]
        return ", ".join([*told, f"total;dur={self.seconds * 1000:.1f}"])


_FAULT = 500
LEFT = 499
"""The status, in logs and metrics alone, of a request whose caller left before the answer began."""


class Exchange:
    """One request and its answer, as it is seen from outside: made when it comes, told of its first byte and of its end.

    `traceparent` are the values of the header of that name. A route's name is a label, so it is one of the table's.
    """

    __slots__ = ("_span", "account", "identifier", "status")

    def __init__(self, traceparent: Sequence[str]) -> None:
        self.identifier = tracing.begin(traceparent)
        request_id.set(self.identifier)
        self.account = Account()
        _account.set(self.account)
        self._span = tracing.start("request", "SERVER")
        self.status = _FAULT
        metrics.requests_in_flight.inc()

    def begins(self, status: int, route: str) -> list[tuple[bytes, bytes]]:
        """The first byte is about to leave. Gives the headers that say so, as ASGI has them."""
        self.status = status
        timing = self.account.server_timing()
        metrics.first_byte_of(route).observe(self.account.seconds)
        for stage_, seconds in self.account.stages.items():
            metrics.stage_of(stage_).observe(seconds)
        return [(b"x-request-id", self.identifier.encode()), (b"server-timing", timing.encode())]

    def leaves(self) -> None:
        """The caller has left, and there may be no status to tell of: that is no fault of ours."""
        if self.status == _FAULT:
            self.status = LEFT

    def sends(self, size: int, *, is_last: bool) -> None:
        """Some bytes of the body are about to leave."""
        self.account.bytes += size
        self.account.is_whole = is_last

    def ends(self, route: str, sent_method: str) -> None:
        """Nothing more will leave: the last byte has, or the answer is broken off."""
        account, method, seconds = self.account, metrics.method_of(sent_method), self.account.seconds
        metrics.requests_in_flight.dec()
        metrics.answered(route, method, str(self.status)).inc()
        metrics.last_byte_of(route).observe(seconds)
        metrics.bytes_of(route).inc(account.bytes)
        told: dict[str, str | int] = {
            "route": route,
            "method": method,
            "status": self.status,
            "bytes": account.bytes,
            "nodes": len(account.asked),
            "cache": account.cache,
            "outcome": "whole" if account.is_whole else "broken off",
        }
        _log_request({"seconds": round(seconds, 4), **told})
        if self._span is not None:
            self._span.end(failed=self.status >= 500 or not account.is_whole, name=f"{method} {route}", **told)


class stage:  # noqa: N801 - read as a word: `with stage("view"):`, or above a function that does not wait
    """Counts the time inside for a stage of this request (see Account), and shows it as a span."""

    __slots__ = ("_name", "_of", "_span")

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def inside(*args: P.args, **kwargs: P.kwargs) -> T:
            with stage(self._name):
                return function(*args, **kwargs)

        return inside

    def __enter__(self) -> None:
        self._of = _account.get()
        if self._of is not None:
            self._of.enter(self._name)
        self._span = tracing.start(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span is not None:
            self._span.end(failed=isinstance(error, Exception))
        if self._of is not None:
            self._of.leave(self._name)


def answer_was_kept() -> None:
    """Tells this request's account that its whole answer was there already."""
    account = _account.get()
    if account is not None:
        account.is_kept = True


def looking_up(load: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
    """Counts one look-up for this request; the load that it gives counts as one that the cache could not answer."""
    account = _account.get()
    if account is None:
        return load
    account.look_ups += 1

    async def counted() -> T:
        account.loads += 1
        with stage("nodes"):
            return await load()

    return counted


class node_operation:  # noqa: N801 - as `stage`
    """Counts, times and traces one operation on a node, by outcome (ok, or the exception's class name)."""

    __slots__ = ("_node", "_of", "_operation", "_span", "_started")

    def __init__(self, node: str, operation: str) -> None:
        self._node, self._operation = node, operation

    def __enter__(self) -> None:
        self._of = _account.get()
        if self._of is not None:
            self._of.asked.add(self._node)
            self._of.enter("nodes")
        self._span = tracing.start(f"node {self._operation}", "CLIENT", node=self._node, operation=self._operation)
        metrics.in_flight_at(self._node).inc()
        self._started = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        node, operation = self._node, self._operation
        outcome = type(error).__name__ if error is not None else "ok"
        metrics.seconds_at(node, operation).observe(time.perf_counter() - self._started)
        metrics.in_flight_at(node).dec()
        metrics.operation_ended(node, operation, outcome).inc()
        if self._span is not None:
            self._span.end(failed=isinstance(error, Exception), outcome=outcome)
        if self._of is not None:
            self._of.leave("nodes")
