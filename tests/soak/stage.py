"""Where a soak plays: nodes in processes of their own behind fault proxies, a Redis that dies, and the faults as time passes."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import peers
from tests.bench.processes import ROOT
from tests.faults.proxy import Fault, FaultProxy, Kind
from tests.faults.ward import made

PER_NODE, SHARED = 20, 10
DEADLINES = {"connect_deadline": 3.0, "search_deadline": 3.0, "first_byte_deadline": 3.0, "idle_deadline": 3.0}
_BOTH: tuple[Kind, ...] = ("refuse", "black hole", "freeze", "slow start", "slow drip", "reset")
KINDS: dict[str, tuple[Kind, ...]] = {
    "http": (*_BOTH, "short length", "no last chunk", "close delimited", "flood"),
    "dimse": (*_BOTH, "cut pdu", "abort", "reject"),
}


@dataclass(frozen=True)
class Spell:
    """A node was not well from `began` to `ended` (seconds of the epoch)."""

    node: str
    fault: str
    began: float
    ended: float


@dataclass
class Stage:
    """`nodes` are [[node]] tables, `studies` the UIDs that each has ('' those that are also at a node without faults)."""

    nodes: list[dict[str, Any]]
    studies: dict[str, list[str]]
    proxies: dict[str, FaultProxy]
    redis: Redis
    spells: list[Spell] = field(default_factory=list)

    def play(self, ended: threading.Event, seed: int = 1) -> None:
        """One fault after the other, now and then two at once, with pauses in which all is well.

        First of all, once the load is there, every web server pours, which takes the most memory of all: that belongs to
        the warm-up.
        """
        chance = random.Random(seed)
        ended.wait(10)
        self._at_once([(name, "flood") for name in self.proxies if self.proxies[name].speaks == "http"], 0.5, ended)
        while not ended.wait(chance.uniform(2, 8)):
            names = chance.sample(sorted(self.proxies), chance.choice((1, 1, 2)))
            self._at_once(
                [(name, chance.choice(KINDS[self.proxies[name].speaks])) for name in names], chance.random(), ended
            )

    def _at_once(self, faults: list[tuple[str, Kind]], seed: float, ended: threading.Event) -> None:
        threads = [threading.Thread(target=self._spell, args=(*fault, seed, ended)) for fault in faults]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _spell(self, name: str, kind: Kind, seed: float, ended: threading.Event) -> None:
        chance, proxy, began = random.Random(seed), self.proxies[name], time.time()
        with proxy.by(Fault(kind, piece=16, delay=0.1 if kind == "slow drip" else 10.0, flood=100_000_000)):
            ended.wait(chance.uniform(3, 8))
        self.spells.append(Spell(name, kind, began, time.time()))

    def restart_redis(self, ended: threading.Event, seed: int = 2) -> None:
        chance = random.Random(seed)
        while not ended.wait(chance.uniform(15, 40)):
            self.redis.kill()
            ended.wait(chance.uniform(0.5, 3))
            self.redis.start()


class Redis:
    """Always on the same port."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.restarts = -1
        self._now: peers.Redis | None = None
        self.start()

    def start(self) -> None:
        self._now = self._stack.enter_context(peers.redis(self._now.port if self._now else 0))
        self.restarts += 1

    def kill(self) -> None:
        assert self._now is not None
        self._now.kill()

    @property
    def url(self) -> str:
        assert self._now is not None
        return self._now.url


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Two DICOMweb nodes, a PACS and a FHIR server, all of which fall ill; and a directory that does not."""
    shared = [f"1.2.826.9.0.{number}" for number in range(SHARED)]
    with ExitStack() as stack:
        nodes: list[dict[str, Any]] = []
        studies, proxies = {"": shared}, {}
        for index, name in enumerate(("web", "cloud", "pacs", "fhir"), start=1):
            studies[name] = [f"1.2.826.9.{index}.{number}" for number in range(PER_NODE)]
            # What the FHIR server has carries another issuer than the others' copies, and so stays its own.
            directory = _fill(folder / name, [*studies[name], *(shared if name != "fhir" else [])])
            speaks = "dimse" if name == "pacs" else "http"
            protocol = {"pacs": "dimse", "fhir": "dicomweb"}.get(name, "dicomweb")
            proxies[name] = _behind(stack, protocol, directory, speaks)
            nodes.append(_table(name, proxies[name], stack, directory))
        disk = _fill(folder / "disk", shared)
        nodes.append({"id": "disk", "name": "disk", "adapter": "files", "connection": {"directory": str(disk)}})
        for node in nodes:
            node["patient_id_issuer"] = "SOAK"
        yield Stage(nodes, studies, proxies, Redis(stack))


def _table(name: str, proxy: FaultProxy, stack: ExitStack, directory: Path) -> dict[str, Any]:
    address = f"http://127.0.0.1:{proxy.port}/dicom-web"
    node: dict[str, Any] = {
        "id": name,
        "name": name,
        "adapter": "dicomweb",
        "connection": {"url": address},
        **DEADLINES,
    }
    if name == "pacs":
        pacs = {"host": "127.0.0.1", "port": proxy.port, "called_ae_title": "SIMULATOR", "retrieve": "get"}
        node |= {"adapter": "dimse", "connection": pacs}
    elif name == "fhir":
        # The proxy is before its pixels: a FHIR server's own answers hold addresses that a proxy would have to rewrite.
        options = ["--with", f"dicomweb_url={address}", "--with", "page_size=10"]
        url = f"http://127.0.0.1:{_peer(stack, 'fhir', directory, *options)}/fhir"
        node |= {"adapter": "fhir", "connection": {"url": url}, "allow": [address]}
    return node


def _behind(stack: ExitStack, protocol: str, directory: Path, speaks: Any) -> FaultProxy:
    return stack.enter_context(FaultProxy(_peer(stack, protocol, directory), speaks))


def _peer(stack: ExitStack, protocol: str, directory: Path, *options: str) -> int:
    port, home = peers.free_port(), stack.enter_context(peers.home())
    command = [
        sys.executable,
        "-m",
        "gateway",
        "simulate",
        protocol,
        "--directory",
        str(directory),
        "--port",
        str(port),
    ]
    stack.enter_context(peers.running([*command, *options], home, port, PYTHONPATH=str(ROOT)))
    return port


def _fill(directory: Path, studies: list[str]) -> Path:
    directory.mkdir(parents=True)
    for number, study in enumerate(studies):
        for instance in (1, 2):
            day = f"202401{number % 28 + 1:02}"
            made(study, f"P{study}", directory / f"{study}.{instance}.dcm", instance, day)
    return directory
