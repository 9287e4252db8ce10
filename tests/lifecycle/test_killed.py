"""SIGKILL: what was under way when a process was killed is in the audit, which nobody was there to end."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import httpx

from tests.bench.processes import Server, gateway
from tests.lifecycle.conftest import Hospitals, Stream, eventually


def audited(served: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (served.directory / "audit").read_text().splitlines()]


def test_a_stream_that_is_killed_with_its_process_has_begun_in_the_audit(hospitals: Hospitals) -> None:
    with gateway([hospitals.node("large", hospitals.large)]) as served:
        stream = Stream(served, f"/dicom-web/studies/{hospitals.large_study}")
        eventually(lambda: audited(served))
        served.process.send_signal(signal.SIGKILL)
        served.process.wait(30)
        stream.close()
        (record,) = audited(served)
    assert (record["action"], record["outcome"], record["count"]) == ("retrieve", "begun", 0)
    assert (record["nodes"], record["studies"]) == (["large"], [hospitals.large_study])
    assert record["ref"] == f"studies/{hospitals.large_study}"
    assert {"time", "subject", "client", "purpose"} < record.keys()


def test_what_has_ended_refers_to_what_has_begun(hospitals: Hospitals) -> None:
    with gateway([hospitals.node("large", hospitals.large)]) as served:
        stream = Stream(served, f"/dicom-web/studies/{hospitals.large_study}")
        stream.rest()
        stream.close()
        served.process.send_signal(signal.SIGTERM)
        served.process.wait(30)
        begun, ended = audited(served)
    assert (begun["outcome"], ended["outcome"], ended["count"]) == ("begun", "success", 1)
    assert begun["request_id"] == ended["request_id"]


def test_the_index_of_a_directory_does_not_outlive_a_killed_process_longer_than_until_the_next_start(
    hospitals: Hospitals, tmp_path: Path
) -> None:
    """It has the patients' names in it."""
    elsewhere = f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}"
    left = []
    for end in (signal.SIGKILL, signal.SIGTERM):
        with gateway([hospitals.node("first", hospitals.first)], before=elsewhere) as served:
            assert len(httpx.get(f"{served.url}/dicom-web/studies").json()) == 1
            left.append(len(list(tmp_path.rglob("index.sqlite"))))
            served.process.send_signal(end)
            served.process.wait(30)
    assert (left, list(tmp_path.rglob("index.sqlite"))) == ([1, 1], [])
