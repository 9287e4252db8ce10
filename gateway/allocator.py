"""Gives memory back: what failed requests left behind, and what large answers took for a moment and glibc keeps."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from typing import Any

_EVERY = 60.0
_ARENA_MAX, _HEAPS = -8, 2  # mallopt(3): a heap for each thread would keep its own
_YOUNG, _YOUNG_AT_MOST = 50_000, 500_000  # objects since the last look
_TIMES = 20  # that the young are looked at before those that were looked at once have their turn


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
    if library is not None:
        library.mallopt(_ARENA_MAX, _HEAPS)
    while True:
        await asyncio.sleep(_EVERY)
        # An error, its frames and its task hold each other. By itself the collector looks at what has become old once in many
        # million allocations: hours. Not in a thread: what is let go of belongs to this loop.
        gc.collect()
        if library is not None:
            await asyncio.to_thread(library.malloc_trim, 0)


def _glibc() -> Any:
    """None on a system without it."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None
