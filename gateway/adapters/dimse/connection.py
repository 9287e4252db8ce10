"""One connection to a node, used by one thread: every wait has a deadline, and any other thread can end it at once.

The socket never blocks. What waits, waits for the socket and for `stop` together, so that leaving an operation neither
has to break the socket under its thread (the A-ABORT still goes out) nor to wait for a node that says nothing.
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from gateway.adapters.dimse.channel import Left

BUFFER = 512 * 1024
_INTERRUPTED = (BlockingIOError, ssl.SSLWantReadError)
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)  # of Linux alone


class Late(Exception):
    """The deadline passed."""


class Lost(Exception):
    """The connection is gone, or never came about."""


class Connection:
    """A TCP or TLS connection. Deadlines are time.monotonic() values. Raises Late, Lost, or Left after `stop`.

    Everything but `stop` belongs to one thread. `received` is a view of what has come and not been taken.
    """

    def __init__(self) -> None:
        self.is_stopped = False
        self.is_open = False
        self.is_writing = False
        """A write is under way, or broke off: nothing more can be said in a way that the node understands."""
        self._socket: socket.socket | None = None
        self._buffer = memoryview(bytearray(BUFFER))
        self._start = self._end = 0
        self._lock = threading.Lock()
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)

    def open(self, host: str, port: int, deadline: float, tls: ssl.SSLContext | None) -> None:
        """Raises OSError for a name that cannot be resolved."""
        failure: Exception = Lost()
        for family, _, _, _, address in _resolved(host, port):
            try:
                self._connect(socket.socket(family, socket.SOCK_STREAM), address, deadline)
                break
            except Lost as lost:
                failure = lost
        else:
            raise failure
        if tls:
            self._shake_hands(tls, host, deadline)
        self.is_open = True

    def _connect(self, opened: socket.socket, address: object, deadline: float) -> None:
        self._socket = opened
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = opened.connect_ex(address)  # type: ignore[arg-type]
        if code == errno.EINPROGRESS:
            self._wait(select.POLLOUT, deadline)
            code = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            opened.close()
            raise Lost

    def _shake_hands(self, tls: ssl.SSLContext, host: str, deadline: float) -> None:
        try:
            wrapped = tls.wrap_socket(self._connected, server_hostname=host, do_handshake_on_connect=False)
            self._socket = wrapped
            while True:
                try:
                    wrapped.do_handshake()
                    return
                except ssl.SSLWantReadError:
                    self._wait(select.POLLIN, deadline)
                except ssl.SSLWantWriteError:
                    self._wait(select.POLLOUT, deadline)
        except (OSError, ValueError):  # ssl.SSLError is an OSError, a certificate that does not fit both
            raise Lost from None

    @property
    def _connected(self) -> socket.socket:
        if self._socket is None:
            raise Lost
        return self._socket

    # Reading

    @property
    def available(self) -> int:
        """How many bytes can be taken without waiting, as far as they have been read from the socket."""
        return self._end - self._start

    @property
    def is_silent(self) -> bool:
        """Whether nothing has come: on an idle connection, whatever comes is its end."""
        if not self.is_open or self.available:
            return False
        waiting = select.poll()
        waiting.register(self._connected, select.POLLIN)
        return not waiting.poll(0)

    def take(self, most: int) -> memoryview:
        """What has come, `most` bytes of it. It is valid until the next `fill` only."""
        taken = self._buffer[self._start : min(self._start + most, self._end)]
        self._start += len(taken)
        return taken

    def exactly(self, size: int, deadline: float) -> memoryview:
        """The next `size` bytes, which have to fit into the buffer; valid until the next `fill`."""
        while self.available < size:
            self.fill(deadline)
        return self.take(size)

    def fill(self, deadline: float) -> None:
        """Waits for more bytes and reads them."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == BUFFER:
            kept = bytes(self._buffer[self._start : self._end])
            self._buffer[: len(kept)] = kept
            self._start, self._end = 0, len(kept)
        connected = self._connected
        while True:
            if self.is_stopped:
                raise Left
            try:
                count = connected.recv_into(self._buffer[self._end :])
                break
            except _INTERRUPTED:
                _acknowledge(connected)
                self._wait(select.POLLIN, deadline)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, deadline)
            except OSError:
                raise Lost from None
        if not count:
            raise Lost
        self._end += count

    # Writing

    def write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        self.is_writing = True
        while view:
            try:
                view = view[self._connected.send(view) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait(select.POLLOUT, deadline)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, deadline)
            except OSError:
                raise Lost from None
        self.is_writing = False

    # Waiting and ending

    def _wait(self, event: int, deadline: float) -> None:
        waiting = select.poll()
        waiting.register(self._connected, event)
        waiting.register(self._wakened, select.POLLIN)
        seconds = deadline - time.monotonic()
        ready = waiting.poll(max(0, seconds * 1000)) if seconds < 1e6 else waiting.poll()
        if self.is_stopped:
            raise Left
        if not ready:
            raise Late

    def stop(self) -> None:
        """From any thread, without blocking: whoever waits on the connection, or comes to it later, gets Left."""
        with self._lock, suppress(OSError):
            self.is_stopped = True
            self._waker.send(b"\0")

    def resume(self) -> None:
        """After `stop`, for the last words on the connection."""
        with self._lock, suppress(OSError):
            self._wakened.recv(64)
            self.is_stopped = False

    def close(self, seconds: float) -> None:
        """Ends the connection. What was written is given so long to arrive: closing with unread bytes would discard it."""
        was_open, self.is_open = self.is_open, False
        if was_open and seconds and self._socket is not None:
            self._let_arrive(self._socket, time.monotonic() + seconds)
        with self._lock:
            for one in (self._socket, self._waker, self._wakened):
                if one is not None:
                    one.close()

    def _let_arrive(self, connected: socket.socket, deadline: float) -> None:
        with suppress(Late, Lost, Left, OSError):
            # The socket's own, not the one of TLS: that would forget its keys, and what is read be taken for plain.
            socket.socket.shutdown(connected, socket.SHUT_WR)
            while True:
                self._start = self._end = 0
                self.fill(deadline)
                if time.monotonic() > deadline:
                    return


def _acknowledge(connected: socket.socket) -> None:
    """What came, now, and not up to 40 ms later as Linux would: a node whose socket gathers small writes (Nagle: DCMTK, and so
    Orthanc) does not send the rest of a message before. To be said anew before each wait."""
    if _QUICKACK is not None:
        with suppress(OSError):
            connected.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)


def _resolved(host: str, port: int) -> Iterator[tuple[int, int, int, str, object]]:
    """IPv4 first: what listens on a DICOM port often does so on that alone."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    yield from sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
