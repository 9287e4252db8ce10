"""A gateway under load while its Redis is full, killed, restarted and hung: no request fails and nothing is too old."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis

from gateway.simulators.dicomweb import DicomwebSimulator
from tests.running import TRUST, Gateway
from tests.specimens import specimen

from .conftest import RealRedis

pytestmark = pytest.mark.interop
TTL, STALE = 1, 1


class Load:
    """Four callers who ask different questions again and again; `wrong` is every answer that is not whole and young."""

    def __init__(self, url: str) -> None:
        self.url, self.wrong, self.answered = url, [], 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(4)]

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=30, verify=TRUST) as client:
            for n in range(10**9):
                if self._stop.is_set():
                    return
                answer = client.get(
                    f"/dicom-web/studies?PatientID=P&IssuerOfPatientID=I&limit={number + 4 * (n % 5) + 1}"
                )
                self.answered += 1
                if answer.status_code != 200 or len(answer.json()) != 1 or "warning" in answer.headers:
                    self.wrong.append((answer.status_code, answer.text[:200], answer.headers.get("warning")))
                if float(answer.headers.get("age", 0)) > TTL + STALE:
                    self.wrong.append(("age", answer.headers["age"], ""))

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(30)

    def goes_on(self, answers: int = 60) -> None:
        """Waits until so many more requests were answered."""
        until, ends = self.answered + answers, time.monotonic() + 60
        while self.answered < until:
            assert time.monotonic() < ends, "the gateway does not answer any more"
            time.sleep(0.01)


def state(gateway: Gateway, wanted: str) -> None:
    ends = time.monotonic() + 30
    while gateway.get("/nodes").json()["cache"] != wanted:
        assert time.monotonic() < ends, f"the cache is not {wanted}; under way are:\n{gateway.under_way()}"
        time.sleep(0.02)


def fill_up(server: RealRedis, gateway: Gateway, load: Load) -> None:
    plain = redis.Redis(unix_socket_path=str(server.socket))
    plain.config_set("maxmemory-policy", "noeviction")
    plain.config_set("maxmemory", "1")
    load.goes_on(200)
    state(gateway, "up")
    plain.config_set("maxmemory", "0")


def kill(server: RealRedis, gateway: Gateway, load: Load) -> None:
    server.kill()
    load.goes_on()
    state(gateway, "down")
    server.start()


def restart(server: RealRedis, gateway: Gateway, load: Load) -> None:
    for _ in range(3):
        server.kill()
        server.start()
        load.goes_on(30)


def hang(server: RealRedis, gateway: Gateway, load: Load) -> None:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        load.goes_on()
        state(gateway, "down")
    finally:
        os.kill(server.pid, signal.SIGCONT)


def refuse(server: RealRedis, gateway: Gateway, load: Load) -> None:
    """A replica takes no writes; a script that kills clients ends every connection again and again."""
    plain = redis.Redis(unix_socket_path=str(server.socket))
    plain.replicaof("127.0.0.1", 1)
    load.goes_on()
    plain.replicaof("NO", "ONE")
    for _ in range(10):
        plain.client_kill_filter(_type="normal", skipme=True)
        load.goes_on(5)


@pytest.mark.parametrize("trouble", [fill_up, kill, restart, hang, refuse])
@pytest.mark.parametrize("local", [0, 2**20], ids=["redis only", "with the layer in the process"])
def test_no_request_fails(
    tmp_path: Path, redis_server: RealRedis, trouble: Callable[[RealRedis, Gateway, Load], None], local: int
) -> None:
    specimen(tmp_path, "P", "s", "1")
    with DicomwebSimulator(tmp_path) as web:
        node = {"id": "w", "name": "w", "adapter": "dicomweb", "connection": {"url": web.url}, "patient_id_issuer": "I"}
        times = {"find_ttl": TTL, "stale_seconds": STALE, "local_cache_bytes": local}
        with Gateway([node], redis_url=redis_server.url, cache_timeout=0.5, **times) as gateway:
            state(gateway, "up")
            load = Load(gateway.url)
            with load.running():
                load.goes_on()
                trouble(redis_server, gateway, load)
                state(gateway, "up")
                load.goes_on()
            assert load.wrong == []
