"""STOW-RS on the simulator's side (PS3.18 10.5): takes a multipart body apart on disk and keeps its instances."""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from starlette.requests import Request

from gateway.simulators._directory import UNREADABLE, Directory, Json

CANNOT_UNDERSTAND, MISMATCH = 0xC000, 0xA900


@dataclass(frozen=True)
class Received:
    """One part; `failure` is the Failure Reason (0008,1197), 0 when it was stored."""

    study: str = ""
    sop_class: str = ""
    uid: str = ""
    failure: int = 0


async def receive(request: Request, boundary: str, directory: Directory, study: str | None) -> list[Received]:
    """Stores every part of the body; it lies on disk meanwhile. `study`, if given, is the only one that is taken."""
    with tempfile.TemporaryFile() as spool:
        async for chunk in request.stream():
            spool.write(chunk)
        return await asyncio.to_thread(_stored, spool, boundary, directory, study)


def _stored(spool: IO[bytes], boundary: str, directory: Directory, study: str | None) -> list[Received]:
    spool.flush()
    if not spool.tell():
        return []
    with mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ) as body:
        return [_keep(body, start, end, directory, study) for start, end in _parts(body, boundary.encode())]


def _parts(body: mmap.mmap, boundary: bytes) -> Iterator[tuple[int, int]]:
    """Where the content of each part lies. A part without a boundary after it is not counted: the body was cut."""
    delimiter = b"--" + boundary
    at = body.find(delimiter)
    while at >= 0 and body[at + len(delimiter) : at + len(delimiter) + 2] != b"--":
        end = body.find(b"\r\n" + delimiter, at + len(delimiter))
        head = body.find(b"\r\n\r\n", at, end)
        if end < 0 or head < 0:
            return
        yield head + 4, end
        at = end + 2


def _keep(body: mmap.mmap, start: int, end: int, directory: Directory, study: str | None) -> Received:
    name = hashlib.sha256(str((start, end, id(body))).encode()).hexdigest()[:16]
    fresh = directory.root / f".{name}.part"
    with fresh.open("wb") as file:
        for at in range(start, end, 1 << 20):
            file.write(body[at : min(at + (1 << 20), end)])
    received = _examined(fresh, study)
    if received.failure:
        fresh.unlink()
    else:
        directory.add(fresh.rename(directory.root / f"{received.uid}.dcm"))
    return received


def _examined(path: Path, study: str | None) -> Received:
    try:
        header = dcmread(
            path, specific_tags=["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"], stop_before_pixels=True
        )
        received = Received(str(header.StudyInstanceUID), str(header.SOPClassUID), str(header.SOPInstanceUID))
    except (InvalidDicomError, EOFError, *UNREADABLE):
        return Received(failure=CANNOT_UNDERSTAND)
    if study not in (None, received.study):
        return Received(received.study, received.sop_class, received.uid, MISMATCH)
    return received


def store_response(received: list[Received], base: str) -> Json:
    """The data set of PS3.18 Table 10.5.3-1."""
    stored = [_reference(one) | _retrieve_url(one, base) for one in received if not one.failure]
    failed = [_reference(one) | {"00081197": {"vr": "US", "Value": [one.failure]}} for one in received if one.failure]
    answer: Json = {}
    for tag, items in (("00081199", stored), ("00081198", failed)):
        if items:
            answer[tag] = {"vr": "SQ", "Value": items}
    return answer


def _reference(one: Received) -> Json:
    return {
        "00081150": {"vr": "UI", "Value": [one.sop_class]} if one.sop_class else {"vr": "UI"},
        "00081155": {"vr": "UI", "Value": [one.uid]} if one.uid else {"vr": "UI"},
    }


def _retrieve_url(one: Received, base: str) -> Json:
    return {"00081190": {"vr": "UR", "Value": [f"{base}/studies/{one.study}"]}}
