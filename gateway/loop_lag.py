"""Measures how late the event loop is: what it wakes late for, every request waits for."""

from __future__ import annotations

import asyncio
from collections import deque

from gateway.metrics import Gauge, Histogram
from gateway.telemetry import log

PERIOD = 0.1
_REMEMBERED = int(60 / PERIOD)
_TOO_LATE = 1.0

lag_seconds = Histogram(
    "gateway_event_loop_lag_seconds",
    "How late the event loop woke from a sleep of 100 ms",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
recent_maximum = Gauge(
    "gateway_event_loop_lag_max_seconds",
    "The most that it was late within the last minute",
    multiprocess_mode="livemax",
)
tasks = Gauge("gateway_tasks", "Tasks of the event loop that have not ended", multiprocess_mode="livesum")


async def watch_the_loop() -> None:
    """Until it is cancelled. Says so in the log when the loop was more than a second late."""
    loop = asyncio.get_running_loop()
    recent: deque[float] = deque(maxlen=_REMEMBERED)
    while True:
        due = loop.time() + PERIOD
        await asyncio.sleep(PERIOD)
        late = max(0.0, loop.time() - due)
        recent.append(late)
        lag_seconds.observe(late)
        recent_maximum.set(max(recent))
        tasks.set(len(asyncio.all_tasks(loop)))
        if late > _TOO_LATE:
            log().warning("event loop late", seconds=round(late, 3))
