"""Keeps the index of a directory up to date while others search it: one scan at a time serves all who wait."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gateway.adapters.files.index import Index
from gateway.adapters.files.scan import Held, Stamp, listing, read_held
from gateway.errors import NodeBusy, NodeError, NodeProtocolError, NodeUnreachable
from gateway.leftovers import prepare
from gateway.model.query import Ref
from gateway.wire.instance import Part10Error
from gateway.wire.threads import Threads, run

_THREADS = 4
_FAILURES = (OSError, Part10Error, sqlite3.Error)
_BATCH = 100
_PARTING = 10.0
_SETTLED = 2.0
"""Seconds after its last change from which on a broken file counts as broken, and not as being written."""


class Catalogue:
    """The files of one node. Blocking work on them goes through `threads`; failures become NodeErrors. `unread` is how many files
    and directories the last scan could not look into, of which nothing is known."""

    def __init__(self, node: str, directory: Path, index: Path | None, rescan: float, character_set: str) -> None:
        """`index` is the SQLite file; None is a temporary one, readable by this user only and gone with `close`, or at somebody's
        next start where the process was killed."""
        self.node = node
        self.directory = directory
        self.character_set = character_set
        self._file = index
        self._private: tuple[Path, int] | None = None
        self._rescan = rescan
        self._stop = threading.Event()
        self._scan: asyncio.Task[None] | None = None
        self.unread = 0
        self._scanned = float("-inf")
        """When the last scan that came to its end began."""

    async def open(self) -> None:
        """Makes the index and begins to fill it; the first search waits until it is filled."""
        self._stop.clear()
        self.readers = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"files-{self.node}")
        self.threads = Threads(self.readers, _FAILURES, self._told)
        self._scanner = ThreadPoolExecutor(1, thread_name_prefix=f"files-{self.node}-scan")
        file = self._file
        if file is None:
            self._private = await self.threads.call(prepare, Path(tempfile.gettempdir()))
            file = self._private[0] / "index.sqlite"
        settings = {"directory": str(self.directory.absolute()), "character_set": self.character_set}
        self.index = Index(file, settings)
        await self.threads.call(self.index.open)
        self._begin_scan()

    async def close(self) -> None:
        """Stops a scan that is under way after its current batch, and leaves alone one that hangs in a share."""
        self._stop.set()
        if self._scan is not None:
            await asyncio.wait([self._scan], timeout=_PARTING)
        for pool in (self._scanner, self.readers):
            pool.shutdown(wait=False)
        private, self._private = self._private, None
        if private is not None:
            shutil.rmtree(private[0], ignore_errors=True)
            os.close(private[1])

    async def up_to_date(self, *, at_once: bool = False) -> None:
        """Waits until the index shows the directory as it was at most `rescan` seconds ago.

        Raises NodeUnreachable without the directory.
        """
        wanted = time.monotonic() - (0.0 if at_once else self._rescan)
        while self._scanned < wanted:
            # Whoever waits may be cancelled; the scan goes on for the others.
            await asyncio.shield(self._scan if self._scan and not self._scan.done() else self._begin_scan())

    async def held(self, ref: Ref) -> list[Held]:
        """The files under `ref` as they are now: the directory is looked through again when they have changed."""
        if self._scanned == float("-inf"):
            await self.up_to_date()
        found = await self.threads.call(self.index.files, ref)
        is_fresh: bool = await self.threads.call(_are_unchanged, found)
        if found and is_fresh:
            return found
        await self.up_to_date(at_once=bool(found))
        return await self.threads.call(self.index.files, ref)

    def _told(self, error: Exception) -> NodeError:
        """The error of this house for what files and SQLite raise, whose own texts name paths."""
        if isinstance(error, Part10Error):
            return NodeProtocolError(self.node, "a file is broken or was changed while it was read")
        if isinstance(error, sqlite3.Error):
            return NodeBusy(self.node, "the index cannot be used")
        return NodeUnreachable(self.node, "a file cannot be read")

    def _begin_scan(self) -> asyncio.Task[None]:
        self._scan = asyncio.create_task(self._scan_once(time.monotonic()))
        self._scan.add_done_callback(lambda scan: scan.cancelled() or scan.exception())  # perhaps nobody waits for it
        return self._scan

    async def _scan_once(self, began: float) -> None:
        """What it found counts before anyone else can run: whoever waits for a scan that has ended never gives way."""
        try:
            await run(self._scanner, self._look_through)
            self._scanned = began
        except OSError:
            raise NodeUnreachable(self.node, "the directory cannot be read") from None
        except sqlite3.Error:
            raise NodeBusy(self.node, "the index cannot be written") from None

    def _look_through(self) -> None:
        """In batches, so that a stopped scan has not worked in vain."""
        self.index.restore()
        now, known = listing(self.directory), self.index.stamps()
        gone = [path for path in known if path not in now.files and not now.hides(path)]
        self.index.update([], [], gone)
        unread = sum(not self.index.holds(path) for path in now.unread)
        changed = [(path, stamp) for path, stamp in now.files.items() if known.get(path) != stamp]
        for start in range(0, len(changed), _BATCH):
            if self._stop.is_set():
                return
            unread += self._take_in(changed[start : start + _BATCH])
        self.unread = unread

    def _take_in(self, changed: Sequence[tuple[str, Stamp]]) -> int:
        """What is broken and was changed just now may still be being written: it is tried again, as is what may not be read, which
        is counted.

        So is what held an instance until now, which stays known: its study is incomplete, and must not pass for whole.
        """
        unread = 0
        read: list[Held] = []
        refused: list[tuple[str, Stamp]] = []
        gone: list[str] = []
        for path, stamp in changed:
            try:
                read.append(read_held(Path(path), stamp, self.character_set))
            except (OSError, ValueError, TypeError) as error:
                if self.index.holds(path):
                    continue
                if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                    unread += 1
                elif time.time() - stamp[0] / 1e9 > _SETTLED:
                    refused.append((path, stamp))
                else:
                    gone.append(path)
        self.index.update(read, refused, gone)
        return unread


def _are_unchanged(found: Sequence[Held]) -> bool:
    for held in found:
        try:
            status = Path(held.path).stat()
        except OSError:
            return False
        if (status.st_mtime_ns, status.st_size) != held.stamp:
            return False
    return True
