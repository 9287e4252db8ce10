"""SIGKILL: what was under way when a process was killed is in the audit, which nobody was there to end."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.bench.processes import Server, gateway, node
from tests.lifecycle.conftest import Hospitals, Stream, eventually
from tests.sending import DICOM, body, encoded, instance


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


@pytest.mark.parametrize("spool_bytes", [0, 1_000_000])
def test_what_was_being_stored_when_a_process_was_killed_goes_at_the_next_start_with_and_without_a_spool(
    spool_bytes: int, hospitals: Hospitals, tmp_path: Path
) -> None:
    content = body(encoded(instance()), encoded(instance()))
    head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {DICOM}\r\nContent-Length: {len(content)}\r\n\r\n"
    hanging = {"host": "127.0.0.1", "port": 1, "called_ae_title": "PACS"}

    def left() -> list[Path]:
        return list(tmp_path.rglob("*.dcm"))

    with socket.create_server(("127.0.0.1", 0)) as pacs:
        hanging["port"] = pacs.getsockname()[1]
        table = node("pacs", "dimse", hanging, store=True, connect_deadline=60, capabilities=["store"])
        for end in (signal.SIGKILL, signal.SIGTERM):
            with gateway([table], spool=tmp_path, spool_bytes=spool_bytes, drain_seconds=0) as served:
                if end is signal.SIGKILL:
                    sender = socket.create_connection(("127.0.0.1", served.port))
                    sender.sendall(head.encode() + content)
                    eventually(left)
                else:
                    # The socket listens before anything is put in order.
                    httpx.get(f"{served.url}/live", timeout=30).raise_for_status()
                served.process.send_signal(end)
                served.process.wait(30)
    sender.close()
    assert left() == []
