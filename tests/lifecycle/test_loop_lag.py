"""How late the event loop is, is measured while it is late, and said when it is very late."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from gateway import telemetry
from gateway.federation.fanout import cancel_all
from gateway.loop_lag import watch_the_loop


def metric(name: str) -> float:
    return REGISTRY.get_sample_value(f"gateway_event_loop_lag_{name}") or 0.0


async def test_a_loop_that_stood_still_is_counted_and_told() -> None:
    counted = metric("seconds_count")
    telemetry.configure("INFO")
    with capture_logs() as told:
        watching = asyncio.create_task(watch_the_loop())
        await asyncio.sleep(0)
        time.sleep(1.3)  # nothing else can run
        while not told:  # another gateway of this process may be watched as well, and be counted
            await asyncio.sleep(0.01)
    await cancel_all([watching])
    assert metric("seconds_count") > counted
    assert metric("max_seconds") > 0.0
    assert [one["event"] for one in told] == ["event loop late"]
    assert told[0]["seconds"] > 1.0
