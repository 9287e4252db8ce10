"""Answers a second of one question: asked by wrk where it is installed, else by asker.py, which is slower than our gateway."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.bench import asker
from tests.bench.processes import ROOT

_DONE = re.compile(r"^\s*(\d+) requests in ([\d.]+)(ms|s|m),", re.MULTILINE)
_FAULTS = re.compile(r"^\s*(Non-2xx or 3xx responses: .*|Socket errors: .*)", re.MULTILINE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0}
_FEWEST, _LONGEST = 8, 16.0
"""Answers that a measurement needs; it is made longer until it has them, or is so many seconds long."""


@dataclass(frozen=True)
class Asked:
    answers: int
    seconds: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


def client() -> str:
    """The name of the load client; wrk is installed where the machine allows it."""
    if shutil.which("wrk") is None:
        subprocess.run([str(ROOT / ".ci" / "apt"), "wrk"], check=False, timeout=300)
    return "wrk" if shutil.which("wrk") else "asker.py"


def ask(url: str, accept: str, token: str, *, connections: int = 16, seconds: float = 2.0) -> Asked:
    """Raises RuntimeError when an answer is not a success, or none comes."""
    run = _by_wrk if shutil.which("wrk") else asker.run
    while (asked := Asked(*run(url, accept, token, connections, seconds))).answers < _FEWEST and seconds < _LONGEST:
        seconds = min(_LONGEST, seconds * 4)
    if not asked.answers:
        raise RuntimeError(f"no answer within {seconds:g} s")
    return asked


def _by_wrk(url: str, accept: str, token: str, connections: int, seconds: float) -> tuple[int, float]:
    headers = ["-H", f"Accept: {accept}", "-H", f"Authorization: Bearer {token}"]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "60s", *headers, url]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60).stdout
    fault, done = _FAULTS.search(told), _DONE.search(told)
    if fault or not done:
        raise RuntimeError(f"wrk: {fault.group(1) if fault else told}")
    return int(done.group(1)), float(done.group(2)) * _SECONDS[done.group(3)]


def rates(urls: Sequence[str], accept: str, token: str, *, connections: int = 16, seconds: float = 2.0) -> float:
    """Answers a second of several servers asked at once, all connections together."""
    share = max(1, connections // len(urls))
    with ThreadPoolExecutor(len(urls)) as clients:
        asked = [clients.submit(ask, url, accept, token, connections=share, seconds=seconds) for url in urls]
        return sum(one.result().rate for one in asked)
