"""What a gateway process takes of the system, seen from outside."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import httpx
import pytest

from gateway import allocator
from tests.bench.processes import Server, gateway
from tests.lifecycle.conftest import Hospitals, Stream

_HEAP = re.compile(r"^([0-9a-f]+)-[0-9a-f]+ rw-p 00000000 00:00 0\s*$")


def heaps_of_threads(served: Server) -> int:
    """glibc maps each at a multiple of 64 MB, in no file."""
    lines = Path(f"/proc/{served.process.pid}/maps").read_text().splitlines()
    begins = [int(found[1], 16) for line in lines if (found := _HEAP.match(line))]
    return sum(begin % (64 * 1024**2) == 0 for begin in begins)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or allocator._glibc() is None, reason="reads glibc's heaps in /proc"
)
def test_the_threads_of_a_gateway_share_one_heap(hospitals: Hospitals) -> None:
    with gateway([hospitals.node("first", hospitals.first), hospitals.node("large", hospitals.large)]) as served:
        stream = Stream(served, f"/dicom-web/studies/{hospitals.large_study}")
        stream.rest()
        stream.close()
        study = f"{served.url}/dicom-web/studies/{hospitals.first_study}"
        assert httpx.get(f"{study}/metadata").status_code == 200
        assert len(list(Path(f"/proc/{served.process.pid}/task").iterdir())) > 2, "there are threads"
        assert heaps_of_threads(served) <= 1, "that of a library's thread, which was there before"
