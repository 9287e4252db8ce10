"""What the metrics' registry holds of the gateway's own."""

from __future__ import annotations

from prometheus_client import REGISTRY


def registered() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Each metric by the name that a scrape shows: its kind and its labels."""
    found = {}
    for collector in list(REGISTRY._collector_to_names):
        name, kind = getattr(collector, "_name", ""), getattr(collector, "_type", "")
        if name.startswith("gateway_"):
            found[name + ("_total" if kind == "counter" else "")] = (kind, tuple(collector._labelnames))
    return found
