"""Instances passed through: WADO-RS and C-GET against Orthanc direct, a byte pump, a bare C-GET and loopback itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.simulators.bulk import ct_series, large_multiframe
from tests import peers
from tests.bench import drain, getter, peer_server
from tests.bench.measuring import Bar, Bench, Measure, Side, say
from tests.bench.processes import Server, loopback, node, pump, simulator

STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
MOST_MEMORY = 64.0
_PUMP = Bar("at least", 0.75)
_DIRECT = {1: Bar("at least", 0.5), 8: Bar("at least", 0.2)}
_BARE = Bar("at least", 0.85)


@dataclass(frozen=True)
class Studies:
    """A directory for the nodes, and the StudyInstanceUIDs of what it holds."""

    directory: Path
    multiframe: str
    series: str

    @property
    def files(self) -> list[Path]:
        return sorted(self.directory.rglob("*.dcm"))


@contextmanager
def studies() -> Iterator[Studies]:
    with peers.home() as home:
        multiframe, series = large_multiframe(home / "multiframe.dcm", 200), ct_series(home / "series", 400)
        yield Studies(home, multiframe, series)


def run(bench: Bench) -> None:
    say("streaming")
    with studies() as held:
        with bench.attempting("WADO-RS"):
            _wado(bench, held)
        with bench.attempting("WADO-RS beside tiny-pacs"):
            _beside(bench, held)
        with bench.attempting("C-GET"):
            _dimse(bench, held)


def rate(url: str, token: str, copies: int = 1) -> Measure:
    """10^6 bytes a second of all copies together."""

    def measure() -> float:
        drained = drain.run(url, STORED, copies, token)
        return drained.bytes / drained.seconds / 1e6

    return measure


def _wado(bench: Bench, held: Studies) -> None:
    """Over Orthanc, against Orthanc itself, the pump in front of it, and loopback; over a directory, printed."""
    token = bench.identity.token
    with ExitStack() as stack:
        orthanc = stack.enter_context(peers.orthanc(held.files))
        pumped = stack.enter_context(pump(orthanc.http))
        bare = stack.enter_context(loopback(200_000_000))
        over_web = stack.enter_context(bench.gateway([_node("orthanc", "dicomweb", {"url": orthanc.dicomweb})]))
        over_files = stack.enter_context(bench.gateway([_node("files", "files", {"directory": str(held.directory)})]))
        for what, study, is_judged in (
            ("WADO-RS 200 MB", held.multiframe, True),
            ("WADO-RS 400 x 0.5 MB", held.series, False),
        ):
            for copies in (1, 8):
                path = f"/dicom-web/studies/{study}"
                ours = [Side("gateway (dicomweb)", rate(over_web.url + path, token, copies), over_web)]
                theirs = [
                    Side("Orthanc", rate(orthanc.http + path, "", copies), bar=_DIRECT[copies] if is_judged else None),
                    Side("pump", rate(pumped.url + path, "", copies), bar=_PUMP if is_judged else None),
                ]
                if is_judged:
                    theirs.append(Side("loopback copy", rate(bare.url, "", copies)))
                case = f"{what}, {copies} at once"
                bench.run(case, "MB/s", ours, theirs)
                if is_judged:
                    _memory(bench, case, ours[0].name)
        files = Side(
            "gateway (files)", rate(f"{over_files.url}/dicom-web/studies/{held.multiframe}", token), over_files
        )
        direct = Side("Orthanc", rate(f"{orthanc.http}/dicom-web/studies/{held.multiframe}", ""))
        bench.run("WADO-RS 200 MB, 1 at once", "MB/s", [files], [direct])


def _memory(bench: Bench, case: str, name: str) -> None:
    growth = bench.results[f"{case}: {name} / Orthanc"].growth or 0.0
    bench.count(f"{case}: memory growth", "MB", growth, MOST_MEMORY, Bar("below", MOST_MEMORY, "MB"))


def _beside(bench: Bench, held: Studies) -> None:
    """tiny-pacs from PyPI, as a node and direct."""
    with peer_server.tiny_pacs([held.directory / "multiframe.dcm"]) as peer:
        if peer is None:
            return
        with bench.gateway([_node("tiny-pacs", "dicomweb", {"url": peer.dicomweb})]) as served:
            path = f"studies/{held.multiframe}"
            mine = Side("gateway (dicomweb)", rate(f"{served.url}/dicom-web/{path}", bench.identity.token), served)
            bench.run(
                "WADO-RS 200 MB, 1 at once", "MB/s", [mine], [Side("tiny-pacs", rate(f"{peer.dicomweb}/{path}", ""))]
            )


def _dimse(bench: Bench, held: Studies) -> None:
    """C-GET of the simulator and of Orthanc, by the gateway and by bare pynetdicom."""
    with ExitStack() as stack:
        simulated = stack.enter_context(simulator("dimse", held.directory))
        orthanc = stack.enter_context(peers.orthanc(held.files))
        for name, port, title in (
            ("simulator", simulated.port, "SIMULATOR"),
            ("Orthanc", orthanc.port, orthanc.ae_title),
        ):
            connection = {"host": "127.0.0.1", "port": port, "called_ae_title": title}
            with bench.gateway([_node("pacs", "dimse", connection)]) as served:
                for what, study in (("200 MB", held.multiframe), ("400 x 0.5 MB", held.series)):
                    _c_get(bench, f"C-GET {what} from {name}", served, getter.Target(port, title, study))


def _c_get(bench: Bench, case: str, served: Server, target: getter.Target) -> None:
    url = f"{served.url}/dicom-web/studies/{target.study}"
    ours = Side("gateway (dimse)", rate(url, bench.identity.token), served)
    bench.run(case, "MB/s", [ours], [Side("bare C-GET", lambda: getter.run(target).rate, bar=_BARE)])


def _node(identifier: str, adapter: str, connection: dict[str, object]) -> dict[str, object]:
    patient = {"search_deadline": 60, "first_byte_deadline": 60, "idle_deadline": 60}  # eight at once share two cores
    return node(identifier, adapter, connection, **patient)
