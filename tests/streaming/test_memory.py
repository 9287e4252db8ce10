"""What passes through the gateway never piles up in it: resident memory, seen from outside, grows by less than 64 MB."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.bench import drain
from tests.bench.processes import Memory, Server, gateway, node, simulator
from tests.streaming.conftest import Bulk

MOST = 64.0
STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
ADAPTERS = ["files", "dicomweb", "dimse"]


@contextmanager
def gateway_over(adapter: str, bulk: Bulk, **settings: object) -> Iterator[Server]:
    """A gateway in front of the bulk by one adapter, warm: it has searched and retrieved, eight at once."""
    with ExitStack() as stack:
        connection: dict[str, object] = {"directory": str(bulk.directory)}
        if adapter != "files":
            peer = stack.enter_context(simulator(adapter, bulk.directory))
            dimse = {"host": "127.0.0.1", "port": peer.port, "called_ae_title": "SIMULATOR", "max_associations": 8}
            connection = dimse if adapter == "dimse" else {"url": f"{peer.url}/dicom-web"}
        served = stack.enter_context(gateway([node("bulk", adapter, connection, search_deadline=60)], **settings))
        drain.run(address(served, bulk.tiny), STORED, 8)
        yield served


def address(served: Server, study: str) -> str:
    return f"{served.url}/dicom-web/studies/{study}"


@pytest.fixture(scope="module", params=ADAPTERS)
def served(request: pytest.FixtureRequest, bulk: Bulk) -> Iterator[Server]:
    with gateway_over(request.param, bulk) as running:
        yield running


@pytest.mark.parametrize("copies", [1, 8])
def test_one_instance_of_200_mb_passes_through_little_memory(served: Server, bulk: Bulk, copies: int, record_property):
    with Memory(served.process) as memory:
        drained = drain.run(address(served, bulk.multiframe), STORED, copies)
    assert drained.bytes > copies * bulk.multiframe_file.stat().st_size
    record_property("figures", f"  resident memory grew by {memory.growth:.1f} MB")
    assert memory.growth < MOST


@pytest.mark.parametrize("copies", [1, 8])
def test_400_instances_of_half_a_megabyte_pass_through_little_memory(
    served: Server, bulk: Bulk, copies: int, record_property
):
    with Memory(served.process) as memory:
        drained = drain.run(address(served, bulk.series), STORED, copies)
    assert drained.bytes > copies * 400 * 512 * 512 * 2
    record_property("figures", f"  resident memory grew by {memory.growth:.1f} MB")
    assert memory.growth < MOST


def test_memory_is_as_flat_without_the_spool(bulk: Bulk):
    with gateway_over("dimse", bulk, spool_bytes=0) as served, Memory(served.process) as memory:
        drain.run(address(served, bulk.multiframe), STORED, 4)
        drain.run(address(served, bulk.series), STORED)
    assert memory.growth < MOST


def test_a_reader_of_1_mb_a_second_holds_the_node_back_and_nothing_piles_up(served: Server, bulk: Bulk):
    with Memory(served.process) as memory, slow_reader(served, bulk.multiframe) as connection:
        received = 0
        for _ in range(12):
            received += len(connection.recv(256 * 1024, socket.MSG_WAITALL))
            time.sleep(0.25)
    assert received == 12 * 256 * 1024
    assert memory.growth < 16.0, "200 MB were waiting at the node; the gateway took more than it could pass on"


@contextmanager
def slow_reader(served: Server, study: str) -> Iterator[socket.socket]:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
        connection.connect(("127.0.0.1", served.port))
        path = f"/dicom-web/studies/{study}"
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {STORED}\r\n\r\n".encode())
        assert connection.recv(64 * 1024).startswith(b"HTTP/1.1 200")
        yield connection
