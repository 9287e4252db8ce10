"""Simulators in a process of their own, one a directory: `peer.py PROTOCOL DIRECTORY,... PORT,...`, until it is terminated."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from gateway.simulators.dicomweb import DicomwebSimulator
from gateway.simulators.dimse import DimseSimulator


def main(protocol: str, directories: list[Path], ports: list[int]) -> None:
    for directory, port in zip(directories, ports, strict=True):
        if protocol == "dimse":
            DimseSimulator(directory, port=port).start()
        else:
            DicomwebSimulator(directory).start(port)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], [Path(one) for one in sys.argv[2].split(",")], [int(one) for one in sys.argv[3].split(",")])
