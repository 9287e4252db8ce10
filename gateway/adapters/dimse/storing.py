"""Stores instances on a node by C-STORE, each from a file, so that none is ever in memory (PS3.4 B.2)."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from queue import SimpleQueue

from pydicom import dcmread
from pynetdicom.presentation import PresentationContext, build_context

from gateway.adapters.dimse.associations import MAX_CONTEXTS, NodeAssociation, NothingAccepted, Peer
from gateway.adapters.dimse.operations import Operation
from gateway.model.seam import Part, StoreOutcome
from gateway.wire.part10 import Part10Error, open_part10
from gateway.wire.uncompressed import TARGETS, UNCOMPRESSED, written_as

# Statuses of PS3.4 Table B.2-1 and PS3.7 C; C122 is that of PS3.18 Table I.2-2 for a syntax.
_CLASS_NOT_SUPPORTED, _SYNTAX_NOT_SUPPORTED, _CANNOT_UNDERSTAND, _FAILED = 0x0122, 0xC122, 0xC000, 0x0110
_CHUNK = 512 << 10


def store_each(
    peer: Peer,
    operation: Operation[StoreOutcome],
    files: SimpleQueue[tuple[Path, str] | None],
    sent: Callable[[int], None],
) -> None:
    """In a thread: one outcome for each file, until None comes. `sent` is told how many bytes went out."""
    storing = _Storing(peer, operation, sent)
    try:
        while file := files.get():
            operation.channel.put(storing.store(*file))
    except BaseException:
        storing.close()
        raise
    storing.close(release=True)


class _Storing:
    """The association is requested anew, with all contexts so far, for a class or syntax that it lacks, and when the node
    has ended it meanwhile: between two instances of a slow sender it may have been idle for long."""

    def __init__(self, peer: Peer, operation: Operation[StoreOutcome], sent: Callable[[int], None]) -> None:
        self._peer = peer
        self._operation = operation
        self._sent = sent
        self._association: NodeAssociation | None = None
        self._proposed: dict[tuple[str, str], PresentationContext] = {}
        self._refused: set[tuple[str, str]] = set()
        self._message_id = 0

    def store(self, path: Path, sop_instance_uid: str) -> StoreOutcome:
        """Sends one Part 10 file. Raises NodeError when the node cannot be talked to."""
        try:
            file = dcmread(path, specific_tags=["SOPClassUID", "SOPInstanceUID"], stop_before_pixels=True)
            # The data set says what it is; File Meta Information of some writers names another instance.
            sop_class, sop_instance_uid = str(file.SOPClassUID), str(file.SOPInstanceUID)
            syntax = str(file.file_meta.TransferSyntaxUID)
        except Exception:  # noqa: BLE001 - a file without readable File Meta Information is the sender's fault
            return StoreOutcome("", sop_instance_uid, _CANNOT_UNDERSTAND)
        association = self._associated(sop_class, syntax)
        taken = _taken(association, sop_class, syntax) if association else ""
        if association is None or not taken:
            is_known = association is not None and association.accepts(sop_class)
            reason = _SYNTAX_NOT_SUPPORTED if is_known else _CLASS_NOT_SUPPORTED
            return StoreOutcome(sop_class, sop_instance_uid, reason)
        try:
            with _in_syntax(path, syntax, taken) as wanted:
                status = self._send(association, wanted, sop_class, sop_instance_uid, taken)
        except Part10Error:
            return StoreOutcome(sop_class, sop_instance_uid, _CANNOT_UNDERSTAND)
        return _outcome(sop_class, sop_instance_uid, status)

    def _send(self, association: NodeAssociation, file: Path, sop_class: str, instance: str, syntax: str) -> int:
        self._message_id = self._message_id % 0xFFFF + 1
        with self._operation.using(association):
            status = association.store(file, sop_class, instance, syntax, self._message_id)
        self._sent(file.stat().st_size)
        return status

    def _associated(self, sop_class: str, syntax: str) -> NodeAssociation | None:
        """An association on which all was proposed that the instance could go in; None where the node takes nothing.

        The plain syntaxes are proposed for a compressed instance as well: they tell whether it is the class that is not taken.
        """
        wanted = dict.fromkeys((sop_class, each) for each in (syntax, *TARGETS))
        if self._refused.issuperset(wanted):
            return None
        if self._association and self._proposed.keys() >= wanted.keys() and self._association.is_usable:
            return self._association
        self.close(release=True)
        if len(self._proposed) + len(wanted) > MAX_CONTEXTS:
            self._proposed.clear()
        for pair in wanted:
            self._proposed.setdefault(pair, build_context(*pair))
        association = self._association = NodeAssociation(self._peer, list(self._proposed.values()))
        try:
            with self._operation.using(association):
                association.request()
        except NothingAccepted:
            self._refused.update(self._proposed)
            self.close()
        return self._association

    def close(self, *, release: bool = False) -> None:
        association, self._association = self._association, None
        if association:
            association.end(release=release)


def _taken(association: NodeAssociation, sop_class: str, syntax: str) -> str:
    """The syntax to send in: as stored where the node takes that, else another one of plain cells; '' for none."""
    others = TARGETS if syntax in UNCOMPRESSED else ()
    return next((each for each in (syntax, *others) if association.accepts_syntax(sop_class, each)), "")


def _outcome(sop_class: str, instance: str, status: int) -> StoreOutcome:
    """A status of class Bxxx is a warning: the instance is stored (PS3.7 C.3). FFxx and FE00 are none of C-STORE's."""
    if status >> 12 == 0xB or status in (0x0001, 0x0107, 0x0116):
        return StoreOutcome(sop_class, instance, warning=status)
    return StoreOutcome(sop_class, instance, failure=_FAILED if status >= 0xFE00 else status)


@contextmanager
def _in_syntax(path: Path, stored: str, wanted: str) -> Iterator[Path]:
    """The file itself, or a private copy of it in the syntax wanted. Raises Part10Error."""
    if stored == wanted:
        yield path
        return
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix="dimse-", suffix=".dcm") as copy:
        asyncio.run(_write(path, wanted, copy.write))
        copy.flush()
        yield Path(copy.name)


async def _write(path: Path, syntax: str, write: Callable[[bytes], object]) -> None:
    """The codec is made for bodies that arrive; here, in a thread, they are all there."""
    async for chunk in written_as(await open_part10(_chunks(path)), syntax):
        write(chunk)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


@asynccontextmanager
async def on_disk(part: Part) -> AsyncIterator[Path]:
    """The part's file, or one that only this process's user can read (0600), gone at the end."""
    if part.file is not None:
        yield part.file
        return
    with tempfile.NamedTemporaryFile(prefix="dimse-", suffix=".dcm") as file:
        async for chunk in part.body:
            await asyncio.to_thread(file.write, chunk)
        await asyncio.to_thread(file.flush)
        yield Path(file.name)
