"""What the simulators that speak HTTP share: the thread they run in, who may ask, and the ways a peer can be unwell."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import socket
import threading
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, aclosing, closing, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import uvicorn
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.simulators._server import PromptServer

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class PeerOptions:
    """Who may ask, and what is wrong with the peer.

    Quirks and faults hold for every operation, or only for those in `faulty_operations` when it is not empty.
    `redirect_to` is a service root: the path below the peer's own root and the query go with it. `duplicates` gives each
    result of a search twice.
    """

    basic: tuple[str, str] | None = None
    bearer: str | None = None
    delay: float = 0.0
    black_hole: bool = False
    status_500: bool = False
    garbage_json: bool = False
    redirect_to: str | None = None
    duplicates: bool = False
    faulty_operations: frozenset[str] = frozenset()

    def during(self, operation: str) -> Self:
        """The options that hold for an operation: these, or those of a healthy peer with the same lock on the door."""
        if not self.faulty_operations or operation in self.faulty_operations:
            return self
        return self.healthy()

    def healthy(self) -> Self:
        return type(self)(basic=self.basic, bearer=self.bearer)


@dataclass(frozen=True)
class Framing:
    """How a body is delivered, and where it breaks off.

    After `truncate_after` bytes the connection is cut (Content-Length too long, or a chunked body without its last
    chunk); after `stall_after` bytes nothing more comes, with the connection left open.
    """

    kind: Literal["chunked", "content-length"] = "chunked"
    truncate_after: int | None = None
    stall_after: int | None = None


@dataclass(frozen=True)
class Seen:
    """One request as it arrived, for tests of what a client sends and to whom."""

    operation: str
    method: str
    target: str
    headers: Mapping[str, str]


class CutShort(Exception):
    """Ends a response in the middle: uvicorn then closes the connection."""


class Peer:
    """A server of its own in a thread of its own. Use it as a context manager, or call `start` and `stop`.

    `options` may be replaced while it runs: a peer falls ill and recovers. `operations` counts the requests by
    operation, `seen` keeps the last thousand of them.
    """

    path = ""

    def __init__(self, options: PeerOptions) -> None:
        self.options = options
        self.operations: Counter[str] = Counter()
        self.seen: deque[Seen] = deque(maxlen=1000)
        self._stopping = asyncio.Event()
        self._running: _Running | None = None
        self.port = 0
        self.host = "127.0.0.1"

    @property
    def app(self) -> ASGIApp:
        """The ASGI application, for running it under a server of one's own."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}{self.path}"

    def start(self, port: int = 0, host: str = "127.0.0.1") -> int:
        """Serves in a thread and returns the port once requests are taken. Port 0 takes a free one."""
        if self._running:
            return self.port
        self._stopping = asyncio.Event()
        listener = socket.create_server((host, port), backlog=512)
        self.host, self.port = host, listener.getsockname()[1]
        self._running = _Running(self.app, listener)
        self._running.start()
        return self.port

    def stop(self) -> None:
        """Ends every connection, hanging ones included, and returns when the thread has ended. May be called twice."""
        running, self._running = self._running, None
        if running:
            running.stop(self._stopping)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def counted(self, operation: str, handler: Handler, *, public: bool = False) -> Handler:
        """The handler behind the counter, the lock on the door and the faults of the whole peer."""

        async def serve(request: Request) -> Response:
            self.operations[operation] += 1
            target = request.scope["path"] + ("?" + request.url.query if request.url.query else "")
            self.seen.append(Seen(operation, request.method, target, dict(request.headers)))
            if not public and (refusal := refused(request, self.options)):
                return refusal
            options = request.state.options = self.options.during(operation)
            return await self._unwell(options, request) or await handler(request)

        return serve

    async def _unwell(self, options: PeerOptions, request: Request) -> Response | None:
        if options.black_hole:
            await self.hang(request)
        if options.delay:
            await self.pause(options.delay)
        if options.redirect_to is not None:
            query = f"?{request.url.query}" if request.url.query else ""
            return RedirectResponse(options.redirect_to + request.url.path.removeprefix(self.path) + query, 302)
        return Response("Internal Server Error", 500) if options.status_500 else None

    async def hang(self, request: Request | None = None) -> None:
        """Never answers, until the peer is stopped or the caller of `request` has gone."""
        waiting: list[asyncio.Task[Any]] = [asyncio.create_task(self._stopping.wait())]
        if request:
            waiting.append(asyncio.create_task(_disconnected(request)))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        raise CutShort

    async def pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return
        raise CutShort

    async def delivered(self, body: Iterable[bytes], framing: Framing) -> AsyncIterator[bytes]:
        """The body in the framing's way: whole, cut in the middle, or silent from somewhere on."""
        sent = 0
        with _closing(body):
            for chunk in body:
                if self._stopping.is_set():
                    raise CutShort
                for limit, cut in ((framing.truncate_after, True), (framing.stall_after, False)):
                    if limit is not None and sent + len(chunk) >= limit:
                        yield chunk[: limit - sent]
                        await self._break_off(cut)
                sent += len(chunk)
                yield chunk
                # A send to a caller that has gone does not wait: only here can its disconnection be noticed.
                await asyncio.sleep(0)

    async def _break_off(self, cut: bool) -> None:
        if not cut:
            await self.hang()
        # The bytes before the cut must reach the client first: closing at once may discard what is still buffered.
        await asyncio.sleep(0.05)
        raise CutShort


def _closing(body: Iterable[bytes]) -> AbstractContextManager[object]:
    return closing(body) if isinstance(body, Generator) else nullcontext()


class Delivered(StreamingResponse):
    """What `delivered` gives; the files behind it are closed with the answer, also when the caller leaves in its middle."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(cast(AsyncGenerator[bytes], self.body_iterator)):
            await super().__call__(scope, receive, send)


async def _disconnected(request: Request) -> bool:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return True


class _Running:
    """One uvicorn server in one daemon thread."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        # log_config None leaves the process's own logging alone; an access log would hold patient identifiers.
        config = uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1
        )
        self._server = PromptServer(config)
        self._listener = listener
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="simulator", daemon=True)

    def start(self) -> None:
        logging.getLogger("uvicorn.error").addFilter(_not_on_purpose)
        self._thread.start()
        if not self._server.ready.wait(timeout=10):
            raise RuntimeError("the simulator did not start within 10 s")

    def stop(self, stopping: asyncio.Event) -> None:
        self._server.end()
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(stopping.set)
        self._thread.join(timeout=5)
        self._listener.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve(sockets=[self._listener])


def _not_on_purpose(record: logging.LogRecord) -> bool:
    """Keeps the faults that were asked for out of the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], CutShort))


def refused(request: Request, options: PeerOptions) -> Response | None:
    """A 401 unless the request carries what the options ask for (RFC 7617, RFC 6750)."""
    given = request.headers.get("authorization", "")
    if options.basic:
        wanted = "Basic " + base64.b64encode(":".join(options.basic).encode()).decode()
        challenge = 'Basic realm="simulator", charset="UTF-8"'
    elif options.bearer:
        wanted, challenge = f"Bearer {options.bearer}", 'Bearer realm="simulator"'
    else:
        return None
    if secrets.compare_digest(given.encode(), wanted.encode()):
        return None
    return Response("Unauthorized", 401, {"WWW-Authenticate": challenge})


GARBAGE = b'[{"00080020": {"vr": "DA", "Value": ["2004'


def garbage(media_type: str) -> Response:
    """A 200 whose JSON breaks off in the middle."""
    return Response(GARBAGE, media_type=media_type)
