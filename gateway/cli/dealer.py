"""Accepts connections and deals them out to the workers in turn; none is lost while a worker is full, starting, hanging or gone."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from gateway.cli import channel
from gateway.telemetry import log

_AT_ONCE = 64
_WHILE_FULL, _AFTER_FAILURE = 0.01, 0.5


class Dealer:
    """Takes nothing from the listening socket while no worker is ready: the kernel keeps the callers waiting meanwhile."""

    def __init__(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._ready: deque[socket.socket] = deque()
        self._listened_to: set[socket.socket] = set()
        self._heard: set[socket.socket] = set()
        self._silent: set[socket.socket] = set()
        self._held: socket.socket | None = None
        self._is_closed = False

    def listen(self, worker: socket.socket, on_ready: Callable[[], None]) -> None:
        """Deals to a worker, from when it says that it is ready until it says that it takes no more."""
        self._listened_to.add(worker)
        asyncio.get_running_loop().add_reader(worker, self._hear, worker, on_ready)

    def is_silent(self, worker: socket.socket) -> bool:
        """Whether a worker that should be at work has said nothing since this was asked last: it then gets no connections
        before it is heard again, unless all are like that."""
        if worker not in self._listened_to or worker in self._heard:
            self._heard.discard(worker)
            return False
        self._silent.add(worker)
        return True

    def forget(self, worker: socket.socket) -> None:
        """The worker has ended."""
        asyncio.get_running_loop().remove_reader(worker)
        for those in (self._listened_to, self._heard, self._silent):
            those.discard(worker)
        if worker in self._ready:
            self._ready.remove(worker)
        self._resume()

    def close(self) -> None:
        """No more connections: one that no worker could take so far is given up."""
        if self._is_closed:
            return
        self._deal()
        self._is_closed = True
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        if self._held:
            self._held.close()

    def _hear(self, worker: socket.socket, on_ready: Callable[[], None]) -> None:
        said = channel.heard(worker)
        if said is None:
            return
        self._heard.add(worker)
        self._silent.discard(worker)
        if said[0] == channel.READY:
            self._ready.append(worker)
            on_ready()
            self._resume()
        elif said[0] != channel.ALIVE:
            self.forget(worker)

    def _resume(self) -> None:
        if self._is_closed:
            return
        loop = asyncio.get_running_loop()
        if not self._ready:
            loop.remove_reader(self._listener)
            return
        loop.add_reader(self._listener, self._deal)
        if self._held is not None:  # the next caller, who would wake us, may be long in coming
            self._deal()

    def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        loop.call_later(seconds, self._resume)

    def _deal(self) -> None:
        for _ in range(_AT_ONCE):
            if self._held is None:
                try:
                    self._held, _address = self._listener.accept()
                except (BlockingIOError, ConnectionAbortedError):
                    return
                except OSError as error:
                    log().error("cannot accept", reason=type(error).__name__, code=error.errno)
                    self._pause(_AFTER_FAILURE)
                    return
            if not self._is_taken(self._held):
                self._pause(_WHILE_FULL)
                return
            self._held.close()
            self._held = None

    def _is_taken(self, connection: socket.socket) -> bool:
        """By the next worker in turn that has room."""
        passed_over = self._silent if not self._silent.issuperset(self._ready) else ()
        for _ in range(len(self._ready)):
            worker = self._ready[0]
            self._ready.rotate(-1)
            if worker not in passed_over and channel.hand_over(worker, connection):
                return True
        return False
