"""Gives back to the system what large answers took for a moment: glibc keeps it, and a heap of its own for each thread."""

from __future__ import annotations

import asyncio
import ctypes
import sys
from typing import Any

_EVERY = 60.0
_ARENA_MAX, _HEAPS = -8, 2  # mallopt(3)


async def give_back() -> None:
    """Until it is cancelled. Where there is another allocator than glibc's, nothing is done."""
    library = _glibc()
    if library is None:
        return
    library.mallopt(_ARENA_MAX, _HEAPS)
    while True:
        await asyncio.sleep(_EVERY)
        await asyncio.to_thread(library.malloc_trim, 0)


def _glibc() -> Any:
    """None on a system without it."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None
