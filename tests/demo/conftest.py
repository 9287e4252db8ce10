"""A demo over the small corpus, as the command starts it, and what it says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from gateway.simulators import corpus
from gateway.simulators.corpus import Corpus
from tests.cli.commands import ENVIRONMENT


@dataclass
class Demo:
    """A running demo: its process, its address, its whole guide, and every process that it started."""

    process: subprocess.Popen[str]
    url: str
    guide: str
    directory: Path
    descendants: list[psutil.Process]

    @property
    def corpus(self) -> Corpus:
        return corpus.describe(self.directory / "hospitals-small")

    @property
    def commands(self) -> list[str]:
        """The five commands of the guide, as they are printed."""
        told = self.guide[self.guide.index("Five commands to try") : self.guide.index("Ctrl-C")]
        return [line.strip() for line in told.splitlines() if line.startswith("  ") and not line.startswith("  #")]

    @property
    def node_file(self) -> Path:
        found = re.search(r"node file +(\S+)", self.guide)
        assert found
        return Path(found[1])


@contextmanager
def running(directory: Path) -> Iterator[Demo]:
    """Started on a free port; killed with all its children if the test did not end it."""
    words = ["demo", "--port", "0", "--directory", str(directory), "--scale", "small"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", *words],
        cwd=directory,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    descendants: list[psutil.Process] = []
    try:
        guide = _read_guide(process)
        url = re.search(r"http://127\.0\.0\.1:\d+", guide)
        assert url
        descendants = psutil.Process(process.pid).children(recursive=True)
        yield Demo(process, url[0], guide, directory, descendants)
    finally:
        process.kill()
        process.wait()
        for child in descendants:
            if child.is_running():
                child.kill()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


def _read_guide(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            return "".join(lines)
    assert process.stderr
    raise AssertionError(process.stderr.read())


@pytest.fixture(scope="session")
def demo_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="session")
def demo(demo_directory: Path) -> Iterator[Demo]:
    with running(demo_directory) as started:
        yield started
