"""Keeps fetched instances on disk for a short while, for nodes that give no metadata, frames or bulk data."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from gateway.cache.shelf import NotSpooled, Shelf, SpooledInstance
from gateway.leftovers import below_spool, held
from gateway.model.query import Ref

_log = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 2 * 1024**3
DEFAULT_MAX_AGE = 600.0
_BLOCK = 1 << 20
_THREADS = 4

__all__ = ["NotSpooled", "Spool", "SpooledInstance", "Writer"]


class Spool:
    """A directory of this process with at most `max_bytes` in it, nothing older than `max_age` seconds.

    Without `max_bytes` it is off: it takes nothing and finds nothing. `directory` is where the private directory is
    made (the system's temporary one by default). Files are 0600; what a crash leaves behind goes at the next `open`.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        max_bytes: int | None = DEFAULT_MAX_BYTES,
        max_age: float = DEFAULT_MAX_AGE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shelf = Shelf(max_bytes or 0, max_age, clock)
        self._root = directory
        self._directory: Path | None = None
        self._private = AsyncExitStack()
        self._threads: ThreadPoolExecutor | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def used(self) -> int:
        """Bytes taken, those being written and those that only a reader still holds included."""
        return self._shelf.used

    @property
    def directory(self) -> Path | None:
        """Where the files are; None when the spool is off or closed."""
        return self._directory

    async def open(self) -> None:
        """Raises SettingsError when the directory cannot be used."""
        if self._shelf.max_bytes <= 0:
            return
        root = self._root or Path(tempfile.gettempdir())
        self._directory = await self._private.enter_async_context(held(partial(below_spool, root)))
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="spool")
        self._sweeper = asyncio.create_task(self._sweep_on(), name="spool sweeper")

    async def close(self) -> None:
        """Removes everything; writers still at work take nothing more, and readers should be gone."""
        self._shelf.shut()
        self._directory = None
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)
        await self._private.aclose()

    @property
    def position(self) -> int:
        """Where it is in what it was told to forget: whoever retrieves notes it before (`since`)."""
        return self._shelf.position

    def begin(
        self,
        node: str,
        study: str,
        series: str,
        instance: str,
        *,
        transfer_syntax: str = "",
        size: int | None = None,
        since: int | None = None,
    ) -> Writer:
        """A writer for one instance, to be used in `async with`. With `size`, what is too large is refused at once; with
        `since`, what is of a study or a node that was forgotten after that position is not taken."""
        taken = SpooledInstance(Path(), node, study, series, instance, 0, transfer_syntax)
        directory = self._directory if (size or 0) <= self._shelf.max_bytes else None
        return Writer(self._shelf, self._submit, taken, directory, since)

    def find(
        self, node: str, study: str, series: str | None = None, instance: str | None = None
    ) -> list[SpooledInstance]:
        """What is there of a study, a series or an instance, in the order it came; not always all (`is_complete`)."""
        return self._shelf.find(node, study, series, instance)

    def complete(self, node: str, ref: Ref, instances: Iterable[str]) -> bool:
        """Marks a series (or study) as whole: `instances` are all the SOP Instance UIDs that the node gave for it.

        False, and no mark, when one of them is not there (refused, failed, evicted), or when there is none. What is
        there beyond them the node no longer has, and goes. The mark goes with the first instance that leaves.
        """
        done, doomed = self._shelf.complete(node, ref, instances)
        self._delete(doomed)
        return done

    def is_complete(self, node: str, study: str, series: str | None = None) -> bool:
        """Whether `find` gives all instances of the study, or of the series."""
        return self._shelf.is_complete(node, study, series)

    @contextlib.contextmanager
    def pin(self, instance: SpooledInstance) -> Iterator[Path]:
        """The path of the file, which stays until the block ends. Counts as a use. Raises NotSpooled."""
        entry = self._shelf.pin(instance)
        try:
            yield instance.path
        finally:
            self._delete(self._shelf.unpin(entry))

    def forget(self, node: str, study: str | None = None) -> None:
        """Drops a study of a node, or all that came from the node."""
        self._delete(self._shelf.forget(node, study))

    async def _sweep_on(self) -> None:
        while True:
            await asyncio.sleep(min(30.0, max(0.05, self._shelf.max_age / 10)))
            self._delete(self._shelf.expire())

    def _delete(self, doomed: list[Path]) -> None:
        if doomed:
            self._submit(_delete, self._shelf, doomed)

    def _submit(self, work: Callable[..., None], *arguments: Any) -> Future[None]:
        """Starts file work in a thread, or does it here when the threads are gone."""
        threads = self._threads
        if threads is not None:
            return threads.submit(work, *arguments)
        done: Future[None] = Future()
        with contextlib.suppress(OSError):
            work(*arguments)
        done.set_result(None)
        return done


