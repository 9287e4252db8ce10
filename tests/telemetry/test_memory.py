"""What is given back to the system while nobody asks for it."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref

import pytest

from gateway import allocator
from gateway.federation.fanout import cancel_all


class Held:
    """Something that a failed request had in hand."""


async def failing() -> weakref.ref[Held]:
    """A task that failed, whose error's frames hold each other and it."""
    held = Held()
    told = weakref.ref(held)

    async def fails() -> None:
        mine = held  # noqa: F841 - kept by this frame
        try:
            raise ValueError
        except ValueError as error:
            kept = error  # noqa: F841 - the cycle
            raise

    with pytest.raises(ValueError):
        await asyncio.create_task(fails())
    return told


async def test_what_failed_requests_leave_behind_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_EVERY", 0.05)
    told = await failing()
    assert told() is not None
    giving = asyncio.create_task(allocator.give_back())
    try:
        ends = asyncio.get_running_loop().time() + 20
        while told() is not None and asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(0.05)
        assert told() is None
    finally:
        await cancel_all([giving])


def _looks() -> list[int]:
    """How often each generation was looked at so far."""
    return [each["collections"] for each in gc.get_stats()]


def test_young_objects_are_looked_at_where_there_are_many_and_not_where_there_are_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threshold = gc.get_threshold()
    gc.set_threshold(500_000, 20, 20)
    try:
        gc.collect()
        before = _looks()
        allocator.collect_the_young()
        assert _looks() == before
        many = [[] for _ in range(60_000)]
        allocator.collect_the_young()
        assert _looks() == [before[0] + 1, *before[1:]]
        monkeypatch.setattr(allocator, "_TIMES", 1)
        many += [[] for _ in range(60_000)]
        allocator.collect_the_young()
        assert _looks() == [before[0] + 1, before[1] + 1, before[2]], "those that were looked at before have their turn"
        assert len(many) == 120_000
    finally:
        gc.set_threshold(*threshold)


_TAKING = """
import resource, sys
from gateway import allocator
if sys.argv[1] == "reserve":
    allocator.hold_a_reserve()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    before = faults()
    small = [[{"vr": "UI", "Value": [str(number)]}] for number in range(30_000)]
    print(faults() - before)
    del small
    allocator._glibc().malloc_trim(0)
"""


def taking(how: str) -> list[int]:
    """The pages that the system gave to a process of its own while it took memory twice, and gave some back in between."""
    command = [sys.executable, "-c", _TAKING, how]
    return [int(line) for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


@pytest.mark.skipif(allocator._glibc() is None, reason="another allocator than glibc's is left alone")
def test_what_requests_take_is_at_hand_before_they_do_and_after_memory_was_given_back() -> None:
    assert min(taking("none")) > 2_000
    assert max(taking("reserve")) < 400


_SHORT = """
import resource
from pathlib import Path
from gateway import allocator
said = Path("/proc/self/status").read_text().splitlines()
size = next(int(line.split()[1]) * 1024 for line in said if line.startswith("VmSize"))
most = size + 20 * 1024**2
resource.setrlimit(resource.RLIMIT_AS, (most, most))
allocator.hold_a_reserve()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_that_is_given_no_reserve_goes_on_without() -> None:
    done = subprocess.run([sys.executable, "-c", _SHORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
