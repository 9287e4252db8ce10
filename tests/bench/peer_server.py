"""A DICOMweb server from PyPI beside which we are measured: tiny-pacs, kept apart from our own environment."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import peers
from tests.bench.measuring import say
from tests.bench.processes import ROOT

_PACKAGES = ("tiny-pacs==0.4.1", "tiny-pacs-dicomweb==0.1.0", "waitress==3.0.2")
_BOUNDARY = "bench"
_MOST = 1 << 30


@dataclass(frozen=True)
class Peer:
    dicomweb: str


def installed(name: str, packages: Sequence[str], *options: str) -> Path | None:
    """A directory for PYTHONPATH with the packages, installed once; None, and a word about it, where that fails."""
    directory = ROOT / "build" / "bench" / name
    stamp = directory / ".installed"
    if stamp.is_file() and stamp.read_text() == " ".join(packages):
        return directory
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--upgrade", "--target", str(directory), *options, *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        say(f"  left out, since {' '.join(packages)} cannot be installed: {done.stderr.strip()[-300:]}")
        return None
    stamp.write_text(" ".join(packages))
    return directory


@contextmanager
def tiny_pacs(files: Sequence[Path]) -> Iterator[Peer | None]:
    """With the files stored by STOW-RS, in its own temporary files; None where it cannot be installed."""
    site = installed("tiny-pacs", _PACKAGES)
    if site is None:
        yield None
        return
    with peers.home() as home:
        port, dimse = peers.free_port(), peers.free_port()
        settings = {
            "ae": {"port": dimse, "dump_ds": False},
            "log": {"version": 1, "root": {"level": "ERROR"}},
            "components": {
                "InMemoryStorage": {"on": False},
                "TempFileStorage": {"on": True},
                "HttpServer": {"on": True, "port": port},
                "DICOMWeb": {"on": True, "max_part_size": _MOST},
            },
        }
        (home / "settings.yaml").write_text(json.dumps(settings))  # YAML reads JSON
        command = [sys.executable, "-m", "tiny_pacs", "run", "-c", str(home / "settings.yaml")]
        with peers.running(command, home, port, PYTHONPATH=str(site), TMPDIR=str(home)):
            peer = Peer(f"http://127.0.0.1:{port}/dicomweb")
            for path in files:
                _store(peer, path)
            yield peer


def _store(peer: Peer, path: Path) -> None:
    head = f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = head + path.read_bytes() + f"\r\n--{_BOUNDARY}--\r\n".encode()
    type_ = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'
    headers = {"Content-Type": type_, "Accept": "application/dicom+json"}
    request = urllib.request.Request(f"{peer.dicomweb}/studies", body, headers)
    urllib.request.urlopen(request, timeout=120).close()
