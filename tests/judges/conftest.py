"""One gateway over real peers of all four kinds, all of them holding the shelf, for clients that nobody here wrote."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from tests import peers
from tests.interop.conftest import DOMAIN, FHIR_ISSUERS, ISSUER, node
from tests.running import Gateway, files_node
from tests.shelf import HeldFile, HeldStudy, Shelf

TIME_ZONE = "Europe/Warsaw"


@dataclass(frozen=True)
class Judged:
    """The gateway, and what its nodes hold. A study of a nameless patient is left out: nobody can tell whose it is."""

    gateway: Gateway
    shelf: Shelf

    @property
    def dicomweb(self) -> str:
        return self.gateway.dicomweb

    @property
    def fhir(self) -> str:
        return f"{self.gateway.url}/fhir/r4"

    @property
    def studies(self) -> list[HeldStudy]:
        return [study for study in self.shelf.studies if study.text("PatientID")]

    @property
    def few(self) -> list[HeldStudy]:
        """Two studies, the first of two series, where each question costs a DIMSE node a retrieve."""
        series = {study.uid: len(study.series) for study in self.studies}
        return [next(study for study in self.studies if series[study.uid] == count) for count in (2, 1)]

    @property
    def files(self) -> list[HeldFile]:
        return [file for study in self.studies for file in study.files]

    def named(self, uids: list[str]) -> list[str]:
        """Those of `uids` that are of the shelf: other tests of this worker store copies of their own into the peers."""
        return sorted(uid for uid in uids if uid in {study.uid for study in self.studies})


@pytest.fixture(scope="module")
def judged(
    shelf: Shelf, orthanc_peer: peers.Orthanc, dcmqrscp_peer: peers.DimsePeer, sekmet_peer: str
) -> Iterator[Judged]:
    nodes = [
        node("web", "dicomweb", {"url": orthanc_peer.dicomweb}, priority=20),
        node("pacs", "dimse", orthanc_peer.address, priority=30),
        node("qr", "dimse", dcmqrscp_peer.address, priority=40),
        node("fhir", "fhir", {"url": sekmet_peer}, allow=[orthanc_peer.dicomweb], issuers=FHIR_ISSUERS, priority=50),
        files_node("disk", shelf.directory, patient_id_issuer=ISSUER, time_zone=TIME_ZONE, priority=10),
    ]
    unhandled: list[str] = []
    with Gateway(nodes, file={"same_patient_domain": [{"issuers": DOMAIN}]}) as gateway:
        gateway.loop.set_exception_handler(lambda _, context: unhandled.append(str(context)))
        yield Judged(gateway, shelf)
        gc.collect()
    assert unhandled == [], "exceptions that nobody took"


@pytest.fixture(params=["", "web", "pacs", "qr", "fhir", "disk"], ids=lambda name: name or "all")
def root(request: pytest.FixtureRequest, judged: Judged) -> str:
    """The DICOMweb root of all nodes together, and of each by itself."""
    return f"{judged.gateway.url}/nodes/{request.param}/dicom-web" if request.param else judged.dicomweb


def accepted(answer: httpx.Response) -> httpx.Response:
    """The answer itself. Fails with what the peer said where it did not accept the request."""
    assert answer.status_code < 300, f"{answer.request.url}: {answer.status_code} {answer.text[:500]}"
    return answer


def operations_of(client: type) -> set[str]:
    """The public methods of a client's class."""
    return {name for name in dir(client) if not name.startswith("_") and callable(getattr(client, name))}
