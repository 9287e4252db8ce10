"""Request id, structured log, metrics and Server-Timing; whatever could carry patient data is dropped before it is written."""

from __future__ import annotations

import logging
import re
import secrets
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import structlog
from prometheus_client import Counter, Gauge, Histogram

request_id: ContextVar[str] = ContextVar("request_id", default="")
_stages: ContextVar[dict[str, float] | None] = ContextVar("stages", default=None)

requests = Counter("gateway_requests_total", "Requests answered", ["route", "method", "status"])
request_seconds = Histogram("gateway_request_seconds", "Time to the first byte of the answer", ["route"])
node_operations = Counter(
    "gateway_node_operations_total", "Operations asked of a node", ["node", "operation", "outcome"]
)
node_seconds = Histogram("gateway_node_seconds", "Time a node took to answer", ["node", "operation"])
node_in_flight = Gauge(
    "gateway_node_in_flight", "Operations a node is working on now", ["node"], multiprocess_mode="livesum"
)

# The only keys a log record may carry: everything else is dropped, so that no attribute of a patient can slip in.
LOGGABLE = frozenset(
    {
        "event", "level", "timestamp", "request_id", "route", "method", "status", "seconds", "node", "operation", "outcome",
        "code", "reason", "count", "bytes", "adapter", "address", "state", "signal", "file", "key", "version", "nodes",
        "traceback", "kind",
    }
)  # fmt: skip
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


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


def configure(level: str) -> None:
    """Sets up JSON logs on standard error, and keeps libraries that log payloads quiet."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _with_request_id,
            _only_loggable,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    for library in ("pynetdicom", "pydicom", "httpx", "httpcore", "aiohttp"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def log() -> Any:
    """The logger. Only the keys of LOGGABLE are written."""
    return structlog.get_logger()


def new_request_id(traceparent: str) -> str:
    """The trace id of a W3C traceparent header, else a new one of the same shape."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return match.group(1) if match else secrets.token_hex(16)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Adds the time spent inside to this request's Server-Timing entry `name`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        stages = _stages.get()
        if stages is not None:
            stages[name] = stages.get(name, 0.0) + time.perf_counter() - started


def start_stages() -> dict[str, float]:
    """Begins the stage clock of this request; the returned dict (name -> seconds) fills as stages end."""
    stages: dict[str, float] = {}
    _stages.set(stages)
    return stages


def server_timing(stages: dict[str, float]) -> str:
    """The Server-Timing header of the stages so far, in milliseconds."""
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in stages.items())


@contextmanager
def node_operation(node: str, operation: str) -> Iterator[None]:
    """Counts and times one operation on a node, by outcome (ok, or the exception's class name)."""
    started = time.perf_counter()
    outcome = "ok"
    node_in_flight.labels(node).inc()
    try:
        yield
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        node_in_flight.labels(node).dec()
        node_operations.labels(node, operation, outcome).inc()
        node_seconds.labels(node, operation).observe(time.perf_counter() - started)
