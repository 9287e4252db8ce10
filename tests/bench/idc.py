"""The studies of the Imaging Data Commons as rows of twenty archives, from the index that idc-index-data ships.

`idc.py TARGET` writes them; it runs with idc-index-data and pyarrow on its path, which nothing else here needs.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bench.measuring import say
from tests.bench.peer_server import installed
from tests.bench.processes import ROOT

NODES = 20
STUDIES, UNDATED = 168_507, 491
_PACKAGES = ("idc-index-data==25.0.5", "pyarrow")
_COLUMNS = ["StudyInstanceUID", "PatientID", "PatientSex", "StudyDate", "StudyDescription", "Modality", "instanceCount"]
_ROWS = ROOT / "build" / "bench" / "idc-25.0.5.json"


def rows() -> list[list[dict[str, Any]]] | None:
    """By node, made once and kept in build/; None, and a word about it, where the index cannot be had."""
    if not _ROWS.is_file():
        site = installed("idc", _PACKAGES)
        if site is None:
            return None
        say("  reading the index of the Imaging Data Commons (once)")
        path = os.pathsep.join([str(ROOT), str(site)])
        command = [sys.executable, "-m", "tests.bench.idc", str(_ROWS)]
        subprocess.run(command, check=True, timeout=600, env=os.environ | {"PYTHONPATH": path})
    return list(json.loads(_ROWS.read_bytes()))


def write(target: Path) -> None:
    studies = _studies()
    dated = sum(bool(row["StudyDate"]) for row in studies.values())
    assert (len(studies), len(studies) - dated) == (STUDIES, UNDATED), "not the index that the bars were set for"
    nodes: list[list[dict[str, Any]]] = [[] for _ in range(NODES)]
    for uid in sorted(studies):
        nodes[_home(studies[uid]["PatientID"])].append(studies[uid])
    part = target.with_suffix(".part")
    part.write_text(json.dumps(nodes, separators=(",", ":")))
    part.rename(target)


def _home(patient: str) -> int:
    """A patient's studies are all at one node."""
    return int(hashlib.sha256(patient.encode()).hexdigest(), 16) % NODES


def _studies() -> dict[str, dict[str, Any]]:
    import idc_index_data
    from pyarrow import parquet

    table = parquet.read_table(idc_index_data.IDC_INDEX_PARQUET_FILEPATH, columns=_COLUMNS)
    studies: dict[str, dict[str, Any]] = {}
    for series in zip(*(table.column(name).to_pylist() for name in _COLUMNS), strict=True):
        uid, patient, sex, date, description, modality, instances = series
        date = (date or "").replace("-", "")
        study = studies.setdefault(
            uid,
            {
                "StudyInstanceUID": uid,
                "PatientID": patient,
                "PatientName": patient,
                "PatientSex": sex or "",
                "StudyDate": date,
                "StudyDescription": (description or "")[:64],
                "ModalitiesInStudy": [],
                "NumberOfStudyRelatedSeries": 0,
                "NumberOfStudyRelatedInstances": 0,
            },
        )
        study["StudyDate"] = max(study["StudyDate"], date)
        study["NumberOfStudyRelatedSeries"] += 1
        study["NumberOfStudyRelatedInstances"] += instances
        if modality and modality not in study["ModalitiesInStudy"]:
            study["ModalitiesInStudy"].append(modality)
    return studies


if __name__ == "__main__":
    write(Path(sys.argv[1]))
