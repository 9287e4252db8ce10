"""A bare aiohttp client, the yardstick for searching many DICOMweb nodes: asks all at once, reads, sorts and writes the rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import aiohttp
import orjson
import uvloop

_UID = "0020000D"


class Fetcher:
    """Connections to the nodes at `urls`, which stay open; used in `with`."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._session: aiohttp.ClientSession | None = None

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            self._runner.run(self._session.close())
        self._runner.close()

    def milliseconds(self, query: str, expected: int) -> float:
        """From the first question to the text of the one list. Raises RuntimeError for another number of rows."""
        return self._runner.run(self._search(query, expected))

    async def _search(self, query: str, expected: int) -> float:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
        began = time.perf_counter()
        answers = await asyncio.gather(*(self._rows(self._session, url, query) for url in self._urls))
        rows = sorted((row for answer in answers for row in answer), key=lambda row: row[_UID]["Value"][0])
        orjson.dumps(rows)
        taken = (time.perf_counter() - began) * 1e3
        if len(rows) != expected:
            raise RuntimeError(f"{len(rows)} studies where there are {expected}")
        return taken

    async def _rows(self, session: aiohttp.ClientSession, url: str, query: str) -> list[dict[str, Any]]:
        async with session.get(f"{url}/studies?{query}") as answer:
            found: list[dict[str, Any]] = orjson.loads(await answer.read())
            return found
