"""What the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.simulators import corpus
from gateway.simulators.corpus import Corpus
from tests.cli.commands import Command


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus.build(tmp_path_factory.mktemp("hospitals"), scale="small")
