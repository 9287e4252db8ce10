"""A client that wants bytes and keeps none, in a process of its own: `drain.py URL ACCEPT COPIES TOKEN`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

_BUFFER = 1 << 20
_TIMEOUT = 120


@dataclass(frozen=True)
class Drained:
    """`seconds` from the first request sent to the last byte read, all copies together; `bytes` of all bodies.

    `statuses` are those of the answers that were not whole: a 200 was cut short, 0 said nothing.
    """

    bytes: int
    seconds: float
    whole: int
    statuses: list[int]


def run(url: str, accept: str, copies: int = 1, token: str = "") -> Drained:
    """Reads a URL, so many times at once, in another process. Raises RuntimeError unless every body came whole."""
    command = [sys.executable, __file__, url, accept, str(copies), token]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT + 10).stdout
    drained = Drained(**json.loads(told))
    if drained.whole != copies:
        raise RuntimeError(f"{copies - drained.whole} of {copies} answers of {url} were not whole: {drained.statuses}")
    return drained


def read(url: str, accept: str, token: str = "") -> tuple[int, bool]:
    """(bytes of the body, whether it was a 2xx that came to its proper end)."""
    size, is_whole, _ = ask(url, accept, token)
    return size, is_whole


def ask(url: str, accept: str, token: str = "") -> tuple[int, bool, int]:
    """As `read`, and the status."""
    address = urlsplit(url)
    path = address.path + (f"?{address.query}" if address.query else "")
    lines = [f"GET {path} HTTP/1.1", f"Host: {address.netloc}", f"Accept: {accept}", "Connection: close"]
    lines += [f"Authorization: Bearer {token}"] if token else []
    with socket.create_connection((address.hostname, address.port), _TIMEOUT) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return _body(connection)


def _body(connection: socket.socket) -> tuple[int, bool, int]:
    buffer, size, end = bytearray(_BUFFER), 0, b""
    received = b""
    while b"\r\n\r\n" not in received:
        more = connection.recv(65536)
        if not more:
            return 0, False, 0
        received += more
    head, _, begun = received.partition(b"\r\n\r\n")
    size, end = len(begun), begun[-5:]
    while count := connection.recv_into(buffer):
        size += count
        end = (end + bytes(buffer[max(0, count - 5) : count]))[-5:]
    status = int(head[9:12])
    return size, status // 100 == 2 and _is_whole(head, size, end), status


def _is_whole(head: bytes, size: int, end: bytes) -> bool:
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if headers.get(b"transfer-encoding") == b"chunked":
        return end == b"0\r\n\r\n"
    if b"content-length" in headers:
        return int(headers[b"content-length"]) == size
    return end.endswith(b"--\r\n")  # Orthanc frames several parts by nothing but the closing delimiter


def main(url: str, accept: str, copies: int, token: str) -> None:
    results: list[tuple[int, bool, int]] = []
    threads = [threading.Thread(target=lambda: results.append(ask(url, accept, token))) for _ in range(copies)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    statuses = [status for _, is_whole, status in results if not is_whole]
    whole = sum(is_whole for _, is_whole, _ in results)
    print(json.dumps(asdict(Drained(sum(size for size, _, _ in results), seconds, whole, statuses))))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
