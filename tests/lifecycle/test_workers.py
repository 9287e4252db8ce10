"""Several workers are one gateway: one port, one cache, one secret, one set of metrics, one audit; and they are replaced."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import psutil
import pytest

from gateway.simulators.dicomweb import DicomwebSimulator
from tests.bench.processes import Server, gateway, node, node_file
from tests.lifecycle.conftest import (
    Hospitals,
    asked_all_the_time,
    eventually,
    ids,
    is_gone,
    kill,
    listed,
    log,
    put,
    write,
)
from tests.running import TRUST


def workers_of(served: Server) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(served.process.pid).children():
        with suppress(psutil.Error):  # it has ended meanwhile
            if "gateway.cli.worker" in one.cmdline():
                found.append(one)
    return found


def in_rotation(served: Server) -> int:
    """How many workers get connections: as many as share the next few."""
    before = counts(served)
    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
        after = eventually(lambda: now if sum((now := counts(served)).values()) >= sum(before.values()) + 6 else None)
    return sum(after[worker] > before.get(worker, 0) for worker in after)


def counts(served: Server) -> dict[int, int]:
    """The connections that each worker holds, by its process id."""
    found = {}
    for worker in workers_of(served):
        with suppress(psutil.Error):
            held = worker.net_connections("tcp")
            found[worker.pid] = sum(one.status == "ESTABLISHED" and one.laddr.port == served.port for one in held)
    return found


@pytest.fixture(scope="module")
def served(hospitals: Hospitals) -> Iterator[Server]:
    with gateway([hospitals.node("steady", hospitals.first)], workers=2, log_level="INFO") as running:
        eventually(lambda: in_rotation(running) == 2)
        yield running


def test_sixteen_connections_are_eight_for_each(served: Server) -> None:
    eventually(lambda: not any(counts(served).values()))
    with ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
        eventually(lambda: sum(counts(served).values()) == 16)
        assert sorted(counts(served).values()) == [8, 8]


def test_a_burst_of_callers_is_served_to_the_last_one(served: Server) -> None:
    question = f"GET /live HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nConnection: close\r\n\r\n".encode()
    with ExitStack() as stack:
        callers = [
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=60)) for _ in range(600)
        ]
        for caller in callers:
            caller.sendall(question)
        assert {caller.recv(12) for caller in callers} == {b"HTTP/1.1 200"}


def test_what_was_seen_is_not_recorded_where_the_record_would_end_with_the_process(served: Server) -> None:
    refused = httpx.get(f"{served.url}/fhir/ImagingStudy?_lastUpdated=gt2026", verify=TRUST)
    assert refused.status_code == 400
    assert "GATEWAY_REDIS_URL" in refused.text


def test_a_page_and_a_patient_of_one_worker_are_known_to_the_other(served: Server) -> None:
    answer = httpx.get(f"{served.url}/fhir/ImagingStudy", verify=TRUST).json()
    patient = answer["entry"][0]["resource"]["subject"]["reference"]
    for _ in range(4):  # a connection each: two for each worker
        found = httpx.get(f"{served.url}/fhir/{patient}", verify=TRUST)
        assert (found.status_code, found.json()["resourceType"]) == (200, "Patient")


def test_metrics_are_those_of_all_workers(served: Server) -> None:
    def total() -> float:
        found = re.findall(
            r"^gateway_requests_total\{.*\} (\S+)$", httpx.get(f"{served.url}/metrics", verify=TRUST).text, re.M
        )
        return sum(map(float, found))

    before = total()
    for _ in range(10):
        httpx.get(f"{served.url}/live", verify=TRUST)
    # `before` was itself counted after it was read.
    assert total() == before + 11


def test_every_line_of_the_audit_is_whole(served: Server) -> None:
    def ask(_: int) -> int:
        return httpx.get(f"{served.url}/dicom-web/studies", verify=TRUST, timeout=60).status_code

    audit = served.directory / "audit"
    before = len(audit.read_bytes().splitlines())
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(100))) == {200}
    eventually(lambda: len(audit.read_bytes().splitlines()) >= before + 100)
    for line in audit.read_bytes().splitlines():
        json.loads(line)


def test_a_node_is_asked_once_for_all_workers(hospitals: Hospitals) -> None:
    with DicomwebSimulator(hospitals.first) as madrid:
        nodes = [node("madrid", "dicomweb", {"url": madrid.url}, quirks=[])]
        with gateway(nodes, workers=2, probe=False, find_ttl=600) as served:
            eventually(lambda: in_rotation(served) == 2)
            for _ in range(8):
                assert len(httpx.get(f"{served.url}/dicom-web/studies", verify=TRUST).json()) == 1
            assert madrid.operations["search_studies"] == 1, madrid.operations


def test_a_worker_that_dies_is_replaced_and_the_other_serves_meanwhile(served: Server) -> None:
    first, _ = workers_of(served)
    kill(first.pid, signal.SIGKILL)
    # Until it has been waited for it may still hold its listening socket, and resets whom it is given.
    eventually(lambda: not psutil.pid_exists(first.pid))
    for _ in range(4):
        assert httpx.get(f"{served.url}/dicom-web/studies", verify=TRUST).status_code == 200
    eventually(lambda: len(workers_of(served)) == 2 and in_rotation(served) == 2)
    assert '"event":"worker ended"' in (served.directory / "log").read_text()


def test_a_worker_that_cannot_be_started_now_is_started_later_and_the_other_serves_meanwhile(
    hospitals: Hospitals,
) -> None:
    with gateway([hospitals.node("steady", hospitals.first)], workers=2) as served:
        eventually(lambda: in_rotation(served) == 2)
        supervisor, (first, _) = psutil.Process(served.process.pid), workers_of(served)
        soft, hard = supervisor.rlimit(psutil.RLIMIT_NOFILE)
        with httpx.Client(base_url=served.url, verify=TRUST) as one, httpx.Client(base_url=served.url) as other:
            assert [each.get("/live").status_code for each in (one, other)] == [200, 200]
            supervisor.rlimit(psutil.RLIMIT_NOFILE, (3, hard))
            kill(first.pid, signal.SIGKILL)
            eventually(lambda: "worker cannot be started" in log(served) or served.process.poll() is not None)
            assert served.process.poll() is None
            supervisor.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
        eventually(lambda: len(workers_of(served)) == 2 and in_rotation(served) == 2)


@pytest.mark.parametrize("reload", [True, False])
def test_a_worker_that_is_replaced_comes_back_with_the_nodes_in_force_whatever_the_file_has_become(
    hospitals: Hospitals, reload: bool
) -> None:
    steady = hospitals.node("steady", hospitals.first)
    with gateway([steady], workers=2, reload=reload) as served:
        eventually(lambda: in_rotation(served) == 2)
        for text in ("[[node]\n", node_file([{**steady, "id": "another"}])) if not reload else ("[[node]\n",):
            put(served, text)
            for one in workers_of(served):
                kill(one.pid, signal.SIGKILL)
            eventually(lambda: not psutil.pid_exists(one.pid))  # noqa: B023 - it is called at once
            eventually(lambda: len(workers_of(served)) == 2 and in_rotation(served) == 2)
            assert [ids(served) for _ in range(4)] == [["steady"]] * 4
        if reload:
            assert "is not TOML" in listed(served)["node_file"]
            write(served, [{**steady, "id": "another"}])
            eventually(lambda: [ids(served) for _ in range(4)] == [["another"]] * 4)


def test_a_worker_that_hangs_gets_no_more_connections_until_it_is_heard_again(hospitals: Hospitals) -> None:
    with gateway([hospitals.node("steady", hospitals.first)], workers=2) as served:
        eventually(lambda: in_rotation(served) == 2)
        first, _ = workers_of(served)
        first.suspend()
        try:
            eventually(lambda: all(is_answered(served) for _ in range(4)))
            assert all(is_answered(served) for _ in range(6))
        finally:
            first.resume()
        eventually(lambda: in_rotation(served) == 2)


def test_a_worker_that_hangs_for_good_is_replaced(hospitals: Hospitals) -> None:
    soon = "from gateway.cli import supervisor; supervisor._LOOK_EVERY, supervisor._MOST_SILENT = 2.0, 12"
    with gateway([hospitals.node("steady", hospitals.first)], workers=2, before=soon) as served:
        eventually(lambda: in_rotation(served) == 2)
        first, _ = workers_of(served)
        first.suspend()
        eventually(lambda: is_gone(first.pid))
        eventually(lambda: len(workers_of(served)) == 2 and in_rotation(served) == 2)
        assert "worker hangs" in log(served)


def is_answered(served: Server) -> bool:
    with suppress(httpx.TimeoutException):
        return httpx.get(f"{served.url}/live", timeout=2, verify=TRUST).status_code == 200
    return False


def test_one_worker_that_is_told_to_end_breaks_no_request(served: Server) -> None:
    eventually(lambda: len(workers_of(served)) == 2)
    with asked_all_the_time(f"{served.url}/dicom-web/studies") as seen:
        first, _ = workers_of(served)
        kill(first.pid, signal.SIGTERM)
        eventually(lambda: first not in workers_of(served))
        eventually(lambda: len(workers_of(served)) == 2 and in_rotation(served) == 2)
    assert set(seen) == {200}, seen


def test_the_cache_comes_back_for_all_workers_when_its_server_dies(served: Server) -> None:
    def valkeys() -> list[int]:
        found = []
        for one in psutil.Process(served.process.pid).children(recursive=True):
            with suppress(psutil.Error):  # it has ended meanwhile
                if one.name() in ("valkey-server", "redis-server"):
                    found.append(one.pid)
        return found

    (before,) = valkeys()
    kill(before, signal.SIGKILL)
    eventually(lambda: valkeys() not in ([], [before]))
    httpx.get(f"{served.url}/dicom-web/studies", verify=TRUST)
    eventually(lambda: all(listed(served)["cache"] == "up" for _ in range(4)))


def test_a_hang_up_reaches_every_worker(hospitals: Hospitals) -> None:
    steady, fresh = hospitals.node("steady", hospitals.first), hospitals.node("fresh", hospitals.second)
    with gateway([steady], workers=2, reload=False) as served:
        eventually(lambda: in_rotation(served) == 2)
        with asked_all_the_time(f"{served.url}/nodes/steady/dicom-web/studies") as seen:
            write(served, [steady, fresh])
            served.process.send_signal(signal.SIGHUP)
            eventually(lambda: [ids(served) for _ in range(4)] == [["steady", "fresh"]] * 4)
        assert set(seen) == {200}, seen


def test_workers_end_when_their_supervisor_is_killed(hospitals: Hospitals) -> None:
    with gateway([hospitals.node("steady", hospitals.first)], workers=2) as served:
        eventually(lambda: in_rotation(served) == 2)
        left = [one.pid for one in psutil.Process(served.process.pid).children(recursive=True)]
        assert len(left) >= 4
        served.process.kill()
        eventually(lambda: all(is_gone(pid) for pid in left))
