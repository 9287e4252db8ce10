"""Several worker processes behind one port: starts them, deals connections out to them in turn, starts anew those that end or hang.

Connections are accepted here and handed over, since the alternatives leave workers idle: on one listening socket the first
to wake takes a whole burst, and SO_REUSEPORT spreads few connections as a coin does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gateway
from gateway.cli import channel, serving, shared
from gateway.cli.dealer import Dealer
from gateway.settings import Settings
from gateway.telemetry import log

_STOPS = (signal.SIGINT, signal.SIGTERM)
_FIRST_PAUSE, _LONGEST_PAUSE, _LIVED_WELL = 0.5, 30.0, 60.0
# A worker that says nothing for so many looks, each so many seconds after the last, hangs. They are counted, since a machine
# that stood still itself has looked once.
_LOOK_EVERY, _MOST_SILENT = 5.0, 24
# Seconds beyond its time to drain that a worker has to end, and after a cut.
_BEYOND_DRAIN, _AFTER_CUT = 15.0, 10.0


@dataclass(eq=False, slots=True)
class Worker:
    """One process, and our end of the channel to it."""

    process: asyncio.subprocess.Process
    channel: socket.socket


class Supervisor:
    """Runs `settings.workers` processes over one listening socket. `variables` are theirs besides this process's own."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        variables: Mapping[str, str],
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._variables = variables
        self._on_ready = on_ready
        self._dealer = Dealer(listener)
        self._workers: set[Worker] = set()
        self._serving = asyncio.Event()
        self._leaving = asyncio.Event()
        self._cutting = asyncio.Event()
        self.refusal = 0

    async def run(self) -> None:
        """Until SIGINT or SIGTERM, or until the first worker has refused to start: `refusal` is then its exit code."""
        loop = asyncio.get_running_loop()
        for stop in _STOPS:
            loop.add_signal_handler(stop, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._tell, channel.RELOAD)
        serving.hear_hangups()
        ending = asyncio.create_task(self._end())
        try:
            await self._keep_all()
        finally:
            ending.cancel()
            self._dealer.close()

    async def _keep_all(self) -> None:
        """The first worker proves settings and files, and says alone what is wrong with them; then come the others."""
        keepers = [asyncio.create_task(self._keep(0))]
        proved = asyncio.create_task(self._serving.wait())
        await asyncio.wait([*keepers, proved], return_when=asyncio.FIRST_COMPLETED)
        proved.cancel()
        if self._serving.is_set():
            self._on_ready()
            keepers += [asyncio.create_task(self._keep(number)) for number in range(1, self._settings.workers)]
        await asyncio.gather(*keepers)

    def _on_stop(self) -> None:
        (self._cutting if self._leaving.is_set() else self._leaving).set()

    def _tell(self, word: bytes) -> None:
        for worker in self._workers:
            channel.tell(worker.channel, word)

    async def _keep(self, number: int) -> None:
        """Has worker `number` running until the end: at once after it ends, then ever later while it does not live."""
        pause = _FIRST_PAUSE
        while not self._leaving.is_set():
            began = time.monotonic()
            code = await self._life()
            if self._leaving.is_set():
                return
            if not self._serving.is_set():
                self.refusal = code or 1
                return
            if time.monotonic() - began > _LIVED_WELL:
                pause = _FIRST_PAUSE
            log().error("worker ended", count=number, status=code, seconds=pause)
            await _first_of(self._leaving, pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _life(self) -> int:
        """As `_live`; a worker that cannot be started, as where there is no memory or descriptor left, ends at once."""
        try:
            return await self._live()
        except (OSError, RuntimeError) as error:  # RuntimeError: a thread that cannot be started
            log().error("worker cannot be started", reason=type(error).__name__, code=getattr(error, "errno", None))
            return 1

    async def _live(self) -> int:
        """The whole life of one worker; returns its exit code."""
        ours, theirs = channel.pair()
        with ours, theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "gateway.cli.worker",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, **self._variables, "PYTHONPATH": str(Path(gateway.__file__).parents[1])},
                pass_fds=[theirs.fileno()],
                # Ctrl-C in the terminal is for the supervisor, which then ends the workers in order.
                process_group=0,
            )
            theirs.close()
            worker = Worker(process, ours)
            self._workers.add(worker)
            self._dealer.listen(ours, self._serving.set)
            if self._leaving.is_set():
                channel.tell(ours, channel.END_OF_CONNECTIONS)
            try:
                return await self._end_of(worker)
            finally:
                self._dealer.forget(ours)
                self._workers.discard(worker)
                shared.forget_worker(process.pid, self._variables)

    async def _end_of(self, worker: Worker) -> int:
        """Its exit code. One that hangs is ended: what it was given would wait for ever."""
        silent = 0
        while True:
            try:
                async with asyncio.timeout(_LOOK_EVERY):
                    return await worker.process.wait()
            except TimeoutError:
                silent = silent + 1 if self._dealer.is_silent(worker.channel) else 0
            if silent == _MOST_SILENT and not self._leaving.is_set():
                log().error("worker hangs", seconds=_LOOK_EVERY * _MOST_SILENT)
                worker.process.kill()

    async def _end(self) -> None:
        """Not ready at once; no new connections after the delay; then the time to drain; then the end, willing or not."""
        await self._leaving.wait()
        self._tell(channel.LEAVE)
        await _first_of(self._cutting, self._settings.drain_delay)
        self._dealer.close()
        self._tell(channel.END_OF_CONNECTIONS)
        await _first_of(self._cutting, self._settings.drain_seconds + _BEYOND_DRAIN)
        self._tell(channel.CUT)
        await asyncio.sleep(_AFTER_CUT)
        for worker in self._workers:
            worker.process.kill()


async def _first_of(event: asyncio.Event, seconds: float) -> None:
    """Returns when the event is there, or after so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
