"""Takes in what a caller sends to be stored: one instance at a time, whole on disk and checked before a node hears of it.

So no node is ever in the middle of an instance that turns out to be cut short, and none waits for a slow sender. While a
node stores one instance the next is not read: the sender is held back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile, _TemporaryFileWrapper
from typing import BinaryIO

from gateway.errors import InvalidQuery
from gateway.federation.coercion import Coerce, as_it_is, unchanged
from gateway.model.dataset import Dataset, text, texts
from gateway.model.patient import can_be_read
from gateway.model.query import Ref, check_right_uid
from gateway.model.seam import Part, StoreOutcome
from gateway.model.vocabulary import INSTANCE_UID, ISSUER, PATIENT_ID, SERIES_UID, SOP_CLASS_UID, STUDY_UID
from gateway.wire.elements import Part10TooLarge
from gateway.wire.multipart import MultipartPart
from gateway.wire.part10 import AFTER_UIDS, Part10Error, Part10Stream, identify, open_part10
from gateway.wire.threads import run

DICOM = "application/dicom"
# Failure and Warning Reasons of PS3.18 Tables I.2-1 and I.2-2; of A9xx the last digits are ours.
OUT_OF_RESOURCES, CANNOT_UNDERSTAND, FAILED = 0xA700, 0xC000, 0x0110
OTHER_STUDY, OTHER_PATIENT = 0xA900, 0xA901
COERCED = 0xB000
_AT_ONCE = 1 << 20
_MOST_BEFORE_UIDS = 16 << 20
"""What stands before the UIDs is held in memory: as a rule a few kB."""
_IDENTIFYING = (SOP_CLASS_UID, STUDY_UID, SERIES_UID, INSTANCE_UID, PATIENT_ID, ISSUER)


@dataclass(slots=True)
class Result:
    """What became of one part: Failure Reason (0008,1197), Warning Reason (0008,1196), 0 for none.

    `ref` and `sop_class` are what the instance says of itself; without a `ref` it could not be told which one it is.
    """

    ref: Ref | None = None
    sop_class: str = ""
    failure: int = FAILED
    warning: int = 0

    @property
    def is_stored(self) -> bool:
        return not self.failure

    def take(self, outcome: StoreOutcome) -> None:
        """What the node says; that the instance was changed here is told where the node has no warning of its own."""
        self.failure, self.warning = outcome.failure, 0 if outcome.failure else outcome.warning or self.warning


@dataclass(frozen=True, slots=True)
class Arrived:
    """One instance, whole: `file` stays until the next is asked for. `found` is what identifies it."""

    ref: Ref
    found: Dataset
    transfer_syntax: str
    file: Path
    size: int
    result: Result

    @property
    def part(self) -> Part:
        return Part(
            self.ref.instance or "",
            self.transfer_syntax,
            _chunks(self.file, self.size),
            self.ref.series or "",
            self.size,
            self.file,
        )


class _TooLarge(Exception):
    """The instance is larger than one may be."""


class _Refused(Exception):
    """The instance is not taken, for this Failure Reason."""

    def __init__(self, reason: int) -> None:
        self.reason = reason


@dataclass(slots=True)
class Intake:
    """The parts of one request. `results` has one for each part that has begun, in order.

    `study` is the only one that is taken, if it is given; `most` the bytes that an instance may have, also inflated. `broken` is
    why the sender's body ended before its end, if it did: what was read of the last instance has gone.
    """

    parts: AsyncIterator[MultipartPart]
    directory: Path
    most: int
    study: str | None = None
    coerce: Coerce = as_it_is
    results: list[Result] = field(default_factory=list)
    broken: Exception | None = None
    _file: _TemporaryFileWrapper[bytes] | None = None

    async def next(self) -> Arrived | None:
        """The next instance that can be stored; None when there is none any more. What cannot has its result already."""
        while self.broken is None:
            await self._drop()
            try:
                part = await anext(self.parts, None)
                if part is None:
                    return None
                self.results.append(Result())
                return await self._arrived(part, self.results[-1])
            except _Refused as refusal:
                self.results[-1].failure = refusal.reason
            except (_TooLarge, Part10TooLarge):
                self.results[-1].failure = OUT_OF_RESOURCES
            except Part10Error:
                self.results[-1].failure = CANNOT_UNDERSTAND
            except OSError:
                self.results[-1].failure = OUT_OF_RESOURCES
            except Exception as error:  # noqa: BLE001 - whatever ends the body early: truncation, a limit, the sender's leaving
                self.broken = error
        return None

    async def close(self) -> None:
        await self._drop()

    async def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                await run(None, file.close)

    async def _arrived(self, part: MultipartPart, result: Result) -> Arrived:
        if "content-type" in part.headers and part.media_type.essence != DICOM:
            raise _Refused(CANNOT_UNDERSTAND)
        stream = await open_part10(
            _up_to(part.body, self.most), until=AFTER_UIDS, limit=_MOST_BEFORE_UIDS, strict=True, inflated=self.most
        )
        try:
            found = identify(stream)
            result.sop_class, result.ref = text(found, SOP_CLASS_UID), _ref_of(found)
            _check(result.ref, stream, self.study)
            coerced = self.coerce(stream, found)
            size = await self._keep(unchanged(stream, found) if coerced is None else coerced)
        finally:
            await stream.aclose()
        result.warning = COERCED if coerced is not None else 0
        assert self._file is not None
        return Arrived(result.ref, found, stream.transfer_syntax, Path(self._file.name), size, result)

    async def _keep(self, body: AsyncIterator[bytes]) -> int:
        """Writes the body to a file that only this process's user can read (0600). Each visit to a thread writes much."""
        size, gathered = 0, bytearray()
        async for chunk in body:
            size += len(chunk)
            gathered += chunk
            if len(gathered) >= _AT_ONCE:
                await run(None, self._write, gathered)
                gathered = bytearray()
        await run(None, self._write, gathered)
        return size

    def _write(self, data: bytearray) -> None:
        if self._file is None:
            self._file = NamedTemporaryFile(dir=self.directory, prefix=".store-", suffix=".dcm")  # noqa: SIM115
        self._file.write(data)
        self._file.flush()


