"""A uvicorn server in a thread that ends when it is told to, not at its next look ten times a second."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

import uvicorn


class PromptServer(uvicorn.Server):
    """`ready` is set once requests are taken; `end` may be called from any thread."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._ending = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def end(self) -> None:
        """Has it take no more requests, and end with the last answer, or once `timeout_graceful_shutdown` is over."""
        self.should_exit = True
        if self._loop:
            with contextlib.suppress(RuntimeError):  # its loop is closed: it has ended by itself
                self._loop.call_soon_threadsafe(self._ending.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # which makes the Date header of the second
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), 1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's own, less its tenth of a second for nothing and its tenths for connections that have gone."""
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            await asyncio.wait_for(self._last_answer(), self.config.timeout_graceful_shutdown)
        except TimeoutError:
            for task in self.server_state.tasks:
                task.cancel()
        await self.lifespan.shutdown()

    async def _last_answer(self) -> None:
        while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110 - sets of uvicorn's own, which tell nobody
            await asyncio.sleep(0.005)
        for server in self.servers:
            await server.wait_closed()
