"""A bare threaded pynetdicom client, the yardstick for searching many DIMSE nodes: `finder.py DATES AE_TITLE PORT,...`.

A thread a node: an association, one C-FIND of all studies in a range of dates, its end. TCP_NODELAY is on.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt

_STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
_RETURNED = [
    *("StudyTime", "AccessionNumber", "ModalitiesInStudy", "ReferringPhysicianName", "TimezoneOffsetFromUTC"),
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"),
    *("StudyID", "StudyDescription", "InstanceAvailability"),
    *("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
]


@dataclass(frozen=True)
class Found:
    """`seconds` from the first thread's start to the last row of the last node."""

    rows: int
    seconds: float


def run(dates: str, ae_title: str, ports: Sequence[int]) -> Found:
    command = [sys.executable, __file__, dates, ae_title, ",".join(map(str, ports))]
    return Found(**json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout))


def find(dates: str, ae_title: str, port: int, found: list[tuple[int, float]]) -> None:
    entity = AE(ae_title="BENCH")
    entity.maximum_pdu_size = 131072
    entity.add_requested_context(_STUDY_ROOT_FIND)
    association = entity.associate(
        "127.0.0.1", port, ae_title=ae_title, max_pdu=131072, evt_handlers=[(evt.EVT_CONN_OPEN, _without_delay)]
    )
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyDate = "STUDY", dates
    for keyword in _RETURNED:
        setattr(asked, keyword, None if keyword.startswith("Number") else "")
    answers = list(association.send_c_find(asked, _STUDY_ROOT_FIND))
    if not answers or answers[-1][0].Status != 0:
        raise RuntimeError("the C-FIND failed")
    found.append((len(answers) - 1, time.perf_counter()))
    association.release()


def _without_delay(event: Any) -> None:
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def main(dates: str, ae_title: str, ports: list[int]) -> None:
    found: list[tuple[int, float]] = []
    threads = [threading.Thread(target=find, args=(dates, ae_title, port, found)) for port in ports]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(ports), "a node did not answer"
    print(json.dumps({"rows": sum(rows for rows, _ in found), "seconds": max(ended for _, ended in found) - began}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [int(one) for one in sys.argv[3].split(",")])
