"""What several workers share: a private directory, one embedded Valkey, one secret, one store, one set of metric files."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from prometheus_client import multiprocess

from gateway.cache.embedded import MAX_SOCKET_PATH, EmbeddedServer
from gateway.errors import SettingsError
from gateway.leftovers import below_spool, claim, held, sweep
from gateway.metrics import FILES
from gateway.settings import Settings
from gateway.telemetry import log

_LOOK_EVERY = 1.0
_SOCKET = "cache"


@asynccontextmanager
async def environment(settings: Settings) -> AsyncIterator[dict[str, str]]:
    """The variables that make the workers one gateway; what they name goes when it is left. Raises SettingsError."""
    async with held(_private_directory) as directory:
        shared = {
            "GATEWAY_SECRET": settings.secret.get_secret_value() if settings.secret else secrets.token_urlsafe(32),
            # A Patient id that one worker gave out is asked of another.
            "GATEWAY_STORE": str(settings.store or directory / "store.sqlite"),
            # The ceiling is that of the machine's disk.
            "GATEWAY_SPOOL_BYTES": str(settings.spool_bytes // settings.workers),
            FILES: str(directory),
        }
        async with _cache(settings, directory) as url, _exports(settings) as exports:
            yield shared | url | exports


def forget_worker(pid: int, variables: Mapping[str, str]) -> None:
    """What a worker that has ended was doing at that moment counts no longer; what it has done does."""
    multiprocess.mark_process_dead(pid, variables[FILES])  # type: ignore[no-untyped-call]


@asynccontextmanager
async def _cache(settings: Settings, directory: Path) -> AsyncIterator[dict[str, str]]:
    if settings.redis_url or not settings.cache:
        yield {}
        return
    async with EmbeddedServer() as server:
        if server.socket is None:
            yield {"GATEWAY_CACHE": "false"}
            return
        name = directory / _SOCKET
        name.symlink_to(server.socket)
        keeping = asyncio.create_task(_keep(server, name))
        try:
            # It ends with this process: a record of what was seen would begin anew each time.
            yield {"GATEWAY_REDIS_URL": f"unix://{name}", "GATEWAY_SIGHTINGS_DAYS": "0"}
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


@asynccontextmanager
async def _exports(settings: Settings) -> AsyncIterator[dict[str, str]]:
    """One worker begins an export, others carry it on; not in memory, as what else they share may be."""
    if settings.export_directory or not settings.export_bytes:
        yield {}
        return
    async with held(partial(below_spool, settings.spool)) as directory:
        yield {"GATEWAY_EXPORT_DIRECTORY": str(directory / "exports")}


async def _keep(server: EmbeddedServer, name: Path) -> None:
    """Starts a server anew that is gone. It then listens elsewhere, but keeps its name for the workers."""
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        if await server.is_listening():
            continue
        is_back = await server.restart()
        log().warning("cache restarted", outcome="ok" if is_back else "failed")
        if server.socket is not None:
            following = name.with_suffix(".new")
            following.symlink_to(server.socket)
            following.replace(name)


def _private_directory() -> tuple[Path, int]:
    """In memory where that can be had: the store names patients, and memory only is what it is promised to be."""
    for parent in ("/dev/shm", tempfile.gettempdir(), "/tmp"):  # noqa: S108 - a 0700 directory is made in it
        if len(os.fsencode(parent)) + 50 > MAX_SOCKET_PATH:
            continue
        try:
            sweep(Path(parent))
            return claim(Path(parent))
        except OSError:
            continue
    raise SettingsError("no temporary directory can be written to: the workers need one that they share")
