"""Archives of many studies that only search, for the tests of paging and the benchmark: rows made up, or any that are given.

with catalogue_nodes(made_up(2000, nodes=4), maximum=100) as nodes:
    with Gateway(nodes.tables()) as served: ...
    nodes.counts()[0].requests
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from gateway.model.vocabulary import tag, vr
from tests import peers
from tests.catalogue_node import Counts
from tests.specimens import uid

Row = Mapping[str, Any]
"""A study by DICOM keywords: a text, a number, or a list of them. It has at least a StudyInstanceUID."""

CROWDED = ("19990102", "20000102", "20010102")
"""The dates that share 43 % of the made up studies, as in the Imaging Data Commons, whose dates are shifted."""

_SHOWN_WITHOUT_VALUE = ("StudyDate", "StudyTime", "AccessionNumber", "PatientID", "PatientName")
_SCRIPT = Path(__file__).with_name("catalogue_node.py")


@dataclass(frozen=True)
class CatalogueNodes(Sequence[str]):
    """The DICOMweb roots of the running nodes, in the order of their rows."""

    urls: tuple[str, ...]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self.urls[index]

    def __len__(self) -> int:
        return len(self.urls)

    def tables(self, **more: Any) -> list[dict[str, Any]]:
        """[[node]] tables with the ids n00, n01, ...; `more` are further keys of each."""
        return [
            {
                "id": f"n{number:02d}",
                "name": f"Node {number}",
                "adapter": "dicomweb",
                "connection": {"url": url},
                "search_deadline": 60,  # the machine may be busy
                **more,
            }
            for number, url in enumerate(self.urls)
        ]

    def counts(self) -> list[Counts]:
        """What each was asked since the last reset; probes of the gateway count, too."""
        return [Counts(**_get(f"{url}/counts")) for url in self.urls]

    def reset(self) -> None:
        for url in self.urls:
            _get(f"{url}/reset")

    def change(self, maximum: int | None = None, delay: float = 0.0) -> None:
        """What they were started with, anew."""
        for url in self.urls:
            _get(f"{url}/change?to={json.dumps([maximum, delay], separators=(',', ':'))}")


def _get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return dict(json.load(answer))


@contextmanager
def catalogue_nodes(
    rows_by_node: Sequence[Sequence[Row]], maximum: int | None = None, delay: float = 0.0, processes: int = 1
) -> Iterator[CatalogueNodes]:
    """A node for each list of rows, kept and answered in that order, over so many processes.

    `maximum`: rows that a node gives to any question, silently, whatever its offset. `delay`: seconds before each answer.
    """
    ports = free_ports(len(rows_by_node))
    with ExitStack() as stack:
        started = []
        for number in range(min(processes, len(ports))):
            directory = stack.enter_context(peers.home())
            own = ports[number::processes]
            for port, rows in zip(own, rows_by_node[number::processes], strict=True):
                lines = (json.dumps(data_set(row), separators=(",", ":")) for row in rows)
                (directory / f"{port}.jsonl").write_text("\n".join(lines))
            (directory / "settings.json").write_text(json.dumps({"ports": own, "maximum": maximum, "delay": delay}))
            started.append((stack.enter_context(_process(directory)), own, directory))
        for process, own, directory in started:
            _wait(process, own, directory)
        yield CatalogueNodes(tuple(f"http://127.0.0.1:{port}" for port in ports))


def free_ports(count: int) -> list[int]:
    """Different ones."""
    return [peers.free_port() for _ in range(count)]


@contextmanager
def _process(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(_SCRIPT), str(directory)], stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process: subprocess.Popen[bytes], ports: Sequence[int], directory: Path, seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    for port in ports:
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError("the catalogue did not start: " + (directory / "log").read_text()[-2000:])
            time.sleep(0.02)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def data_set(row: Row) -> dict[str, Any]:
    """The row in the DICOM JSON model; the keys that all studies have are there without a value, too."""
    found = {tag(name): _attribute(name, row.get(name)) for name in (*_SHOWN_WITHOUT_VALUE, *row)}
    return dict(sorted(found.items()))


def _attribute(name: str, value: Any) -> dict[str, Any]:
    vr_ = vr(tag(name))
    listed = value if isinstance(value, list) else [] if value in (None, "") else [value]
    return (
        {"vr": vr_, "Value": [{"Alphabetic": one} if vr_ == "PN" else one for one in listed]} if listed else {"vr": vr_}
    )


def made_up(
    studies: int, nodes: int, *, shared: float = 0.0, undated: float = 0.003, seed: int = 3
) -> list[list[dict[str, Any]]]:
    """Studies of invented patients, a patient's all at one node; the same for the same arguments.

    43 % lie on three dates; `undated` is the share without a date, `shared` that of studies that a second node holds, too.
    Each patient has an issuer, so that a shared study is one result.
    """
    chance = random.Random(seed)
    rows: list[list[dict[str, Any]]] = [[] for _ in range(nodes)]
    for number in range(studies):
        patient = chance.randrange(max(1, studies // 2))
        home = patient % nodes
        row = _study(chance, number, patient)
        if chance.random() < undated:
            row |= {"StudyDate": "", "StudyTime": ""}
        rows[home].append(row)
        if nodes > 1 and chance.random() < shared:
            rows[(home + 1) % nodes].append(row)
    return rows


def _study(chance: random.Random, number: int, patient: int) -> dict[str, Any]:
    crowded = chance.random() < 0.43
    date = (
        chance.choice(CROWDED)
        if crowded
        else f"{chance.randint(1995, 2024)}{chance.randint(1, 12):02d}{chance.randint(1, 28):02d}"
    )
    modalities = chance.choice(
        [["CT"], ["CT"], ["CT"], ["MR"], ["MR"], ["SM"], ["CT", "PT"], ["CT", "RTSTRUCT", "SEG"]]
    )
    return {
        "StudyDate": date,
        "StudyTime": f"{chance.randint(0, 23):02d}{chance.randint(0, 59):02d}{chance.randint(0, 59):02d}",
        "AccessionNumber": f"A{number:06d}",
        "ModalitiesInStudy": modalities,
        "PatientName": f"Madeup^{chr(65 + patient % 26)}{patient}",
        "PatientID": f"{chr(65 + patient % 7)}{patient:05d}",
        "IssuerOfPatientID": "MADE-UP",
        "StudyInstanceUID": uid("made up", number),
        "NumberOfStudyRelatedSeries": len(modalities),
        "NumberOfStudyRelatedInstances": len(modalities),
    }
