"""Decoding and rendering in a few processes of their own: bounded in number, size and time, and replaced when they die."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from gateway.errors import ImagingBusy, NotAcceptable, TooLarge
from gateway.imaging.lengths import LENGTHS
from gateway.imaging.options import Rendering
from gateway.model.dataset import Dataset

_PACKAGES = ("PIL", "openjpeg", "rle", "jpeg_ls", "_gdcm")
_MOST_WAITING = 64
_BASE_MEMORY = 1536 << 20
_MEMORY_PER_PIXEL = 40
_HELD_PER_PIXEL = 8
_IDLE_SECONDS = 60.0
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR")


class EncodedFrame(NamedTuple):
    """One frame as it came: its own image attributes (`frame_attributes`), its syntax and its bytes."""

    attributes: Dataset
    transfer_syntax: str
    data: bytes


class Recoded(NamedTuple):
    """A frame in another syntax, and the image attributes that hold for it, by pydicom's names."""

    told: dict[str, Any]
    data: bytes


@dataclass(slots=True)
class _Worker:
    """One process and the connection to it."""

    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    rests_since: float = 0.0

    async def ask(self, asked: dict[str, Any], data: Sequence[bytes]) -> tuple[dict[str, Any], bytes]:
        head = orjson.dumps(asked)
        self.writer.write(LENGTHS.pack(len(head), sum(map(len, data))) + head)
        for piece in data:
            self.writer.write(piece)
            await self.writer.drain()
        head_length, body_length = LENGTHS.unpack(await self.reader.readexactly(LENGTHS.size))
        told = orjson.loads(await self.reader.readexactly(head_length))
        return told, await self.reader.readexactly(body_length)

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None and not self.reader.at_eof()

    async def end(self) -> None:
        self.process.kill()
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()
        await asyncio.to_thread(self.process.wait)


