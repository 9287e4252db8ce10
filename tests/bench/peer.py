"""A simulator in a process of its own: `peer.py PROTOCOL DIRECTORY PORT`, until it is terminated."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from gateway.simulators.dicomweb import DicomwebSimulator
from gateway.simulators.dimse import DimseSimulator


def main(protocol: str, directory: Path, port: int) -> None:
    if protocol == "dimse":
        DimseSimulator(directory, port=port).start()
    else:
        DicomwebSimulator(directory).start(port)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
