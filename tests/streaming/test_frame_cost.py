"""One frame of a large instance costs little of it: counted in bytes read upstream, whether it is taken or rendered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.bench.processes import Memory, Server, gateway, node, simulator
from tests.streaming.conftest import Bulk

MOST_OF_IT = 0.03
FRAMES = ["frames/57", "frames/57/rendered", "rendered", "thumbnail"]


@pytest.fixture(scope="module", params=["files", "dicomweb"])
def served(request: pytest.FixtureRequest, bulk: Bulk) -> Iterator[Server]:
    with ExitStack() as stack:
        connection: dict[str, object] = {"directory": str(bulk.directory)}
        if request.param == "dicomweb":
            connection = {"url": f"{stack.enter_context(simulator('dicomweb', bulk.directory)).url}/dicom-web"}
        running = stack.enter_context(gateway([node("bulk", request.param, connection, search_deadline=60)]))
        httpx.get(f"{running.url}/dicom-web/studies/{bulk.multiframe}/instances", timeout=120).raise_for_status()
        yield running


def bytes_read(served: Server) -> int:
    """All that the gateway's process has read from files, sockets and pipes: no read of the node's can be missed by it."""
    counters = Path(f"/proc/{served.process.pid}/io").read_text().splitlines()
    return int(next(line for line in counters if line.startswith("rchar")).split()[1])


def instance(served: Server, study: str) -> str:
    (row,) = httpx.get(f"{served.url}/dicom-web/studies/{study}/instances", timeout=60).json()
    series, uid = row["0020000E"]["Value"][0], row["00080018"]["Value"][0]
    return f"{served.url}/dicom-web/studies/{study}/series/{series}/instances/{uid}"


@pytest.mark.parametrize("what", FRAMES)
def test_one_frame_of_200_mb_costs_less_than_3_percent_of_it(
    served: Server, bulk: Bulk, what: str, record_property
) -> None:
    where, whole = instance(served, bulk.multiframe), bulk.multiframe_file.stat().st_size
    assert whole > 190_000_000
    before = bytes_read(served)
    answer = httpx.get(f"{where}/{what}", timeout=120)
    read = bytes_read(served) - before
    assert answer.status_code == 200, answer.text[:300]
    record_property("figures", f"  {what}: {read / whole:.2%} of {whole / 1e6:.0f} MB read")
    assert 0 < read < MOST_OF_IT * whole


def test_200_mb_are_encoded_and_decoded_frame_by_frame(served: Server, bulk: Bulk, record_property) -> None:
    """Into RLE on the way, which every byte passes through the imaging process for: memory does not grow with the instance."""
    where = instance(served, bulk.multiframe)
    accept = {"Accept": "application/dicom; transfer-syntax=1.2.840.10008.1.2.5"}
    size = 0
    with Memory(served.process) as memory, httpx.stream("GET", where, headers=accept, timeout=300) as answer:
        assert answer.status_code == 200
        for chunk in answer.iter_raw():
            size += len(chunk)
    record_property("figures", f"  {size / 1e6:.0f} MB came out, resident memory grew by {memory.growth:.1f} MB")
    assert size > 100_000_000
    assert memory.growth < 64.0
