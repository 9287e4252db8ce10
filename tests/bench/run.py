"""`make bench`: the gateway beside Orthanc direct, a byte pump and a bare C-GET; ratios as a table and in build/bench.json.

Both sides of a ratio are measured in turn in one run; a number is the median of the rounds. It only prints: how fast is
fast enough depends on the machine. What must hold anywhere, the memory, is held by tests/streaming.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also starts as a script

from gateway.simulators.bulk import ct_series, large_multiframe
from tests import peers
from tests.bench import asker, drain, getter
from tests.bench.processes import ROOT, Memory, Server, gateway, node, pump, simulator

STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
JSON = "application/dicom+json"
ROUNDS, FEWEST = 5, 3
BUDGET = 20.0
"""Seconds a case may take, unless it has had its fewest rounds."""
_STUDIES = 101

Measure = Callable[[], float]


@dataclass(frozen=True)
class Result:
    """Medians; `spread` is the lowest and highest ratio of a round; `growth` the gateway's memory in 10^6 bytes."""

    ours: float
    theirs: float
    ratio: float
    unit: str
    spread: tuple[float, float]
    rounds: int
    growth: float


@dataclass(frozen=True)
class Side:
    """One way to get the same thing: `process` is the gateway whose memory is looked at, if it is ours."""

    name: str
    measure: Measure
    process: Server | None = None


@dataclass
class Bench:
    """Runs cases and keeps their results, by name."""

    results: dict[str, Result] = field(default_factory=dict)

    def run(self, case: str, unit: str, ours: Sequence[Side], theirs: Sequence[Side]) -> None:
        """Each of ours against each of theirs, all of them in turn in every round. The first, unmeasured, warms up."""
        sides = [*ours, *theirs]
        for side in sides:
            side.measure()
        taken: dict[str, list[float]] = {side.name: [] for side in sides}
        growth: dict[str, float] = {side.name: 0.0 for side in sides}
        began = time.monotonic()
        for number in range(ROUNDS):
            if number >= FEWEST and time.monotonic() - began > BUDGET:
                break
            for side in sides:
                with _watched(side, growth):
                    taken[side.name].append(side.measure())
        for mine in ours:
            for other in theirs:
                self._keep(
                    f"{case}: {mine.name} / {other.name}", unit, taken[mine.name], taken[other.name], growth[mine.name]
                )

    def _keep(self, name: str, unit: str, ours: list[float], theirs: list[float], growth: float) -> None:
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        mine, other = statistics.median(ours), statistics.median(theirs)
        spread = (round(min(ratios), 2), round(max(ratios), 2))
        result = Result(
            round(mine, 1), round(other, 1), round(mine / other, 2), unit, spread, len(ours), round(growth, 1)
        )
        self.results[name] = result
        print(f"{name}: {result.ours} / {result.theirs} {unit} = {result.ratio}", file=sys.stderr, flush=True)


@contextmanager
def _watched(side: Side, growth: dict[str, float]) -> Iterator[None]:
    if side.process is None:
        yield
        return
    with Memory(side.process.process) as memory:
        yield
    growth[side.name] = max(growth[side.name], memory.growth)


@dataclass(frozen=True)
class Studies:
    """A directory for the nodes, and the StudyInstanceUIDs of what it holds."""

    directory: Path
    multiframe: str
    series: str


@contextmanager
def studies() -> Iterator[Studies]:
    with peers.home() as home:
        multiframe, series = large_multiframe(home / "multiframe.dcm", 200), ct_series(home / "series", 400)
        yield Studies(home, multiframe, series)


def rate(root: str, study: str, copies: int) -> Measure:
    """10^6 bytes a second of all copies together, by WADO-RS."""

    def measure() -> float:
        drained = drain.run(f"{root}/dicom-web/studies/{study}", STORED, copies)
        return drained.bytes / drained.seconds / 1e6

    return measure


