"""A gateway as its users meet it: the real application in a real server on a port of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette

from gateway import settings
from gateway.app import create_app
from gateway.cli.sending import Protocol
from gateway.federation.nodes import NodeFile
from gateway.pipeline import Views
from gateway.simulators._server import PromptServer

TRUST = httpx.create_ssl_context()
"""One for all clients of the tests: reading the system's certificates for each takes longer than most of what they ask."""


@contextmanager
def serving(app: Any) -> Iterator[int]:
    """The port at which an ASGI application of a test's own is served as the gateway is."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, http=Protocol, lifespan="off", log_config=None))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(30)


def _waits(coroutine: Any) -> Iterator[str]:
    """The functions from a task's own to the one that waits, as 'name:line'."""
    while coroutine is not None:
        frame = next((found for name in _FRAMES if (found := getattr(coroutine, name, None))), None)
        if frame is not None:
            yield f"{frame.f_code.co_name}:{frame.f_lineno}"
        coroutine = next((found for name in _AWAITED if (found := getattr(coroutine, name, None))), None)


_FRAMES, _AWAITED = ("cr_frame", "ag_frame", "gi_frame"), ("cr_await", "ag_await", "gi_yieldfrom")


class Gateway:
    """Runs in a thread with its own loop. `nodes` are [[node]] tables; further keywords are settings."""

    def __init__(
        self,
        nodes: list[dict[str, Any]],
        *,
        views: Views | None = None,
        file: dict[str, Any] | None = None,
        **given: Any,
    ) -> None:
        self._file = NodeFile.model_validate({"node": nodes, **(file or {})})
        defaults: dict[str, Any] = {
            "cache_timeout": 5.0,
            "search_deadline": 60.0,
            "log_level": "ERROR",
            "probe": False,
            "audit": Path("/dev/null"),
        }
        self._settings = settings.read(**{**defaults, **given})
        self._views = views
        self._ready = threading.Event()
        self.app: Starlette | None = None
        self.url = ""

    def __enter__(self) -> Gateway:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._ready.wait(60) or self._failure:
            raise RuntimeError("the gateway did not start") from self._failure
        self.client = httpx.Client(base_url=self.url, timeout=60, verify=TRUST)
        return self

    _failure: BaseException | None = None

    def under_way(self) -> str:
        """A line for each task of the gateway's loop, for a test that failed: what waits, and for what."""

        async def tell() -> list[str]:
            return sorted(f"{task.get_name()}: {' > '.join(_waits(task.get_coro()))}" for task in asyncio.all_tasks())

        return "\n".join(asyncio.run_coroutine_threadsafe(tell(), self.loop).result(10))

    def _run(self) -> None:
        try:
            self.app = create_app(self._settings, self._file, self._views)
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - told to the thread that waits
            self._failure = error
            self._ready.set()

    async def _serve(self) -> None:
        assert self.app is not None
        config = uvicorn.Config(
            self.app, http=Protocol, log_level="warning", access_log=False, timeout_graceful_shutdown=5
        )
        self._server = PromptServer(config)
        task = asyncio.create_task(self._server.serve([self._socket]))
        while not self._server.started and not task.done():
            await asyncio.sleep(0.01)
        if task.done() or not self.app.state.ready:
            self._failure = RuntimeError("start-up failed")
        self.loop = asyncio.get_running_loop()
        self._ready.set()
        await task

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self._server.end()
        self._thread.join(30)
        self._socket.close()
        assert not self._thread.is_alive(), "the gateway did not stop"

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.client.get(path, **kwargs)

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"


def files_node(identifier: str, directory: Path, **more: Any) -> dict[str, Any]:
    """A [[node]] of the files adapter."""
    return {
        "id": identifier,
        "name": identifier,
        "adapter": "files",
        "connection": {"directory": str(directory)},
        **more,
    }
