"""Memory: what requests take is at hand, and what they left behind, or large answers took for a moment, is given back."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from functools import cache
from typing import Any

_EVERY = 60.0
_ARENA_MAX = -8  # mallopt(3)
_RESERVE = 96 * 1024**2
"""The layer of the cache in the process, and twice as much for the rows in hand of 15 searches that wait for a slow node."""
_SMALL, _ARENA = 448, 256 * 1024  # a size that the interpreter makes of its own arenas, and the smallest those are
_YOUNG, _YOUNG_AT_MOST = 50_000, 500_000  # objects since the last look
_TIMES = 20  # that the young are looked at before those that were looked at once have their turn


def share_one_heap() -> None:
    """Has all threads that are not there yet take memory from the heap that `give_back` gives back from. By itself glibc makes one
    for each, up to 8 for each processor, and keeps the end of each: tens of MB, once a large answer went through it. Where there
    is another allocator than glibc's, it is left alone."""
    library = _glibc()
    if library is not None:
        library.mallopt(_ARENA_MAX, 1)


@cache
def hold_a_reserve() -> list[bytes]:
    """Has the system give memory for small objects now that it would give page by page while somebody waits: on a virtual machine
    a page takes up to 15 us, and the rows of twenty nodes are 600 pages. The interpreter hardly gives back what it took for small
    objects, so that what is not there now would come with some peak and stay. Once in a process; what it returns keeps the reserve.
    What the system does not give is gone without."""
    count = _RESERVE // _SMALL
    filled = bytes(_SMALL - sys.getsizeof(b""))
    try:
        blocks = [bytes(memoryview(filled)) for _ in range(count)]  # each of its own, and written to
    except MemoryError:
        return []
    # An arena goes back to the system with the last of its blocks.
    return blocks[:: _ARENA // _SMALL // 2]


def tune_the_collector() -> None:
    """What is there now stays. Under the default thresholds large JSON answers spend most of their time on collecting nothing: all
    their rows are in use. By itself it looks at the young only when there are very many, else when `collect_the_young` is called.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_AT_MOST, _TIMES, _TIMES)


def collect_the_young() -> None:
    """Looks at young objects where there are many, and at those that were looked at before as often as the collector would. To be
    called when nobody waits: of 50,000 it takes 10 ms and more."""
    young, older, _ = gc.get_count()
    if young >= _YOUNG:
        gc.collect(1 if older >= _TIMES else 0)


async def give_back() -> None:
    """Until it is cancelled. Where there is another allocator than glibc's, it is left alone."""
    library = _glibc()
    while True:
        await asyncio.sleep(_EVERY)
        # Libraries leave errors, frames and tasks that hold each other. By itself the collector looks at what has become old once
        # in many million allocations: hours. Not in a thread: what is let go of belongs to this loop.
        gc.collect()
        if library is not None:
            await asyncio.to_thread(library.malloc_trim, 0)


def _glibc() -> Any:
    """None on a system without it."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None
