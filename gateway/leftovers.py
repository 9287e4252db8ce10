"""Gives a process a private directory of its own, and removes those of processes that ended without cleaning up."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.errors import SettingsError

PREFIX = "imaging-gateway-spool-"
_LOCK = "lock"
_GRACE = 60.0


@asynccontextmanager
async def held(make: Callable[[], tuple[Path, int]]) -> AsyncIterator[Path]:
    """What one of the functions below makes, which goes when it is left. Raises as `make`."""
    directory, lock = await asyncio.to_thread(make)
    try:
        yield directory
    finally:
        try:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        finally:
            os.close(lock)


def below_spool(root: Path) -> tuple[Path, int]:
    """As `prepare`, below GATEWAY_SPOOL. Raises SettingsError."""
    try:
        return prepare(root)
    except OSError:
        raise SettingsError(f"GATEWAY_SPOOL: {root} cannot be written to") from None


def prepare(root: Path) -> tuple[Path, int]:
    """As `claim`, below a root that is made where it is missing, and swept."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    sweep(root)
    return claim(root)


def claim(root: Path) -> tuple[Path, int]:
    """A new 0700 directory below `root`, and the descriptor of the lock that marks it as in use. Raises OSError."""
    for _ in range(5):
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        try:
            lock = os.open(directory / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue
        if _take(lock) and (directory / _LOCK).exists():
            return directory, lock
        # Another process swept it away between the two steps.
        os.close(lock)
    raise OSError("no private directory could be claimed")


def sweep(root: Path) -> int:
    """Removes this user's directories below `root` whose process is gone: its lock went with it, however it ended."""
    return sum(_remove_if_orphaned(candidate) for candidate in root.glob(PREFIX + "*"))


def _remove_if_orphaned(directory: Path) -> bool:
    try:
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return _remove_if_old(directory)
    except OSError:
        return False
    try:
        orphaned = _take(lock)
        if orphaned:
            shutil.rmtree(directory, ignore_errors=True)
        return orphaned
    finally:
        os.close(lock)


def _remove_if_old(directory: Path) -> bool:
    """A directory without a lock is one that is being claimed right now, or one whose claimer ended right then."""
    try:
        old = time.time() - directory.lstat().st_mtime > _GRACE
    except OSError:
        return False
    if old:
        shutil.rmtree(directory, ignore_errors=True)
    return old


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
