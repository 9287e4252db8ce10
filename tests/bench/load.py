"""Answers a second of one question: asked by wrk where it is installed, else by asker.py, which is slower than our gateway."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.bench import asker
from tests.bench.processes import ROOT, processor_seconds

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


@dataclass
class Load:
    """One question to servers that are asked at once, all connections together; and what its answers have cost so far, on the servers
    and in the load client, which has the same cores."""

    urls: Sequence[str]
    accept: str
    token: str
    seconds: float
    connections: int = 16
    answers: int = 0
    served: float = 0.0
    asking: float = 0.0

    def rate(self) -> float:
        """Answers a second. Raises as `ask`."""
        before = self._spent()
        share = max(1, self.connections // len(self.urls))
        with ThreadPoolExecutor(len(self.urls)) as clients:
            asked = [
                clients.submit(ask, url, self.accept, self.token, connections=share, seconds=self.seconds)
                for url in self.urls
            ]
        told = [one.result() for one in asked]
        served, asking = (now - then for now, then in zip(self._spent(), before, strict=True))
        self.served, self.asking = self.served + served, self.asking + asking
        self.answers += sum(one.answers for one in told)
        return sum(one.rate for one in told)

    def cost(self) -> float:
        """Milliseconds of processor that an answer takes on its server."""
        return self.served * 1e3 / self.answers

    @property
    def share(self) -> float:
        """How much of all that was spent the load client took."""
        return self.asking / (self.asking + self.served)

    def _spent(self) -> tuple[float, float]:
        ports = {urlsplit(url).port or 0 for url in self.urls}
        client = resource.getrusage(resource.RUSAGE_CHILDREN)
        return sum(map(processor_seconds, ports)), client.ru_utime + client.ru_stime
