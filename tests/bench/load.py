"""Answers a second of one question: asked by wrk where it is installed, else by asker.py, which is slower than our gateway."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.bench import asker
from tests.bench.processes import ROOT

_RATE = re.compile(r"^Requests/sec:\s+([\d.]+)", re.MULTILINE)
_FAULTS = re.compile(r"^\s*(Non-2xx or 3xx responses: .*|Socket errors: .*)", re.MULTILINE)


def client() -> str:
    """The name of the load client; wrk is installed where the machine allows it."""
    if shutil.which("wrk") is None:
        subprocess.run([str(ROOT / ".ci" / "apt"), "wrk"], check=False, timeout=300)
    return "wrk" if shutil.which("wrk") else "asker.py"


def rate(url: str, accept: str, token: str, *, connections: int = 16, seconds: float = 2.0) -> float:
    """Raises RuntimeError when an answer is not a success."""
    if shutil.which("wrk") is None:
        return asker.run(url, accept, token, connections, seconds)
    headers = ["-H", f"Accept: {accept}", "-H", f"Authorization: Bearer {token}"]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", *headers, url]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60).stdout
    fault, found = _FAULTS.search(told), _RATE.search(told)
    if fault or not found:
        raise RuntimeError(f"wrk: {fault.group(1) if fault else told}")
    return float(found.group(1))


def rates(urls: Sequence[str], accept: str, token: str, *, connections: int = 16, seconds: float = 2.0) -> float:
    """Of several servers asked at once, all connections together."""
    share = max(1, connections // len(urls))
    with ThreadPoolExecutor(len(urls)) as clients:
        asked = [clients.submit(rate, url, accept, token, connections=share, seconds=seconds) for url in urls]
        return sum(one.result() for one in asked)
