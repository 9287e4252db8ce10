"""The metrics as Prometheus text: this process's own, or the sum over the workers that it serves with."""

from __future__ import annotations

import os

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from gateway.metrics import FILES


def exposition() -> bytes:
    """Every metric. Over several workers, collectors of one process (python_*, process_*) are left out.

    Gauges need a `multiprocess_mode` that says how several values become one ("livesum", "max").
    """
    if FILES not in os.environ:
        return generate_latest(REGISTRY)
    together = CollectorRegistry()
    MultiProcessCollector(together)  # type: ignore[no-untyped-call]
    return generate_latest(together)
