"""A TCP proxy that hangs up on chosen requests: a node that fails now and then without being ill."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self


class Flaky:
    """Passes everything on to a port of this machine. `hang_up(on, times)` closes the connection at a request whose head
    holds the text, as often as said, once it has `spare`d as many."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._on, self._left, self._spared = b"", 0, 0
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []

    def hang_up(self, on: str, times: int, *, spare: int = 0) -> None:
        with self._lock:
            self._on, self._left, self._spared = on.encode(), times, spare

    @property
    def left(self) -> int:
        """How many more times it will hang up."""
        return self._left

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for one in self._open:
            _end(one)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                node = socket.create_connection(("127.0.0.1", self._upstream))
                self._open += [caller, node]
                threading.Thread(target=self._between, args=(caller, node), daemon=True).start()

    def _between(self, caller: socket.socket, node: socket.socket) -> None:
        """Closes neither before both ways have ended: the next connection would get a number that is still in use here."""
        back = threading.Thread(target=self._pass_on, args=(node, caller, False), daemon=True)
        back.start()
        self._pass_on(caller, node, True)
        back.join()
        caller.close()
        node.close()

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_caller: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if is_caller and self._hangs_up(data):
                    break
                sink.sendall(data)
        for one in (source, sink):
            _end(one)

    def _hangs_up(self, data: bytes) -> bool:
        with self._lock:
            if not self._left or self._on not in data:
                return False
            self._spared -= 1
            if self._spared >= 0:
                return False
            self._left -= 1
            return True


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
