"""What the supervisor and a worker say to each other: one byte each, and the connections that are handed over."""

from __future__ import annotations

import socket
from contextlib import suppress

# Supervisor to worker. A connection comes with its descriptor. END_OF_CONNECTIONS, and the end of the channel (the
# supervisor is gone), say that no more will come: as the channel keeps its order, none is left behind.
CONNECTION, RELOAD, LEAVE, END_OF_CONNECTIONS, CUT = b"c", b"h", b"l", b"e", b"x"
# Worker to supervisor: it takes connections; it takes no more; it is at work (once a second).
READY, FULL, ALIVE = b"r", b"f", b"a"
GONE = b""


def pair() -> tuple[socket.socket, socket.socket]:
    """The supervisor's end, which never waits, and the worker's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    return ours, theirs


def hand_over(channel: socket.socket, connection: socket.socket) -> bool:
    """Whether the worker will get the connection; False while its channel is full, and for good when it is gone."""
    try:
        return socket.send_fds(channel, [CONNECTION], [connection.fileno()]) == 1
    except OSError:
        return False


def tell(channel: socket.socket, word: bytes) -> None:
    """Says a word; a worker that is gone hears nothing."""
    with suppress(OSError):
        channel.send(word)


def heard(channel: socket.socket) -> tuple[bytes, socket.socket | None] | None:
    """The next word and the connection that came with it; GONE at the end, None when nothing has come.

    One byte is read at a time, so that a descriptor stays with its word.
    """
    try:
        word, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    except BlockingIOError:
        return None
    except OSError:
        return GONE, None
    return word, socket.socket(fileno=descriptors[0]) if descriptors else None
