"""The conformance table of the README as data, and the checks that hold its rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from small_hospital import MULLER, Small

from tests.specimens import uid

README = Path(__file__).parents[2] / "README.md"
_ROW = re.compile(r"^\| ([A-Z]\d{1,2}[a-z]?) \| ([^|]+) \| (yes|no) \|([^|]*)\|$", re.MULTILINE)
Check = Callable[[Small], None]
SHOWN: dict[str, Check] = {}

XML = 'multipart/related; type="application/dicom+xml"'
SERIES, INSTANCE = uid(MULLER, "1"), uid(MULLER, "1", 1)
STUDY_PATH, SERIES_PATH = f"studies/{uid(MULLER)}", f"studies/{uid(MULLER)}/series/{SERIES}"
INSTANCE_PATH = f"{SERIES_PATH}/instances/{INSTANCE}"
OCTETS = {"Accept": "application/octet-stream; transfer-syntax=*"}


def rows() -> dict[str, tuple[str, str, str]]:
    """What the table asks, yes or no, and how or why not, by row."""
    found = _ROW.findall(README.read_text())
    assert len({row for row, *_ in found}) == len(found), "a row is in the table twice"
    return {row: (asked, done, why) for row, asked, done, why in found}


def shows(row: str) -> Callable[[Check], Check]:
    """Registers the check of one row."""

    def register(check: Check) -> Check:
        assert row not in SHOWN, row
        SHOWN[row] = check
        return check

    return register


def status(hospital: Small, path: str, node: str = "files", **headers: str) -> int:
    return hospital.get(path, node, **headers).status_code