class Writer:
    """Takes one instance into the spool. Whoever streams it goes on the same whether the spool takes it or not.

    Use it in `async with`: leaving without `commit` aborts. One task writes; several writers may have one instance.
    """

    def __init__(
        self,
        shelf: Shelf,
        submit: Callable[..., Future[None]],
        instance: SpooledInstance,
        directory: Path | None,
        since: int | None,
    ) -> None:
        self._since = since
        self._shelf = shelf
        self._submit = submit
        self._instance = instance
        self._directory = directory
        self._name = secrets.token_hex(16)
        self._gathered: list[bytes] = []
        self._held = 0
        self._size = 0
        self._file: FileIO | None = None
        # A cancelled caller leaves its last piece of work running in a thread; the lock keeps `abort` out of its way.
        self._lock = threading.Lock()
        self._ended = directory is None
        self._committed: SpooledInstance | None = None

    async def write(self, chunk: bytes) -> bool:
        """False when the instance is not (or no more) taken: too large, all room in use, or a disk error."""
        if self._ended:
            return False
        doomed = self._shelf.make_room(self._size, len(chunk))
        if doomed is None:
            await self.abort()
            return False
        self._size += len(chunk)
        self._gathered.append(chunk)
        self._held += len(chunk)
        if doomed:
            await self._do(_delete, self._shelf, doomed)
        return self._held < _BLOCK or await self._do(self._append, self._take_gathered())

    async def commit(self) -> SpooledInstance | None:
        """Makes the instance findable, by an atomic rename; None when it was not taken."""
        if not self._ended:
            await self._do(self._finish, self._take_gathered())
        return self._committed

    async def abort(self) -> None:
        """Removes what was written. Nothing after a commit."""
        await _finished(self._submit(self._discard))

    async def __aenter__(self) -> Writer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ended:
            await self.abort()

    def _take_gathered(self) -> list[bytes]:
        gathered, self._gathered, self._held = self._gathered, [], 0
        return gathered

    async def _do(self, work: Callable[..., None], *arguments: Any) -> bool:
        try:
            await _finished(self._submit(work, *arguments))
        except OSError as error:
            _log.warning("the spool cannot write: %s", type(error).__name__)
            await self.abort()
        return not self._ended or self._committed is not None

    def _append(self, chunks: list[bytes]) -> None:
        with self._lock:
            if not self._ended:
                self._write(chunks)

    def _write(self, chunks: list[bytes]) -> None:
        if self._file is None:
            self._file = FileIO(self._path(".part"), "xb", opener=_open_private)
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[self._file.write(view) or 0 :]

    def _finish(self, chunks: list[bytes]) -> None:
        with self._lock:
            if self._ended or self._directory is None:
                return
            self._write(chunks)
            if self._file is not None:
                self._file.close()
            path = self._path(".dcm")
            self._path(".part").rename(path)
            it = self._instance
            self._committed = SpooledInstance(
                path, it.node, it.study, it.series, it.instance, self._size, it.transfer_syntax
            )
            self._ended = True
            _delete(self._shelf, self._shelf.admit(self._committed, self._since))

    def _discard(self) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
            if self._file is not None:
                self._file.close()
                _unlink(self._path(".part"))
            self._shelf.give_back(self._size)

    def _path(self, suffix: str) -> Path:
        assert self._directory is not None
        return self._directory / (self._name + suffix)


async def _finished(work: Future[None]) -> None:
    """Waits for work in a thread. A cancelled caller leaves it running: unshielded it might never start."""
    await asyncio.shield(asyncio.wrap_future(work))


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _delete(shelf: Shelf, paths: list[Path]) -> None:
    for path in paths:
        _unlink(path)
    shelf.gone(paths)


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
