"""Whoever leaves, a caller, a node, or a node that never says a word: nothing of the request stays behind."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.simulators.bulk import large_multiframe
from gateway.simulators.dicomweb import DicomwebOptions, DicomwebSimulator
from gateway.simulators.dimse import DimseOptions, DimseSimulator
from tests.bench.drain import read
from tests.faults.leftovers import Watched, connections_to, eventually, own_threads
from tests.running import Gateway, files_node
from tests.streaming.conftest import Bulk

STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'


def dimse_node(identifier: str, port: int, **more: Any) -> dict[str, Any]:
    connection = {"host": "127.0.0.1", "port": port, "called_ae_title": "SIMULATOR"}
    return {"id": identifier, "name": identifier, "adapter": "dimse", "connection": connection, **more}


def web_node(identifier: str, url: str, **more: Any) -> dict[str, Any]:
    return {"id": identifier, "name": identifier, "adapter": "dicomweb", "connection": {"url": url}, **more}


@pytest.fixture(params=["files", "dicomweb", "dimse"])
def watched(request: pytest.FixtureRequest, bulk: Bulk, tmp_path: Path) -> Iterator[tuple[Watched, int]]:
    """The gateway over the bulk, and the port of its node (0 for a directory)."""
    with ExitStack() as stack:
        port, one = 0, files_node("bulk", bulk.directory)
        if request.param == "dicomweb":
            port = (web := stack.enter_context(DicomwebSimulator(bulk.directory))).port
            one = web_node("bulk", web.url, search_deadline=30.0)
        elif request.param == "dimse":
            port = stack.enter_context(DimseSimulator(bulk.directory)).port
            one = dimse_node("bulk", port, search_deadline=30.0)
        gateway = stack.enter_context(Watched([one], spool=tmp_path))
        assert gateway.get(f"/dicom-web/studies/{bulk.tiny}", headers={"Accept": STORED}).status_code == 200
        yield gateway, port


@contextmanager
def begun(gateway: Gateway, study: str) -> Iterator[socket.socket]:
    """A retrieve of which the first megabyte has come. Leaving it resets the connection, as a caller does that dies."""
    with socket.create_connection(("127.0.0.1", gateway.port), 30) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        path = f"/dicom-web/studies/{study}"
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {STORED}\r\n\r\n".encode())
        left = 1 << 20
        while left:
            received = connection.recv(left)
            assert received, "the answer ended too early"
            left -= len(received)
        yield connection


def test_a_caller_who_leaves_in_the_middle_leaves_nothing_behind(watched: tuple[Watched, int], bulk: Bulk):
    gateway, port = watched
    assert eventually(gateway.is_idle)
    tasks, connections = gateway.tasks(), connections_to(port) if port else 0
    for study in (bulk.multiframe, bulk.series) * 2:
        with begun(gateway, study):
            assert gateway.permits_out() == 1
        assert eventually(gateway.is_idle), "the permit, the association or the half-written file is still there"
    assert eventually(lambda: gateway.tasks() <= tasks), "a task is still there"
    assert not port or eventually(lambda: connections_to(port) <= connections), "a connection is still there"


def test_four_callers_who_leave_at_once_leave_nothing_behind(watched: tuple[Watched, int], bulk: Bulk):
    gateway, _ = watched
    tasks = gateway.tasks()
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(begun(gateway, bulk.multiframe))
        assert gateway.permits_out() == 4
    assert eventually(gateway.is_idle)
    assert eventually(lambda: gateway.tasks() <= tasks)
    assert gateway.get(f"/dicom-web/studies/{bulk.tiny}", headers={"Accept": STORED}).status_code == 200


def asks(gateway: Gateway, path: str, method: str = "GET") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", gateway.port), 30)
    form = b"_count=5" if method == "POST" else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n"
    if form:
        head += f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(form)}\r\n"
    connection.sendall(f"{head}\r\n".encode() + form)
    return connection


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/dicom-web/studies?StudyDate=20200101-"),
        ("HEAD", "/dicom-web/studies?StudyDate=20200101-"),
        ("GET", "/fhir/ImagingStudy"),
        ("POST", "/fhir/ImagingStudy/_search"),
        ("GET", "/dicom-web/studies/{study}"),
        ("GET", "/dicom-web/studies/{study}/metadata"),
    ],
)
def test_a_caller_who_leaves_before_the_answer_is_not_worked_for_any_more(
    bulk: Bulk, tmp_path: Path, method: str, path: str
):
    with DicomwebSimulator(bulk.small, DicomwebOptions(delay=8)) as web:
        slow = web_node("bulk", web.url, search_deadline=30.0, first_byte_deadline=30.0, idle_deadline=30.0, quirks=[])
        with Watched([slow], spool=tmp_path) as gateway:
            caller = asks(gateway, path.format(study=bulk.tiny), method)
            assert eventually(lambda: gateway.permits_out() == 1)
            caller.close()
            assert eventually(gateway.is_idle, 4), "the node is still waited for"
            assert eventually(lambda: connections_to(web.port) == 0, 4), "the node's connection is still there"
            told = gateway.get("/metrics").text
    assert "gateway_requests_in_flight 1.0" in told  # this one
    assert 'status="499"' in told


def test_who_waits_for_the_same_answer_gets_it_though_the_first_to_ask_leaves(bulk: Bulk, tmp_path: Path):
    with (
        DicomwebSimulator(bulk.small, DicomwebOptions(delay=2)) as web,
        Watched([web_node("bulk", web.url, quirks=[])], spool=tmp_path) as gateway,
        ThreadPoolExecutor(1) as second,
    ):
        caller = asks(gateway, "/dicom-web/studies")
        assert eventually(lambda: gateway.permits_out() == 1)
        waits = second.submit(gateway.get, "/dicom-web/studies")
        assert not eventually(waits.done, 0.5)
        caller.close()
        answer = waits.result(20)
        assert (answer.status_code, len(answer.json())) == (200, 2)
        assert web.operations.total() == 1


@pytest.mark.parametrize("framing", ["chunked", "content-length"])
def test_a_node_that_cuts_an_instance_short_breaks_the_callers_connection(bulk: Bulk, tmp_path: Path, framing: Any):
    faulty = DicomwebOptions(
        framing=framing, truncate_after=20_000_000, faulty_operations=frozenset({"retrieve_study"})
    )
    with DicomwebSimulator(bulk.small, faulty) as web, Watched([web_node("bulk", web.url)], spool=tmp_path) as gateway:
        size, whole = read(f"{gateway.dicomweb}/studies/{bulk.multiframe}", STORED)
        assert 0 < size < 21_000_000
        assert not whole
        assert eventually(gateway.is_idle)


def test_a_node_that_aborts_in_the_middle_breaks_the_callers_connection(bulk: Bulk, tmp_path: Path):
    with (
        DimseSimulator(bulk.small, options=DimseOptions(abort_after=5)) as pacs,
        Watched([dimse_node("bulk", pacs.port)], spool=tmp_path) as gateway,
    ):
        size, whole = read(f"{gateway.dicomweb}/studies/{bulk.tiny}", STORED)
        assert 0 < size < 8 * 64 * 64 * 2
        assert not whole
        assert eventually(gateway.is_idle)


def test_a_file_that_shrinks_while_it_is_sent_breaks_the_callers_connection(bulk: Bulk, tmp_path: Path):
    file = tmp_path / "node" / "multiframe.dcm"
    study = large_multiframe(file, 40)
    nodes = [files_node("bulk", file.parent)]
    with Watched(nodes, spool=tmp_path) as gateway, begun(gateway, study) as caller:
        os.truncate(file, 30_000_000)
        received = 1 << 20
        while count := len(caller.recv(1 << 20)):
            received += count
        assert received < 31_000_000
        assert eventually(gateway.is_idle)


def test_200_requests_to_nodes_that_never_answer_leave_nothing_behind(bulk: Bulk, tmp_path: Path):
    """Three kinds of silence: a port that takes connections, a PACS and a DICOMweb server that take questions."""
    with (
        DimseSimulator(bulk.small, options=DimseOptions(black_hole="tcp")) as deaf,
        DimseSimulator(bulk.small, options=DimseOptions(black_hole="association")) as mute,
        DicomwebSimulator(bulk.small, DicomwebOptions(black_hole=True)) as web,
    ):
        patience = {"search_deadline": 0.5, "connect_deadline": 0.5, "first_byte_deadline": 0.5, "idle_deadline": 0.5}
        silent = [dimse_node("deaf", deaf.port, **patience), dimse_node("mute", mute.port, **patience)]
        nodes = [files_node("here", bulk.small), *silent, web_node("web", web.url, **patience)]
        with Watched(nodes, spool=tmp_path) as gateway:
            ask(gateway, range(40))
            assert eventually(gateway.is_idle)
            tasks, threads = gateway.tasks(), len(own_threads())
            ask(gateway, range(40, 240))
            assert eventually(gateway.is_idle), "a permit or an association is still out"
            assert eventually(lambda: gateway.tasks() <= tasks), "a task is still there"
            assert eventually(lambda: len(own_threads()) <= threads), own_threads()
            for silent_node in (deaf, mute, web):
                assert eventually(lambda port=silent_node.port: connections_to(port) == 0), (
                    "a connection is still there"
                )


def ask(gateway: Watched, numbers: range) -> None:
    """As many searches, no two the same, twenty at a time; each is answered by the node that answers."""

    def search(number: int) -> tuple[int, int]:
        answer = gateway.get(
            f"/dicom-web/studies?StudyDate=19000101-2099{number // 28 % 12 + 1:02}{number % 28 + 1:02}"
        )
        return answer.status_code, len(answer.json())

    with ThreadPoolExecutor(20) as callers:
        assert set(callers.map(search, numbers)) == {(200, 2)}
