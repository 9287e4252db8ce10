"""`make soak`: mixed load for minutes, callers who leave, nodes that fall ill, a Redis that dies; and what is left of it.

SOAK_MINUTES (20) is how long. Exit code 1 when a request ended as no fault explains, memory was not flat after the
warm-up, or something was left behind. Everything is written to build/soak.json.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests import peers  # noqa: E402 - a script's own directory is not the project's
from tests.bench.processes import Server, gateway  # noqa: E402
from tests.soak.caller import Asked  # noqa: E402
from tests.soak.stage import Stage, stage  # noqa: E402
from tests.soak.verdict import Sample, Verdict, lines, verdict  # noqa: E402

PROCESSES, THREADS = 3, 5
RESTS = 25.0
"""Seconds after the last request: connections and associations that are kept have been given up by then."""
# Short lives, so that every part of the cache and of the spool is at work.
SETTINGS = {
    "find_ttl": 2, "location_ttl": 5, "metadata_ttl": 10, "spool_seconds": 5, "spool_bytes": 64 * 1024**2,
    "search_deadline": 10, "log_level": "ERROR",
}  # fmt: skip


def main() -> int:
    minutes = float(os.environ.get("SOAK_MINUTES", "20"))
    with (
        peers.home() as folder,
        stage(folder) as scene,
        gateway(scene.nodes, redis_url=scene.redis.url, **SETTINGS) as server,
    ):
        _warm(server)
        before = sample(server)
        asked, samples = soak(scene, server, minutes * 60)
        time.sleep(RESTS)
        made = verdict(asked, scene.spells, samples, before, sample(server))
        sockets = open_sockets(server, scene)
        log = (Path(f"/proc/{server.process.pid}/cwd") / "log").read_text()
    print(
        f"{minutes:g} minutes, {len(asked)} requests, {len(scene.spells)} faults, {scene.redis.restarts} restarts of Redis"
    )
    print("\n".join(lines(made)))
    print("sockets open at the end: " + ", ".join(f"{what} {count}" for what, count in sockets.items()))
    _write(minutes, made, scene, samples, log)
    return 0 if made.is_good else 1


def _warm(server: Server) -> None:
    """What is made once and kept is no leftover."""
    for path in ("/dicom-web/studies?limit=1", "/fhir/ImagingStudy?_count=1", "/nodes"):
        urllib.request.urlopen(server.url + path, timeout=30).read()
    time.sleep(6)


def soak(scene: Stage, server: Server, seconds: float) -> tuple[list[Asked], list[Sample]]:
    ended = threading.Event()
    players = [threading.Thread(target=work, args=(ended,)) for work in (scene.play, scene.restart_redis)]
    samples: list[Sample] = []
    with ExitStack() as stack:
        callers = [stack.enter_context(_callers(server, scene, seconds, seed)) for seed in range(PROCESSES)]
        for player in players:
            player.start()
        try:
            while any(caller.poll() is None for caller, _ in callers) and len(samples) < seconds + 120:
                time.sleep(1)
                samples.append(sample(server))
        finally:
            ended.set()
            for player in players:
                player.join()
        asked = [Asked(**json.loads(line)) for _, output in callers for line in output.read_text().splitlines()]
    return asked, samples


@contextmanager
def _callers(server: Server, scene: Stage, seconds: float, seed: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    with peers.home() as home:
        output = home / "requests"
        command = [sys.executable, "-m", "tests.soak.caller", server.url, json.dumps(scene.studies), str(seconds)]
        with output.open("wb") as file:
            process = subprocess.Popen([*command, str(THREADS), str(seed)], cwd=ROOT, stdout=file)
        try:
            yield process, output
        finally:
            process.kill()
            process.wait()


def sample(server: Server) -> Sample:
    """The gateway's processes from outside, and what it says of itself on /metrics."""
    process = psutil.Process(server.process.pid)
    family = [process, *process.children(recursive=True)]
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
        said = answer.read().decode()
    lags = _values(said, r"gateway_(?:event_)?loop_lag\w*(?:max|worst)\w*")
    return Sample(
        time.time(),
        sum(one.memory_info().rss for one in family),
        sum(one.num_fds() for one in family),
        sum(one.num_threads() for one in family),
        int(sum(_values(said, "gateway_tasks"))),
        int(sum(_values(said, "gateway_node_in_flight"))),
        max(lags, default=None),
    )


def open_sockets(server: Server, scene: Stage) -> dict[str, int]:
    """By whom they lead to and in what state they are, for a leftover that is to be looked for."""
    known = {proxy.port: name for name, proxy in scene.proxies.items()}
    known |= {int(scene.redis.url.rpartition(":")[2].partition("/")[0]): "redis"}
    found = psutil.Process(server.process.pid).net_connections("tcp")
    names = [
        known.get(one.raddr.port, "caller" if one.laddr.port == server.port else "other") for one in found if one.raddr
    ]
    states = [one.status for one in found if one.raddr]
    return dict(Counter(f"{name} {state}" for name, state in zip(names, states, strict=True)))


def _values(metrics: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", metrics, re.MULTILINE)]


def _write(minutes: float, made: Verdict, scene: Stage, samples: list[Sample], log: str) -> None:
    path = ROOT / "build" / "soak.json"
    path.parent.mkdir(exist_ok=True)
    told = {
        "minutes": minutes,
        "good": made.is_good,
        **asdict(made),
        "faults": [asdict(spell) for spell in scene.spells],
        "redis_restarts": scene.redis.restarts,
        "samples": [asdict(one) for one in samples],
        "faults_of_ours": [line for line in log.splitlines() if '"fault"' in line or "Traceback" in line],
    }
    path.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    sys.exit(main())
