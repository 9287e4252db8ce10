"""Looks through a directory for DICOM files that are new, changed or gone, and reads what the index keeps of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

import orjson

from gateway.model.dataset import Dataset, text
from gateway.model.patient import issuer_of
from gateway.model.vocabulary import (
    INSTANCE_UID,
    MODALITY,
    PATIENT_ID,
    SERIES_UID,
    SOP_CLASS_UID,
    STUDY_DATE,
    STUDY_UID,
)
from gateway.wire.instance import Part10Error, open_instance

_LONGEST_KEPT = 16 * 1024
"""Bytes of JSON of one attribute that the index still keeps: per-frame functional groups are not searched."""

_NONE_OF_OURS = frozenset({"DICOMDIR", "LOST+FOUND", "$RECYCLE.BIN", "SYSTEM VOLUME INFORMATION"})
"""What file systems keep for themselves mostly may not be listed, and holds nothing that is shared."""

Stamp = tuple[int, int]
"""(modification time in ns, size): what tells that a file has changed."""


@dataclass(frozen=True, slots=True)
class Held:
    """One DICOM file as the index knows it. `attributes` is JSON without bulk data."""

    path: str
    stamp: Stamp
    study: str
    series: str
    instance: str
    patient: str
    issuer: str
    study_date: str
    modality: str
    sop_class: str
    transfer_syntax: str
    attributes: bytes = b""


@dataclass(slots=True)
class Listing:
    """The files below a directory; `unread` are the subdirectories that could not be listed, and what could not be looked at."""

    files: dict[str, Stamp]
    unread: list[str]

    def hides(self, path: str) -> bool:
        """Whether a file that is missing from the listing may still be there."""
        return any(path == unread or path.startswith(unread + os.sep) for unread in self.unread)


def listing(directory: Path) -> Listing:
    """Every file that may be a DICOM instance. Hidden files, DICOMDIR and a file system's own are none, nor are pipes, sockets and
    devices, which would be waited for without an end. Raises OSError for the root only."""
    found = Listing({}, [])
    root = directory.stat()
    seen = {(root.st_dev, root.st_ino)}
    pending = [str(directory)]
    while pending:
        current = pending.pop()
        try:
            pending.extend(_list_one(current, found, seen))
        except OSError:
            if current == str(directory):
                raise
            found.unread.append(current)
    return found


def _list_one(directory: str, found: Listing, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Adds the files of one directory; its subdirectories come out, each once whatever links there are."""
    subdirectories = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.upper() in _NONE_OF_OURS:
                continue
            try:
                status = entry.stat()
                if S_ISREG(status.st_mode):
                    found.files[entry.path] = (status.st_mtime_ns, status.st_size)
                elif entry.is_dir() and (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    subdirectories.append(entry.path)
            except FileNotFoundError:
                continue
            except OSError:
                found.unread.append(entry.path)
    return iter(subdirectories)


def read_held(path: Path, stamp: Stamp, character_set: str) -> Held:
    """What the index keeps of one file. Raises Part10Error for none, a broken or incomplete one, OSError if it is gone.

    `character_set` is the node's default for data sets without (0008,0005).
    """
    with open_instance(path) as instance:
        if not instance.is_complete():
            raise Part10Error("the file is incomplete")
        attributes = instance.metadata(lambda path: path, default_character_set=character_set)
        syntax = instance.transfer_syntax
    study, series, uid = (text(attributes, tag) for tag in (STUDY_UID, SERIES_UID, INSTANCE_UID))
    if not (study and series and uid):
        raise Part10Error("the file names no study, series or instance")
    return Held(
        path=str(path),
        stamp=stamp,
        study=study,
        series=series,
        instance=uid,
        patient=text(attributes, PATIENT_ID).strip(),
        issuer=issuer_of(attributes, ""),
        study_date=text(attributes, STUDY_DATE),
        modality=text(attributes, MODALITY),
        sop_class=text(attributes, SOP_CLASS_UID),
        transfer_syntax=syntax,
        attributes=orjson.dumps(_searchable(attributes)),
    )


def _searchable(attributes: Dataset) -> Dataset:
    return {
        tag: attribute
        for tag, attribute in attributes.items()
        if "BulkDataURI" not in attribute
        and "InlineBinary" not in attribute
        and (attribute["vr"] not in ("SQ", "UT", "LT", "UC") or len(orjson.dumps(attribute)) <= _LONGEST_KEPT)
    }
