"""The command line as a user has it: a process of its own, its output, its exit code."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from gateway.cli import commands

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")},
    "PYTHONPATH": str(ROOT),
}


class Command:
    """Runs `python -m gateway ...` in a directory that is not the source tree."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, *words: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gateway", *words],
            cwd=self.directory,
            env={**ENVIRONMENT, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def inside(self, *words: str, **environment: str) -> Result:
        """The same in this process, which is quicker; for what needs no process of its own."""
        with contextlib.chdir(self.directory):
            return CliRunner().invoke(commands.app, words, env=environment)

    @contextmanager
    def running(self, *words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on; it is killed at the end if the test did not stop it."""
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", *words],
            cwd=self.directory,
            env={**ENVIRONMENT, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    pipe.close()