async def _up_to(body: AsyncIterator[bytes], most: int) -> AsyncIterator[bytes]:
    left = most
    async for chunk in body:
        if len(chunk) > left:
            yield chunk[:left]  # enough, mostly, to tell which instance it is
            raise _TooLarge
        left -= len(chunk)
        yield chunk


def _ref_of(found: Dataset) -> Ref:
    """Raises Part10Error without all UIDs, or with one that is none, and for an identifier that is several or cannot be read:
    others may take it for another one."""
    if any(len(texts(found, tag)) > 1 for tag in _IDENTIFYING):
        raise Part10Error("the instance says several times which it is, or whose")
    if not all(can_be_read(text(found, tag)) for tag in (PATIENT_ID, ISSUER)):
        raise Part10Error("the patient's id cannot be read")
    try:
        check_right_uid(text(found, SOP_CLASS_UID), "SOPClassUID")
        uids = [check_right_uid(text(found, tag), "UID") for tag in (STUDY_UID, SERIES_UID, INSTANCE_UID)]
    except InvalidQuery:
        raise Part10Error("the instance does not say which it is") from None
    return Ref(*uids)


def _check(ref: Ref, stream: Part10Stream, study: str | None) -> None:
    """Raises _Refused for another study than the one asked for, and where nothing says which syntax the data set is in, or it is
    in another: who believes what is said would read something else than was checked here."""
    if not stream.file_meta.get("TransferSyntaxUID") or not stream.is_as_declared:
        raise _Refused(CANNOT_UNDERSTAND)
    if study not in (None, ref.study):
        raise _Refused(OTHER_STUDY)


async def _chunks(file: Path, size: int) -> AsyncIterator[bytes]:
    def begin() -> tuple[BinaryIO, bytes]:
        opened = file.open("rb", 0)
        return opened, opened.read(_AT_ONCE)

    opened, chunk = await run(None, begin)
    try:
        while chunk:
            yield chunk
            size -= len(chunk)
            chunk = await run(None, opened.read, _AT_ONCE) if size > 0 else b""
    finally:
        opened.close()
