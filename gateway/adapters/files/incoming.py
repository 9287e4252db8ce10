"""Takes an instance into a directory: written beside, read back, then put into its place, or not at all."""

from __future__ import annotations

import filecmp
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from gateway.adapters.files.scan import Held, read_held
from gateway.errors import InvalidQuery
from gateway.model.query import check_right_uid
from gateway.model.seam import Part, StoreOutcome
from gateway.wire.instance import Part10Error
from gateway.wire.threads import run

# Failure Reasons (0008,1197) of PS3.4 Table GG.4-1 and PS3.18 Table I.2-2.
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000
DUPLICATE = 0x0111
_SUFFIX = ".incoming"
_OURS = re.compile(rf"\.[0-9a-f]{{32}}\{_SUFFIX}")
_NOBODYS = 86_400.0
"""Seconds after which nobody writes on a file any more."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """One stored instance, or why it was not; `held` is what is new in the directory."""

    outcome: StoreOutcome
    held: Held | None = None


async def accept(
    executor: Executor, directory: Path, part: Part, place_of: Callable[[str], Path | None], character_set: str
) -> Accepted:
    """Stores one instance as study/series/instance.dcm. Storing the same bytes again is a success and changes nothing.

    `place_of` gives the file that holds a SOP Instance UID already. Errors of the part's body pass through; the
    half-written file is then gone. Needs memory for one chunk.
    """
    incoming = directory / f".{uuid4().hex}{_SUFFIX}"
    try:
        await _write(executor, incoming, part.body)
        return await run(executor, _place, directory, incoming, part.sop_instance_uid, place_of, character_set)
    except OSError:
        return Accepted(StoreOutcome("", part.sop_instance_uid, OUT_OF_RESOURCES))
    finally:
        with suppress(OSError):
            incoming.unlink(missing_ok=True)


def sweep(directory: Path) -> None:
    """Removes what a gateway that was killed in the middle of a store has left there: parts of patients' images."""
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if _OURS.fullmatch(entry.name) and time.time() - entry.stat(follow_symlinks=False).st_mtime > _NOBODYS:
                with suppress(OSError):
                    os.unlink(entry)


async def _write(executor: Executor, path: Path, body: AsyncIterator[bytes]) -> None:
    file = await run(executor, path.open, "xb")
    try:
        async for chunk in body:
            await run(executor, file.write, chunk)
        await run(executor, file.flush)
        await run(executor, os.fsync, file.fileno())
    finally:
        file.close()


def _place(
    directory: Path, incoming: Path, uid: str, place_of: Callable[[str], Path | None], character_set: str
) -> Accepted:
    try:
        status = incoming.stat()
        held = read_held(incoming, (status.st_mtime_ns, status.st_size), character_set)
        for name in (held.study, held.series, held.instance):
            check_right_uid(name, "UID")
    except (Part10Error, InvalidQuery):
        return Accepted(StoreOutcome("", uid, CANNOT_UNDERSTAND))
    if uid and uid != held.instance:
        return Accepted(StoreOutcome(held.sop_class, uid, CANNOT_UNDERSTAND))
    place = place_of(held.instance) or directory / held.study / held.series / f"{held.instance}.dcm"
    place.parent.mkdir(parents=True, exist_ok=True)
    if not _is_put(incoming, place):
        is_same = filecmp.cmp(incoming, place, shallow=False)
        return Accepted(StoreOutcome(held.sop_class, held.instance, 0 if is_same else DUPLICATE))
    return Accepted(StoreOutcome(held.sop_class, held.instance), replace(held, path=str(place)))


def _is_put(incoming: Path, place: Path) -> bool:
    """Puts a file into its place unless there is one: of two that come at once, the first."""
    try:
        place.hardlink_to(incoming)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if place.exists():
            return False
        incoming.replace(place)
    return True
