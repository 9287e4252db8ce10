"""SIGTERM: not ready at once, what runs ends whole within its time, what does not is broken off, never ended neatly."""

from __future__ import annotations

import http.client
import signal
import socket

import httpx
import pytest

from tests.bench.processes import Server, gateway
from tests.lifecycle.conftest import Hospitals, Stream, eventually

BROKEN = (http.client.IncompleteRead, ConnectionError)
both = pytest.mark.parametrize("workers", [1, 2])


def is_listening(served: Server) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", served.port)) == 0


def large_stream(served: Server, hospitals: Hospitals) -> Stream:
    stream = Stream(served, f"/dicom-web/studies/{hospitals.large_study}")
    assert stream.status == 200
    return stream


@both
def test_it_is_not_ready_at_once_takes_connections_for_the_delay_and_lets_a_stream_end(
    workers: int, hospitals: Hospitals
) -> None:
    with gateway([hospitals.node("large", hospitals.large)], workers=workers, drain_delay=3) as served:
        stream = large_stream(served, hospitals)
        served.process.send_signal(signal.SIGTERM)
        ready = eventually(lambda: (one := httpx.get(f"{served.url}/ready")).status_code == 503 and one)
        assert ready.text == "draining"
        assert ready.headers["connection"] == "close"
        assert httpx.get(f"{served.url}/dicom-web/studies").status_code == 200
        eventually(lambda: not is_listening(served))
        assert served.process.poll() is None
        assert stream.rest() > hospitals.large_bytes
        stream.close()
        assert served.process.wait(30) == 0


@both
def test_what_has_not_ended_in_its_time_is_broken_off(workers: int, hospitals: Hospitals) -> None:
    with gateway([hospitals.node("large", hospitals.large)], workers=workers, drain_seconds=1) as served:
        stream = large_stream(served, hospitals)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(30) == 0
        with pytest.raises(BROKEN):
            stream.rest()
        assert stream.received < hospitals.large_bytes


@both
def test_a_second_signal_cuts_at_once(workers: int, hospitals: Hospitals) -> None:
    with gateway([hospitals.node("large", hospitals.large)], workers=workers, drain_seconds=600) as served:
        stream = large_stream(served, hospitals)
        served.process.send_signal(signal.SIGTERM)
        eventually(lambda: not is_listening(served))
        assert served.process.poll() is None
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(30) == 0
        with pytest.raises(BROKEN):
            stream.rest()
