"""What several folders of tests share: the shelf of studies, and each real peer started once with all of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.simulators import corpus
from tests import peers
from tests.shelf import Shelf, fill


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    folder = tmp_path_factory.mktemp("shelf")
    return fill(folder / "files", corpus.build(folder / "corpus", scale="small"))


@pytest.fixture(scope="session")
def orthanc_peer(shelf: Shelf) -> Iterator[peers.Orthanc]:
    """Orthanc, told to answer in UTF-8, with every file of the shelf."""
    with peers.orthanc(shelf.paths) as peer:
        yield peer


@pytest.fixture(scope="session")
def latin_orthanc_peer(shelf: Shelf) -> Iterator[peers.Orthanc]:
    """Orthanc as Debian ships it, answering in Latin-1, with every file of the shelf."""
    with peers.orthanc(shelf.paths, default_encoding=None) as peer:
        yield peer


@pytest.fixture(scope="session")
def dcmqrscp_peer(shelf: Shelf) -> Iterator[peers.DimsePeer]:
    """dcmqrscp with every file of the shelf."""
    with peers.dcmqrscp(shelf.paths) as peer:
        yield peer


@pytest.fixture(scope="session")
def sekmet_peer(shelf: Shelf, orthanc_peer: peers.Orthanc) -> Iterator[str]:
    """sekmet-fhir with every study of the shelf, their Endpoint being the DICOMweb of `orthanc_peer`."""
    with peers.sekmet(peers.as_fhir(shelf.directory, dicomweb_url=orthanc_peer.dicomweb)) as url:
        yield url


@pytest.fixture
def redis_peer() -> Iterator[peers.Redis]:
    with peers.redis() as peer:
        yield peer
