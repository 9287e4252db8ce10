"""A bare pynetdicom C-GET in a process of its own, the yardstick for DIMSE: `getter.py PORT AE_TITLE STUDY`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MultiFrameGrayscaleWordSecondaryCaptureImageStorage
from pynetdicom import AE, build_role, evt

_STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
_CLASSES = [CTImageStorage, MultiFrameGrayscaleWordSecondaryCaptureImageStorage]


@dataclass(frozen=True)
class Target:
    """A study at a DIMSE node of this machine."""

    port: int
    ae_title: str
    study: str


@dataclass(frozen=True)
class Got:
    """`seconds` from the request for the association to its end; `bytes` of all data sets."""

    bytes: int
    seconds: float

    @property
    def rate(self) -> float:
        """10^6 bytes a second."""
        return self.bytes / self.seconds / 1e6


def run(target: Target) -> Got:
    """Raises RuntimeError unless the C-GET succeeds."""
    command = [sys.executable, __file__, str(target.port), target.ae_title, target.study]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    if told["status"] != 0 or not told["bytes"]:
        raise RuntimeError("the C-GET failed")
    return Got(told["bytes"], told["seconds"])


def main(port: int, ae_title: str, study: str) -> None:
    received = 0

    def take(event: Any) -> int:
        nonlocal received
        received += len(event.request.DataSet.getbuffer())
        return 0x0000

    entity = AE(ae_title="BENCH")
    entity.maximum_pdu_size = 131072
    entity.add_requested_context(_STUDY_ROOT_GET)
    for sop_class in _CLASSES:
        entity.add_requested_context(sop_class, ExplicitVRLittleEndian)
    roles = [build_role(sop_class, scp_role=True) for sop_class in _CLASSES]
    began = time.perf_counter()
    handlers = [(evt.EVT_C_STORE, take), (evt.EVT_CONN_OPEN, _without_delay)]
    association = entity.associate(
        "127.0.0.1", port, ext_neg=roles, ae_title=ae_title, max_pdu=131072, evt_handlers=handlers
    )
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", study
    status = [status.Status for status, _ in association.send_c_get(asked, _STUDY_ROOT_GET)][-1]
    association.release()
    print(json.dumps({"bytes": received, "seconds": time.perf_counter() - began, "status": status}))


def _without_delay(event: Any) -> None:
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
