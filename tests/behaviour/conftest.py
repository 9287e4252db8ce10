"""Each adapter on its simulator and on every real peer, started when first asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.simulators.dicomweb import DicomwebSimulator
from gateway.simulators.dimse import DimseSimulator
from gateway.simulators.fhir import FhirOptions, FhirSimulator
from tests.behaviour.subjects import FHIR, REAL, Subject, capable, over_dicomweb, over_dimse, over_fhir, over_files
from tests.shelf import Shelf

PIXELS = "http://127.0.0.1:9/dicom-web"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A case runs on every subject whose adapter has the capabilities that it is marked with, and so is never skipped."""
    if "subject" in metafunc.fixturenames:
        names = capable(getattr(metafunc.function, "capabilities", ()))
        params = [pytest.param(name, marks=[pytest.mark.interop] if name in REAL else []) for name in names]
        metafunc.parametrize("subject", params, indirect=True)


@pytest.fixture(scope="session")
def own_copy(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A copy of the shelf that a peer may store into."""
    return lambda: Path(shutil.copytree(shelf.directory, tmp_path_factory.mktemp("copy") / "files"))


@pytest.fixture(scope="session")
def subjects(request: pytest.FixtureRequest, shelf: Shelf, own_copy: Callable[[], Path]) -> Iterator[Any]:
    """subjects(name): its peer is started when first asked for."""
    simulators: list[Any] = []
    known: dict[str, Subject] = {}

    def start(simulator: Any) -> Any:
        simulator.start()
        simulators.append(simulator)
        return simulator

    def build(name: str) -> Subject:
        kind, _, peer = name.partition("-")
        if kind == "files":
            return Subject(name, over_files(own_copy()), keeps_bytes=True)
        if peer == "simulator" and kind == "dicomweb":
            web = start(DicomwebSimulator(own_copy()))
            return Subject(name, over_dicomweb(web.url), keeps_bytes=True, port=web.port)
        if peer == "simulator":
            pacs = start(DimseSimulator(own_copy()))
            return Subject(name, over_dimse(pacs.port, pacs.ae_title), keeps_bytes=True, port=pacs.port)
        if peer.startswith("simulator-"):
            return fhir(name, peer.removeprefix("simulator-"))
        if peer == "sekmet":
            url = request.getfixturevalue("sekmet_peer")
            return Subject(
                name,
                over_fhir(url, "R4", request.getfixturevalue("orthanc_peer").dicomweb),
                "fhir-r4",
                port=int(url.split(":")[2].split("/")[0]),
            )
        real = request.getfixturevalue("dcmqrscp_peer" if peer == "dcmqrscp" else "orthanc_peer")
        if kind == "dimse":
            return Subject(name, over_dimse(real.port, real.ae_title), port=real.port)
        port = int(real.http.rpartition(":")[2])
        return Subject(name, over_dicomweb(real.dicomweb), keeps_bytes=True, port=port)

    def fhir(name: str, kind: str) -> Subject:
        profile, version = ("mii", "R4") if kind == "mii" else ("", kind)
        options = FhirOptions(
            profile=profile,  # type: ignore[arg-type]
            dicomweb_url=PIXELS,
            service_requests=True,
            time_zone="Europe/Warsaw",
        )
        server = start(FhirSimulator(shelf.directory, version, options))  # type: ignore[arg-type]
        return Subject(name, over_fhir(server.url, version, PIXELS), FHIR[kind], port=server.port)

    yield lambda name: known.setdefault(name, known.get(name) or build(name))
    for simulator in simulators:
        simulator.stop()


@pytest.fixture
def subject(request: pytest.FixtureRequest, subjects: Callable[[str], Subject]) -> Subject:
    return subjects(request.param)
