"""The files that take longest come first, so that no worker is left with one of them when the others have ended."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent
LONGEST = (
    "faults/test_matrix.py",
    "lifecycle/test_reload.py",
    "streaming/test_memory.py",
    "interop/test_gateway_over_real_peers.py",
    "behaviour/test_adapter_contract.py",
    "demo/test_demo.py",
    "export/test_surviving.py",
    "lifecycle/test_workers.py",
    "conformance/test_dicomweb_client.py",
    "federation/test_paging.py",
    "streaming/test_leaving.py",
    "cli/test_command_serve.py",
    "interop/test_storing_at_peers.py",
    "faults/test_redis.py",
    "adapters/test_dimse.py",
    "judges/test_judge_dicomweb_client.py",
    "federation/test_resilience.py",
    "simulators/test_dimse_simulator.py",
    "lifecycle/test_drain.py",
    "edge/test_transcoding.py",
    "export/test_export.py",
    "fuzz/test_fuzz.py",
    "cli/test_command_cache.py",
    "cache/test_topologies.py",
)
"""Each takes ten seconds and more by itself, the longest first; the others follow by their number of tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `--no-loadscope-reorder`: on its own, xdist takes the file with the most tests for the longest."""
    first = {ROOT / name: place for place, name in enumerate(LONGEST)}
    tests: dict[Path, int] = {}
    for item in items:
        tests[item.path] = tests.get(item.path, 0) + 1
    items.sort(key=lambda item: (first.get(item.path, len(first)), -tests[item.path], str(item.path)))