class Imaging:
    """At most `processes` at work; each piece of work has `seconds`, and waits as long for its turn. What is `patient` waits
    without end and is never turned away: an answer that has begun cannot say that too many images are being decoded.

    Processes start when they are first needed. Nothing of `most_pixels` or more is begun. Without the extra `pixels`
    everything here raises NotAcceptable.
    """

    def __init__(self, processes: int, seconds: float, most_pixels: int) -> None:
        self.most_pixels = most_pixels
        self._seconds = seconds
        self._places = asyncio.Semaphore(processes)
        self._idle: list[_Worker] = []
        self._tasks: set[asyncio.Task[tuple[dict[str, Any], bytes]]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._held = 0
        self._missing: tuple[str, ...] | None = None

    async def open(self) -> None:
        """Starts nothing yet."""

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._idle:
            await worker.end()
        self._idle.clear()
        await asyncio.gather(*self._ending, return_exceptions=True)

    def require(self) -> None:
        """Raises NotAcceptable where the packages that decode are not installed."""
        if self._missing is None:
            self._missing = tuple(name for name in _PACKAGES if find_spec(name) is None)
        if self._missing:
            raise NotAcceptable(
                "this gateway decodes no pixels: the extra is not installed (pip install imaging-gateway[pixels])",
                parameter="Accept",
            )

    def check_size(self, pixels: int) -> None:
        """Raises TooLarge for more pixels than one piece of work may have."""
        if pixels > self.most_pixels:
            raise TooLarge(f"{pixels} pixels are more than are decoded at once ({self.most_pixels}); ask for less")

    @contextmanager
    def holding(self, size: int, *, patient: bool = False) -> Iterator[None]:
        """Whoever fetches frames to have them decoded holds about so many bytes. Raises ImagingBusy where all of them
        together would be too many; one alone never is."""
        if not patient and self._held and self._held + size > _HELD_PER_PIXEL * self.most_pixels:
            raise ImagingBusy("too many images are being decoded", retry_after=1.0)
        self._held += size
        try:
            yield
        finally:
            self._held -= size

    async def render(self, frames: Sequence[EncodedFrame], rendering: Rendering) -> bytes:
        """The frames as one PNG or JPEG, several as one GIF. Raises NotAcceptable for what cannot be decoded."""
        told = [
            {"attributes": one.attributes, "transfer_syntax": one.transfer_syntax, "length": len(one.data)}
            for one in frames
        ]
        asked = {"work": "render", "frames": told, "rendering": rendering.to_json()}
        return (await self._ask(asked, [one.data for one in frames]))[1]

    async def recode(self, frame: EncodedFrame, into: str = "", *, patient: bool = False) -> Recoded:
        """The frame in the syntax `into`; '' is native, little endian. Raises NotAcceptable where that cannot be."""
        asked = {
            "work": "recode",
            "attributes": frame.attributes,
            "transfer_syntax": frame.transfer_syntax,
            "into": into,
        }
        return Recoded(*await self._ask(asked, [frame.data], patient=patient))

    async def neutral(self, columns: int, rows: int, word: str, media_type: str) -> bytes:
        """A picture that shows nothing of an instance but one word."""
        asked = {"work": "neutral", "columns": columns, "rows": rows, "word": word, "media_type": media_type}
        return (await self._ask(asked, []))[1]

    async def _ask(
        self, asked: dict[str, Any], data: Sequence[bytes], *, patient: bool = False
    ) -> tuple[dict[str, Any], bytes]:
        """Who leaves before their turn is not worked for. Later, a process is not taken along: the work is ended in its time,
        and its place is free then."""
        self.require()
        if not patient and len(self._tasks) >= _MOST_WAITING:
            raise ImagingBusy("too many images are being decoded", retry_after=1.0)
        turn = asyncio.Event()
        task = asyncio.create_task(self._in_turn(asked, data, turn, None if patient else self._seconds))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            told, given = await asyncio.shield(task)
        except asyncio.CancelledError:
            if not turn.is_set():
                task.cancel()
            raise
        if "failed" in told:
            raise _failure(told["failed"])
        return told, given

    async def _in_turn(
        self, asked: dict[str, Any], data: Sequence[bytes], turn: asyncio.Event, wait: float | None
    ) -> tuple[dict[str, Any], bytes]:
        try:
            async with asyncio.timeout(wait):
                await self._places.acquire()
        except TimeoutError:
            raise ImagingBusy("other images are being decoded", retry_after=self._seconds / 2) from None
        turn.set()
        try:
            async with asyncio.timeout(self._seconds):
                return await self._at(await self._worker(), asked, data)
        except TimeoutError:
            detail = f"the image is not decoded within {self._seconds:g} s; ask for it as stored"
            raise TooLarge(detail) from None
        finally:
            self._places.release()

    async def _at(self, worker: _Worker, asked: dict[str, Any], data: Sequence[bytes]) -> tuple[dict[str, Any], bytes]:
        is_whole = False
        try:
            reply = await worker.ask(asked, data)
            is_whole = True
        except (OSError, EOFError):
            raise _failure("decode") from None
        finally:
            if is_whole:
                self._idle.append(worker)
                worker.rests_since = asyncio.get_running_loop().time()
                asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._retire, worker)
            else:
                await asyncio.shield(worker.end())
        return reply

    def _retire(self, worker: _Worker) -> None:
        """Ends a process that nothing was asked of for a while: it may still hold the memory of its largest image."""
        since = asyncio.get_running_loop().time() - worker.rests_since
        if worker in self._idle and since >= _IDLE_SECONDS:
            self._idle.remove(worker)
            ending = asyncio.create_task(worker.end())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _worker(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive:
                return worker
            await worker.end()
        return await self._started()

    async def _started(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.to_thread(self._begin, theirs)
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        return _Worker(process, reader, writer)

    def _begin(self, peer: socket.socket) -> subprocess.Popen[bytes]:
        """In an environment without our secrets, and out of reach of the terminal's Ctrl-C."""
        tree = str(Path(__file__).resolve().parents[2])
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment |= {"PYTHONPATH": tree, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        memory = _BASE_MEMORY + _MEMORY_PER_PIXEL * self.most_pixels
        command = [sys.executable, "-P", "-m", "gateway.imaging.worker", str(memory), str(self.most_pixels)]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=peer.fileno(), stdout=quiet, stderr=quiet, env=environment, start_new_session=True
        )


def _failure(kind: str) -> Exception:
    if kind == "memory":
        return TooLarge("the image needs more memory than one may take here; ask for it as stored")
    if kind == "region":
        return NotAcceptable("the region lies outside of the image", parameter="viewport")
    return NotAcceptable("the pixel data cannot be decoded, or not be given like this; ask for it as stored")
