"""One of several worker processes: serves the connections that its supervisor deals out to it; ends when told, or orphaned."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from gateway import settings
from gateway.app import create_app
from gateway.cli import channel, console, serving
from gateway.metrics import FILES

_AT_ONCE = 32
# Seconds beyond the delay after which a worker stops taking connections by itself: it was the only one told to leave.
_UNTIL_TOLD = 2.0
_TICKS_A_SECOND = 10  # of uvicorn


class WorkerServer(serving.Server):
    """Serves what comes through `end`, its end of the channel.

    No signal cuts: a service manager may send SIGTERM to every process, besides what the supervisor says.
    """

    def __init__(self, *arguments: Any, end: socket.socket, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._end = end
        end.setblocking(False)
        end.set_inheritable(False)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._leave_when_told()

    def _leave_when_told(self) -> None:
        """The supervisor ends the connections, so that none is left between it and here."""
        self.leave(self._delay + _UNTIL_TOLD)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            asyncio.get_running_loop().add_reader(self._end, self._listen)
            channel.tell(self._end, channel.READY)

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_A_SECOND == 0:
            channel.tell(self._end, channel.ALIVE)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        channel.tell(self._end, channel.FULL)
        while self._hear():
            pass
        await super().shutdown(sockets)
        asyncio.get_running_loop().remove_reader(self._end)

    def _listen(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._hear():
                return

    def _hear(self) -> bool:
        """Obeys the next word; False when there is none."""
        said = channel.heard(self._end)
        if said is None:
            return False
        self._obey(*said)
        if said[0] == channel.GONE:
            asyncio.get_running_loop().remove_reader(self._end)
        return said[0] != channel.GONE

    def _obey(self, word: bytes, connection: socket.socket | None) -> None:
        if connection is not None:
            self.after_start(asyncio.create_task(self._serve_connection(connection)))
        elif word == channel.RELOAD and self._on_hangup:
            self._on_hangup()
        elif word == channel.LEAVE:
            self._leave_when_told()
        elif word == channel.CUT:
            self.cut()
        elif word in (channel.END_OF_CONNECTIONS, channel.GONE):
            self.leave(0.0)

    async def _serve_connection(self, connection: socket.socket) -> None:
        config = self.config

        def protocol() -> asyncio.Protocol:
            return config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )

        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(protocol, connection, ssl=config.ssl)
        except OSError:  # the caller is gone, or speaks no TLS
            connection.close()


def main(end: socket.socket) -> None:
    """Serves with the settings of the environment. Exits with 2, and one line, when it cannot begin."""
    serving.hold_hangups()
    try:
        with console.refusals(), serving.stoppable():
            read = settings.read()
            app = create_app(read, shared=Path(os.environ[FILES]))
            serve = partial(WorkerServer, end=end)
            serving.run(app, read, [], serve=serve, on_hangup=lambda: app.state.reload())
    except typer.Exit as refused:
        sys.exit(refused.exit_code)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
