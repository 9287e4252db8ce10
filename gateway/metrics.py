"""The Prometheus metrics: every name, label and bucket; gateway/README.md says what each means. Labels come from closed sets."""

from __future__ import annotations

import os
from functools import cache

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics, values

__all__ = ["Counter", "Gauge", "Histogram"]
"""Every metric is made of these, as they are from here on."""

FILES = "PROMETHEUS_MULTIPROC_DIR"
"""The variable by which prometheus-client keeps metrics in files that the workers share; their supervisor sets it."""
_PID = os.getpid()

if FILES in os.environ:  # otherwise it asks the system for the pid at every count; no process forks with metrics in it
    values.ValueClass = values.MultiProcessValue(lambda: _PID)  # type: ignore[no-untyped-call]
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each counter and histogram, that nothing reads

# From a cached look-up to the longest search; a retrieve may take longer than the last one.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

requests = Counter("gateway_requests_total", "Requests answered", ["route", "method", "status"])
request_seconds = Histogram(
    "gateway_request_seconds", "Time to the first byte of the answer", ["route"], buckets=BUCKETS
)
request_duration = Histogram(
    "gateway_request_duration_seconds", "Time to the last byte of the answer", ["route"], buckets=BUCKETS
)
requests_in_flight = Gauge("gateway_requests_in_flight", "Requests being answered now", multiprocess_mode="livesum")
response_bytes = Counter("gateway_response_bytes_total", "Bytes of bodies sent to callers", ["route"])
stage_seconds = Histogram(
    "gateway_stage_seconds", "Time of a request's stage, up to the first byte of the answer", ["stage"], buckets=BUCKETS
)
partial_answers = Counter("gateway_partial_answers_total", "Answers given although something was missing", ["action"])
node_operations = Counter(
    "gateway_node_operations_total", "Operations asked of a node, by how they ended", ["node", "operation", "outcome"]
)
node_seconds = Histogram(
    "gateway_node_seconds", "Time an operation on a node took, to its last byte", ["node", "operation"], buckets=BUCKETS
)
node_in_flight = Gauge(
    "gateway_node_in_flight", "Operations a node is working on now", ["node"], multiprocess_mode="livesum"
)
node_up = Gauge(
    "gateway_node_up",
    "1 when the node's last operation was answered, 0 when it failed",
    ["node"],
    multiprocess_mode="livemostrecent",
)
node_breaker_state = Gauge(
    "gateway_node_breaker_state",
    "0 the node is asked, 1 one question tries it, 2 it is not asked",
    ["node"],
    multiprocess_mode="livemax",
)
node_queued = Gauge(
    "gateway_node_queued", "Operations that wait for a permit of a node", ["node"], multiprocess_mode="livesum"
)
node_retries = Counter("gateway_node_retries_total", "Questions asked of a node once more", ["node", "operation"])
node_shed = Counter("gateway_node_shed_total", "Operations turned away because a node's queue was full", ["node"])
node_bytes = Counter(
    "gateway_node_bytes_total", "Bytes of bodies and instances, from a node or to it", ["node", "direction"]
)
node_rows = Counter("gateway_node_rows_total", "Rows that a node gave to searches", ["node"])

# A client may send any word as the method; a label may not take any value.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


def method_of(sent: str) -> str:
    """The method as a label: one of HTTP's own, else OTHER."""
    return sent if sent in _METHODS else "OTHER"


# `labels` takes a lock and builds a key each time; what has been looked up once is kept. The sets are closed, so this is too.
answered = cache(requests.labels)
first_byte_of = cache(request_seconds.labels)
last_byte_of = cache(request_duration.labels)
bytes_of = cache(response_bytes.labels)
stage_of = cache(stage_seconds.labels)
operation_ended = cache(node_operations.labels)
seconds_at = cache(node_seconds.labels)
in_flight_at = cache(node_in_flight.labels)
up = cache(node_up.labels)
rows_of = cache(node_rows.labels)


@cache
def received_from(node: str) -> Counter:
    """What a node's bodies are counted in, in bytes."""
    return node_bytes.labels(node, "in")


@cache
def sent_to(node: str) -> Counter:
    return node_bytes.labels(node, "out")