def wado(bench: Bench, held: Studies) -> None:
    """WADO-RS over a directory, and over Orthanc, against Orthanc itself and against the pump in front of it."""
    with ExitStack() as stack:
        orthanc = stack.enter_context(peers.orthanc(sorted(held.directory.rglob("*.dcm"))))
        pumped = stack.enter_context(pump(orthanc.http))
        over_web = stack.enter_context(
            gateway([node("orthanc", "dicomweb", {"url": orthanc.dicomweb}, search_deadline=60)])
        )
        over_files = stack.enter_context(
            gateway([node("files", "files", {"directory": str(held.directory)}, search_deadline=60)])
        )
        for what, study in (("WADO-RS 200 MB", held.multiframe), ("WADO-RS 400 x 0.5 MB", held.series)):
            for copies in (1, 8):
                ours = [
                    Side("gateway (dicomweb)", rate(over_web.url, study, copies), over_web),
                    Side("gateway (files)", rate(over_files.url, study, copies), over_files),
                ]
                theirs = [
                    Side("Orthanc", rate(orthanc.http, study, copies)),
                    Side("pump", rate(pumped.url, study, copies)),
                ]
                bench.run(f"{what}, {copies} at once", "MB/s", ours, theirs)


def dimse(bench: Bench, held: Studies) -> None:
    """C-GET of the simulator and of Orthanc, by the gateway and by bare pynetdicom."""
    with ExitStack() as stack:
        simulated = stack.enter_context(simulator("dimse", held.directory))
        orthanc = stack.enter_context(peers.orthanc(sorted(held.directory.rglob("*.dcm"))))
        for name, port, title in (
            ("simulator", simulated.port, "SIMULATOR"),
            ("Orthanc", orthanc.port, orthanc.ae_title),
        ):
            connection = {"host": "127.0.0.1", "port": port, "called_ae_title": title}
            with gateway([node("pacs", "dimse", connection, search_deadline=60)]) as served:
                for what, study in (("200 MB", held.multiframe), ("400 x 0.5 MB", held.series)):
                    ours = [Side("gateway (dimse)", rate(served.url, study, 1), served)]
                    theirs = [
                        Side("bare C-GET", lambda port=port, title=title, study=study: getter.run(port, title, study))
                    ]
                    bench.run(f"C-GET {what} from {name}", "MB/s", ours, theirs)


def qido(bench: Bench) -> None:
    """Cached look-ups on 16 connections, against Orthanc for the same studies."""
    with peers.home() as home, ExitStack() as stack:
        uids = [ct_series(home / str(n), 1, rows=16, columns=16, key=f"study-{n}") for n in range(_STUDIES)]
        orthanc = stack.enter_context(peers.orthanc(sorted(home.rglob("*.dcm"))))
        served = stack.enter_context(gateway([node("orthanc", "dicomweb", {"url": orthanc.dicomweb})], find_ttl=600))
        for what, query in (("one study", f"StudyInstanceUID={uids[0]}"), (f"{_STUDIES} studies", f"limit={_STUDIES}")):
            ours, theirs = (
                Side(name, lambda root=root, query=query: asker.run(f"{root}/dicom-web/studies?{query}", JSON), server)
                for name, root, server in (("gateway (cached)", served.url, served), ("Orthanc", orthanc.http, None))
            )
            bench.run(f"QIDO-RS {what}", "requests/s", [ours], [theirs])


def table(results: dict[str, Result]) -> Table:
    drawn = Table("case", "ours", "theirs", "unit", "ratio", "of a round", "rounds", "memory growth, MB")
    for name, one in results.items():
        low, high = one.spread
        drawn.add_row(
            name,
            f"{one.ours:g}",
            f"{one.theirs:g}",
            one.unit,
            f"{one.ratio:.2f}",
            f"{low:g} - {high:g}",
            str(one.rounds),
            f"{one.growth:.0f}",
        )
    return drawn


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whatever ends it, the servers it started end with it
    bench = Bench()
    with studies() as held:
        wado(bench, held)
        dimse(bench, held)
    qido(bench)
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    (build / "bench.json").write_text(json.dumps({name: asdict(one) for name, one in bench.results.items()}, indent=2))
    Console(width=max(160, Console().width)).print(table(bench.results))


if __name__ == "__main__":
    main()
