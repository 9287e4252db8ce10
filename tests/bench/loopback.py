"""So many bytes to whoever asks, from memory, with nothing in between: what loopback itself can carry. `loopback.py SIZE PORT`."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading

_PIECE = bytes(1 << 20)


def answer(connection: socket.socket, size: int) -> None:
    with connection, contextlib.suppress(ConnectionError):
        received = b""
        while not received.endswith(b"\r\n\r\n"):
            more = connection.recv(65536)
            if not more:
                return  # a probe that only connects
            received += more
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode())
        left = size
        while left:
            left -= connection.send(_PIECE[: min(left, len(_PIECE))])


def main(size: int, port: int) -> None:
    with socket.create_server(("127.0.0.1", port), backlog=64) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer, args=(connection, size), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
