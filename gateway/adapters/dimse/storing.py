"""Stores instances on a node by C-STORE, each from a private file, so that none is ever in memory (PS3.4 B.2)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from pydicom.filereader import read_file_meta_info
from pynetdicom.presentation import PresentationContext, build_context

from gateway.adapters.dimse.associations import MAX_CONTEXTS, NodeAssociation, Peer
from gateway.adapters.dimse.operations import Operation
from gateway.model.seam import StoreOutcome

_SOP_CLASS_NOT_SUPPORTED, _CANNOT_UNDERSTAND = 0x0122, 0xC000


def store_each(peer: Peer, operation: Operation[StoreOutcome], files: SimpleQueue[tuple[Path, str] | None]) -> None:
    """In a thread: one outcome for each file, until None comes."""
    storing = _Storing(peer, operation)
    try:
        while file := files.get():
            operation.channel.put(storing.store(*file))
    except BaseException:
        storing.close()
        raise
    storing.close(release=True)


class _Storing:
    """The association is requested anew, with all contexts so far, for a class or transfer syntax that it lacks."""

    def __init__(self, peer: Peer, operation: Operation[StoreOutcome]) -> None:
        self._peer = peer
        self._operation = operation
        self._association: NodeAssociation | None = None
        self._proposed: dict[tuple[str, str], PresentationContext] = {}
        self._message_id = 0

    def store(self, path: Path, sop_instance_uid: str) -> StoreOutcome:
        """Sends one Part 10 file as it is. Raises NodeError when the node cannot be talked to."""
        try:
            meta = read_file_meta_info(path)
            sop_class, syntax = str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
            sop_instance_uid = str(meta.MediaStorageSOPInstanceUID)
        except Exception:  # noqa: BLE001 - a file without readable File Meta Information is the sender's fault
            return StoreOutcome("", sop_instance_uid, _CANNOT_UNDERSTAND)
        association = self._associated(sop_class, syntax)
        if not association.accepts_syntax(sop_class, syntax):
            return StoreOutcome(sop_class, sop_instance_uid, _SOP_CLASS_NOT_SUPPORTED)
        self._message_id = self._message_id % 0xFFFF + 1
        with self._operation.using(association):
            status = association.store(path, sop_class, sop_instance_uid, syntax, self._message_id)
        is_stored = status == 0x0000 or status >> 12 == 0xB
        return StoreOutcome(sop_class, sop_instance_uid, 0 if is_stored else status)

    def _associated(self, sop_class: str, syntax: str) -> NodeAssociation:
        if self._association and (sop_class, syntax) in self._proposed:
            return self._association
        self.close(release=True)
        if len(self._proposed) == MAX_CONTEXTS:
            self._proposed.clear()
        self._proposed[sop_class, syntax] = build_context(sop_class, syntax)
        self._association = NodeAssociation(self._peer, list(self._proposed.values()))
        with self._operation.using(self._association):
            self._association.request()
        return self._association

    def close(self, *, release: bool = False) -> None:
        association, self._association = self._association, None
        if association:
            association.end(release=release)


@contextmanager
def private_file() -> Iterator[IO[bytes]]:
    """A file that only this process's user can read (0600), gone at the end."""
    with tempfile.NamedTemporaryFile(prefix="dimse-", suffix=".dcm") as file:
        yield file
