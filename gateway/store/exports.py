"""Export jobs on disk: what was asked, each finished step, the lines it gave; shared by every replica that has the directory.

A step is committed by one link(2): its record names its files, so that a step done twice, or killed in the middle, counts once
or not at all. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import orjson

from gateway.errors import SettingsError, TooLarge

_JOB = re.compile(r"[0-9a-f]{32}")
_RECORD = re.compile(r"\d{8}\.json")
_ASKED, _ALIVE, _GONE, _COMING = "job.json", "alive", ".gone-", ".new-"
FAILED = "failed"
MARK = 16
"""Bytes of a mark: a digest that stands for one line."""
HEAD = 8
"""Those bytes at a mark's beginning that say which marks are looked at together."""
MOST_KEPT = 1000
"""Jobs that are kept at once: they are looked through every few seconds."""


@dataclass(frozen=True, slots=True)
class Job:
    """One export as it was asked for: `owner` is whose it is, `asked` what; both are JSON that only the edge understands."""

    id: str
    owner: dict[str, Any]
    asked: dict[str, Any]
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class File:
    """One finished output file: `kind` is what its lines are."""

    name: str
    kind: str
    count: int
    size: int


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is done: `state` is what the next one starts from, `size` the bytes of the job so far.

    `outcome` is '' while there is more to do, then "complete" or "failed". Step 0 is that of a job nothing was done for.
    """

    number: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    size: int = 0
    outcome: str = ""
    marks: str = ""
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Body:
    """The lines of one file to be."""

    kind: str
    count: int
    lines: bytes


class Exports:
    """The jobs below a directory; `max_bytes` is the ceiling of what all their files take."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self._over: dict[str, int] = {}
        self._creating = Lock()

    def open(self) -> None:
        """Makes the directory, for this user only. Raises SettingsError, also where files cannot be linked in it."""
        probe = self.directory / f"{_COMING}{secrets.token_hex(8)}"
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.directory.chmod(0o700)
            probe.mkdir(mode=0o700)
            _write(probe / "one", b"")
            os.link(probe / "one", probe / "other")
        except OSError:
            raise SettingsError(
                "GATEWAY_EXPORT_DIRECTORY: cannot be made private to this user, or has no hard links"
            ) from None
        finally:
            shutil.rmtree(probe, ignore_errors=True)

    def create(self, job: Job, require: Callable[[Sequence[Job]], None] = lambda jobs: None) -> None:
        """The job is there with all that it is, or not at all. Raises TooLarge where there is no room for any lines, and as
        `require` does of the jobs that are not over: one is looked at and created after the other, also by several replicas."""
        with self._creating, _alone(self.directory):
            require([job for job in map(self.job, self.unfinished()) if job is not None])
            self._create(job)

    def _create(self, job: Job) -> None:
        if self.used() >= self.max_bytes or len(self.jobs()) >= MOST_KEPT:
            raise TooLarge("the exports that are kept fill their directory; delete one, or wait until one expires")
        coming = self.directory / f"{_COMING}{job.id}"
        coming.mkdir(mode=0o700)
        _write(coming / _ASKED, orjson.dumps(job))
        _write(coming / _ALIVE, b"")
        _sync(coming)
        coming.rename(self.directory / job.id)
        _sync(self.directory)

    def job(self, identifier: str) -> Job | None:
        if not _JOB.fullmatch(identifier):
            return None
        try:
            return Job(**orjson.loads((self.directory / identifier / _ASKED).read_bytes()))
        except FileNotFoundError:
            return None

    def jobs(self) -> list[str]:
        """The ids of all that are kept."""
        return [entry.name for entry in os.scandir(self.directory) if _JOB.fullmatch(entry.name)]

    def last(self, identifier: str) -> Step:
        """The last finished step. Raises FileNotFoundError when the job is gone."""
        names = [entry.name for entry in os.scandir(self.directory / identifier) if _RECORD.fullmatch(entry.name)]
        return self._step(identifier, max(names)) if names else Step()

    def steps(self, identifier: str) -> list[Step]:
        """All finished steps in order."""
        names = [entry.name for entry in os.scandir(self.directory / identifier) if _RECORD.fullmatch(entry.name)]
        return [self._step(identifier, name) for name in sorted(names)]

    def _step(self, identifier: str, name: str) -> Step:
        told = orjson.loads((self.directory / identifier / name).read_bytes())
        return Step(**{**told, "files": tuple(File(**each) for each in told["files"])})

    def seen(self, identifier: str, marks: set[bytes]) -> set[bytes]:
        """The marks that finished steps have given and that begin as one of these; one step's are in memory at a time."""
        found: set[bytes] = set()
        heads = {mark[:HEAD] for mark in marks}
        for step in self.steps(identifier):
            if step.marks:
                told = (self.directory / identifier / step.marks).read_bytes()
                found.update(told[at : at + MARK] for at in range(0, len(told), MARK) if told[at : at + HEAD] in heads)
        return found

    def commit(
        self,
        identifier: str,
        before: Step,
        state: dict[str, Any],
        bodies: Sequence[Body],
        marks: Iterable[bytes] = (),
        outcome: str = "",
    ) -> bool:
        """Writes the step after `before`; False when another has written it meanwhile, and this one left nothing. Of a job that
        failed no lines are kept: nobody is given them.

        Raises FileNotFoundError when the job is gone, TooLarge when the lines would exceed the ceiling.
        """
        home, number, token = self.directory / identifier, before.number + 1, secrets.token_hex(4)
        size, told = sum(len(body.lines) for body in bodies), b"".join(marks)
        if size and self.used() + size > self.max_bytes:
            raise TooLarge("the export would exceed what all exports together may take (GATEWAY_EXPORT_BYTES)")
        files = tuple(
            File(f"{number:08d}-{token}-{part}.{body.kind}.ndjson", body.kind, body.count, len(body.lines))
            for part, body in enumerate(bodies)
        )
        named = f"{number:08d}-{token}.marks" if told else ""
        is_failed = outcome == FAILED
        step = Step(number, state, files, 0 if is_failed else before.size + size, outcome, named)
        written = [home / file.name for file in files]
        contents = [body.lines for body in bodies]
        if named:
            written.append(home / named)
            contents.append(told)
        is_done = False
        try:
            for path, content in zip(written, contents, strict=True):
                _write(path, content)
            is_done = _commit(home / f"{number:08d}.json", orjson.dumps(step), token)
        finally:
            if not is_done:  # also where there was no room: what is tried again begins anew
                for path in written:
                    path.unlink(missing_ok=True)
        if is_done:
            self.touch(identifier)
        if is_done and is_failed:
            _drop_lines(home)
        return is_done

    def path(self, identifier: str, name: str) -> Path:
        """Where a file lies that a step names."""
        return self.directory / identifier / name

    def touch(self, identifier: str) -> None:
        """Says that the job is being worked on. Raises FileNotFoundError when it is gone."""
        os.utime(self.directory / identifier / _ALIVE)

    def quiet(self, identifier: str) -> float:
        """Seconds since the last sign of work."""
        return time.time() - (self.directory / identifier / _ALIVE).stat().st_mtime

    def remove(self, identifier: str) -> bool:
        """Takes the job away at one moment, then its files; whoever works on it notices. False when it was gone already."""
        gone = self.directory / f"{_GONE}{identifier}-{secrets.token_hex(4)}"
        try:
            (self.directory / identifier).rename(gone)
        except FileNotFoundError:
            return False
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def used(self) -> int:
        """Bytes of the lines of all jobs."""
        return sum(size for size, _ in self._sizes().values())

    def unfinished(self) -> list[str]:
        """The ids of the jobs that are not over."""
        return [identifier for identifier, (_, is_over) in self._sizes().items() if not is_over]

    def _sizes(self) -> dict[str, tuple[int, bool]]:
        """The bytes of every job, and whether it is over: that is looked up once."""
        sizes, over = {}, dict(self._over)
        for identifier in self.jobs():
            if identifier in over:
                sizes[identifier] = over[identifier], True
                continue
            with contextlib.suppress(FileNotFoundError):
                last = self.last(identifier)
                sizes[identifier] = last.size, bool(last.outcome)
        self._over = {identifier: size for identifier, (size, is_over) in sizes.items() if is_over}
        return sizes

    def sweep(self, seconds: float) -> list[str]:
        """Removes what has been at rest for so long, and what a removal or a beginning left behind when it was killed."""
        for entry in os.scandir(self.directory):
            if entry.name.startswith((_GONE, _COMING)) and _age(entry) > seconds:
                shutil.rmtree(entry.path, ignore_errors=True)
        expired = []
        for identifier in self.jobs():
            with contextlib.suppress(FileNotFoundError):
                if self.quiet(identifier) > seconds and self.remove(identifier):
                    expired.append(identifier)
        return expired


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Inside, no other process is; where the file system can lock a directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _drop_lines(home: Path) -> None:
    for entry in os.scandir(home):
        if entry.name.endswith((".ndjson", ".marks")):
            Path(entry.path).unlink(missing_ok=True)


def _age(entry: os.DirEntry[str]) -> float:
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return 0.0


def _write(path: Path, content: bytes) -> None:
    """A new file that is on the disk before it is named anywhere. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _commit(path: Path, record: bytes, token: str) -> bool:
    """The first to give the record its name wins: link(2) refuses one that is taken, where a rename would replace it."""
    coming = path.with_name(f"{path.name}.{token}")
    _write(coming, record)
    try:
        os.link(coming, path)
    except FileExistsError:
        return False
    finally:
        coming.unlink(missing_ok=True)
    _sync(path.parent)
    return True
