"""A client that asks one question again and again on several connections: `asker.py URL ACCEPT TOKEN CONNECTIONS SECONDS`."""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from urllib.parse import urlsplit


def run(url: str, accept: str, token: str, connections: int, seconds: float) -> tuple[int, float]:
    """(answers, seconds). Raises RuntimeError when one is not a 200."""
    command = [sys.executable, __file__, url, accept, token, str(connections), str(seconds)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60).stdout)
    if told["refused"]:
        raise RuntimeError(f"{told['refused']} of the answers were no 200")
    return told["answers"], told["seconds"]


@dataclass
class Connection:
    """One connection with one question under way."""

    socket: socket.socket
    question: bytes
    received: bytes = b""
    answers: int = 0
    refused: int = 0

    def ask(self) -> None:
        self.received = b""
        self.socket.sendall(self.question)

    def read(self) -> bool:
        """Takes what has come; whether that completes the answer. Both servers say its length."""
        more = self.socket.recv(1 << 18)
        if not more:
            raise ConnectionError("the server closed the connection")
        self.received += more
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return False
        self.answers += 1
        self.refused += head[9:12] != b"200"
        return True


def _length(head: bytes) -> int:
    lines = (line.lower().partition(b": ") for line in head.split(b"\r\n"))
    return next(int(value) for name, _, value in lines if name == b"content-length")


def main(url: str, accept: str, token: str, connections: int, seconds: float) -> None:
    address = urlsplit(url)
    target = f"{address.path}?{address.query}"
    headers = {"Host": address.netloc, "Accept": accept, "Authorization": f"Bearer {token}"}
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    question = "\r\n".join(lines).encode()
    selector = selectors.DefaultSelector()
    opened = [
        Connection(socket.create_connection((address.hostname, address.port), 30), question) for _ in range(connections)
    ]
    began = time.perf_counter()
    for one in opened:
        selector.register(one.socket, selectors.EVENT_READ, one)
        one.ask()
    while (elapsed := time.perf_counter() - began) < seconds:
        for key, _ in selector.select(1):
            if key.data.read():
                key.data.ask()
    counts = {"answers": sum(one.answers for one in opened), "refused": sum(one.refused for one in opened)}
    print(json.dumps({**counts, "seconds": elapsed}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
