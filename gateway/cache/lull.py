"""Puts work off until answers have stopped coming in: whoever waits for the last of them waits for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

QUIET = 0.035
"""Seconds without an answer after which what many of them make together is likely to be made."""
MOST = 0.1
"""Seconds that work is put off at most."""


class Lull:
    """Tells when no answer came for a while. Work is done one piece at a time, and the event loop has its turn in between."""

    def __init__(self) -> None:
        self._last = 0.0
        self._alone = asyncio.Lock()

    def ends(self) -> None:
        """An answer has come."""
        self._last = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Within it is the time for one piece of work, that does not wait for anything."""
        latest = asyncio.get_running_loop().time() + MOST
        async with self._alone:
            await asyncio.sleep(0)
            await self._come(latest)
            yield

    async def _come(self, latest: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            left = min(self._last + QUIET, latest) - loop.time()
            if left <= 0:
                return
            await asyncio.sleep(left)
