"""What an answer says of its age, over HTTP: also after slow nodes and slow readers."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path

from gateway.simulators.dicomweb import DicomwebSimulator
from tests.running import Gateway, files_node
from tests.specimens import specimen


def test_age_counts_what_the_answer_took_to_make(tmp_path: Path) -> None:
    """One node's answer comes from the cache, another node takes its time."""
    specimen(tmp_path / "a", "P", "one")
    specimen(tmp_path / "b", "P", "two")
    path = "/dicom-web/studies?PatientID=P&IssuerOfPatientID=I"
    with DicomwebSimulator(tmp_path / "b") as slow:
        nodes = [
            files_node("a", tmp_path / "a", patient_id_issuer="I"),
            {"id": "b", "name": "b", "adapter": "dicomweb", "connection": {"url": slow.url}, "patient_id_issuer": "I"},
        ]
        with Gateway(nodes, find_ttl=4, stale_seconds=0, stale_if_error_seconds=0) as gateway:
            gateway.get("/dicom-web/studies?PatientID=Q&node=b")  # learns the node
            slow.options = dataclasses.replace(slow.options, delay=5)
            assert len(gateway.get(path + "&node=a").json()) == 1
            fetched = time.monotonic()
            time.sleep(2.2)
            answer = gateway.get(path)
            age = time.monotonic() - fetched
            assert len(answer.json()) == 2, answer.text
            told = int(answer.headers["age"])
            fresh_for = int(answer.headers["cache-control"].partition("max-age=")[2].split(",")[0] or 0) - told
            assert told >= int(age) - 1, f"told {told}, is {age:.1f} s old, said to be fresh for {fresh_for} s more"
            assert fresh_for <= 0


def test_a_kept_answer_is_not_older_than_its_time_because_its_first_caller_read_slowly(tmp_path: Path) -> None:
    specimen(tmp_path, "P", "one")
    path = "/dicom-web/studies?PatientID=P"
    with Gateway([files_node("a", tmp_path)], find_ttl=2, stale_seconds=0, stale_if_error_seconds=0) as gateway:
        made = 0.0

        async def first() -> None:
            nonlocal made
            scope = {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "method": "GET",
                "scheme": "http",
                "path": "/dicom-web/studies",
                "raw_path": b"/dicom-web/studies",
                "query_string": b"PatientID=P",
                "root_path": "",
                "server": ("127.0.0.1", gateway.port),
                "client": ("127.0.0.1", 1),
                "headers": [(b"host", f"127.0.0.1:{gateway.port}".encode()), (b"accept", b"application/dicom+json")],
            }

            async def receive() -> dict[str, object]:
                await asyncio.sleep(3600)
                return {"type": "http.disconnect"}

            async def send(message: dict[str, object]) -> None:
                nonlocal made
                if message["type"] == "http.response.start":
                    made = time.monotonic()
                    await asyncio.sleep(5)  # the socket of a caller who reads slowly is full

            await gateway.app(scope, receive, send)  # type: ignore[misc]

        asyncio.run_coroutine_threadsafe(first(), gateway.loop).result(30)
        specimen(tmp_path, "P", "two")
        import httpx

        with httpx.Client(base_url=gateway.url) as client:
            request = client.build_request("GET", path)
            request.headers = httpx.Headers({"host": f"127.0.0.1:{gateway.port}", "accept": "application/dicom+json"})
            answer = client.send(request)
        age = time.monotonic() - made
        # find_ttl is 2 s, nothing may be stale: an answer that is 5 s old is asked anew.
        assert "plan;dur=" in answer.headers["server-timing"], f"told age {answer.headers['age']}, is {age:.1f} s old"
