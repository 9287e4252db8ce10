"""What is stored never piles up in the gateway: 200 MB in one instance, to each kind of node, within 64 MB more memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from pydicom import dcmread

from tests import peers
from tests.bench.processes import Memory, Server, gateway, node, simulator
from tests.sending import BOUNDARY, DICOM, instance, read, send
from tests.streaming.conftest import Bulk

MOST = 64.0


@pytest.fixture(scope="module", params=["files", "dicomweb", "dimse"])
def stored_at(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Path]]:
    """A gateway over an empty archive, warm, and the archive's directory."""
    with ExitStack() as stack:
        directory = stack.enter_context(peers.home()) / "archive"
        directory.mkdir()
        connection: dict[str, object] = {"directory": str(directory)}
        if request.param != "files":
            peer = stack.enter_context(simulator(request.param, directory))
            dimse = {"host": "127.0.0.1", "port": peer.port, "called_ae_title": "SIMULATOR", "max_associations": 8}
            connection = dimse if request.param == "dimse" else {"url": f"{peer.url}/dicom-web"}
        table = node("archive", request.param, connection, store=True, search_deadline=60, first_byte_deadline=120)
        served = stack.enter_context(gateway([table]))
        with httpx.Client(base_url=served.url, timeout=60) as client:
            for _ in range(8):
                assert send(client, instance()).status == 200
        yield served, directory


def sent(served: Server, file: Path, study: str) -> int:
    """The status of storing the file, streamed."""
    parts = (b"--%b\r\nContent-Type: application/dicom\r\n\r\n" % BOUNDARY.encode(), b"\r\n--%b--" % BOUNDARY.encode())
    size = file.stat().st_size + sum(map(len, parts))

    def content() -> Iterator[bytes]:
        yield parts[0]
        with file.open("rb") as opened:
            while chunk := opened.read(1 << 20):
                yield chunk
        yield parts[1]

    headers = {"Content-Type": DICOM, "Content-Length": str(size)}
    url = f"{served.url}/dicom-web/studies/{study}"
    answer = read(httpx.post(url, content=content(), headers=headers, timeout=170))
    assert not answer.failed
    return answer.status


def test_one_instance_of_200_mb_is_stored_in_little_memory(
    stored_at: tuple[Server, Path], bulk: Bulk, record_property
) -> None:
    served, directory = stored_at
    with Memory(served.process) as memory:
        assert sent(served, bulk.multiframe_file, bulk.multiframe) == 200
    record_property("figures", f"  resident memory grew by {memory.growth:.1f} MB")
    assert memory.growth < MOST
    size = bulk.multiframe_file.stat().st_size
    assert max(path.stat().st_size for path in directory.rglob("*") if path.is_file()) > size * 0.99


def test_four_at_once_are_too(stored_at: tuple[Server, Path], bulk: Bulk, tmp_path: Path, record_property) -> None:
    served, _ = stored_at
    whole = (bulk.small / "multiframe.dcm").read_bytes()
    uid = str(dcmread(bulk.small / "multiframe.dcm", stop_before_pixels=True).SOPInstanceUID)
    files = [tmp_path / f"{number}.dcm" for number in range(4)]
    for number, file in enumerate(files):
        file.write_bytes(whole.replace(uid.encode(), f"{uid[:-1]}{number}".encode()))
    with Memory(served.process) as memory, ThreadPoolExecutor(4) as senders:
        statuses = list(senders.map(lambda file: sent(served, file, bulk.multiframe), files))
    record_property("figures", f"  resident memory grew by {memory.growth:.1f} MB")
    assert set(statuses) <= {200}
    assert memory.growth < MOST
