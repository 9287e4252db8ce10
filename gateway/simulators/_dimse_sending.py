"""How the DIMSE simulator sends files: the data set's bytes as they lie on disk, a few PDUs in memory at a time."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset

from gateway.simulators._dimse_index import IMAGE, LEVELS, STUDY, UNIQUE_KEY, Archive, StoredInstance
from gateway.simulators._dimse_matching import is_universal, matches

_QUEUED_PDUS = 64


class StoredFile(Dataset):
    """What a C-GET or C-MOVE handler yields instead of a decoded data set: an identifier and where the file is."""

    def __init__(self, stored: StoredInstance) -> None:
        super().__init__()
        self.path = stored.path
        self.has_honest_meta = stored.raw.file_meta.get("MediaStorageSOPInstanceUID") == stored.unique(IMAGE)
        self.SOPInstanceUID = stored.decoded.SOPInstanceUID


def selected(archive: Archive, identifier: Dataset, root: str) -> list[StoredInstance]:
    """The instances under the unique keys of a retrieve (PS3.4 C.4.2.2.1). Raises ValueError when it names none."""
    level = str(identifier.get("QueryRetrieveLevel") or "").strip()
    steps = LEVELS[LEVELS.index(root) : LEVELS.index(level) + 1]
    keys = [identifier[UNIQUE_KEY[step]] for step in steps if UNIQUE_KEY[step] in identifier]
    if not keys or UNIQUE_KEY[level] not in identifier or is_universal(identifier[UNIQUE_KEY[level]]):
        raise ValueError(level)
    return [s for s in archive.instances() if all(matches(key, s.decoded.get(key.tag)) for key in keys)]


def of_another_study(archive: Archive, asked: Iterable[StoredInstance]) -> list[StoredInstance]:
    """The first study that was not asked for."""
    studies = {stored.unique(STUDY) for stored in asked}
    others = [stored for stored in archive.instances() if stored.unique(STUDY) not in studies]
    return [stored for stored in others if stored.unique(STUDY) == others[0].unique(STUDY)]


def prepare(association: Any, move_originator: str = "") -> None:
    """Makes an association send StoredFile from disk and hold few PDUs; pynetdicom would queue a whole file of them.

    `move_originator` is who asked for the C-MOVE (PS3.7 9.1.1.1.5); pynetdicom gives the archive's own title instead.
    """
    association.dul.to_provider_queue = _BoundedQueue(association)
    plain: Callable[..., Dataset] = association.send_c_store

    def send_c_store(dataset: Dataset | Path, *positional: Any, **keywords: Any) -> Dataset:
        if not isinstance(dataset, StoredFile):
            return plain(dataset, *positional, **keywords)
        if move_originator:
            keywords["originator_aet"] = move_originator
        if not dataset.has_honest_meta:
            # pynetdicom would announce the instance under the UID of its File Meta, which is not the instance's own.
            return plain(dcmread(dataset.path), *positional, **keywords)
        try:
            return plain(dataset.path, *positional, **keywords)
        except (AttributeError, ValueError):
            # No context for the syntax it is stored in: between Implicit and Explicit VR an archive converts.
            return plain(dcmread(dataset.path), *positional, **keywords)

    association.send_c_store = send_c_store


class _BoundedQueue(queue.Queue[Any]):
    """Blocks while full, and lets go of everything once the association's network thread has ended."""

    def __init__(self, association: Any) -> None:
        super().__init__(_QUEUED_PDUS)
        self._association = association

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        while True:
            try:
                return super().put(item, block, 0.1)
            except queue.Full:
                if not self._association.dul.is_alive():
                    return None
