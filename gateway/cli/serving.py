"""Runs an ASGI application as this process's one server: its port, its TLS, its end."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.cli.libraries import restrain
from gateway.errors import SettingsError
from gateway.settings import Settings

_STOPS = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises SettingsError that says what to do."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise SettingsError(f"host: '{host}' is not an address of this machine", parameter="host") from None
    try:
        return socket.create_server((str(address[0]), port), family=family, backlog=2048)
    except OSError as error:
        raise _cannot_listen(error, host, port) from None


def _cannot_listen(error: OSError, host: str, port: int) -> SettingsError:
    if error.errno == errno.EADDRINUSE:
        return SettingsError(
            f"port: {port} is taken by another program; choose another one, such as --port {_next(port)}",
            parameter="port",
        )
    if error.errno == errno.EACCES:
        return SettingsError(
            f"port: {port} needs rights that this user has not; choose one above 1023", parameter="port"
        )
    return SettingsError(f"host: this machine cannot listen on '{host}'", parameter="host")


def _next(port: int) -> int:
    """The next port above that is free now; 0 (any) when there is none."""
    for candidate in range(port + 1, min(port + 100, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            return candidate
    return 0


class Server(uvicorn.Server):
    """Says when it is ready; SIGINT and SIGTERM make it return, not die, so that what surrounds it can clean up."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[Server], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._tasks: set[asyncio.Task[None]] = set()

    def after_start(self, task: asyncio.Task[None]) -> None:
        """Keeps a task that runs beside the requests from being collected."""
        self._tasks.add(task)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready(self)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {stop: signal.signal(stop, self.handle_exit) for stop in _STOPS}
        try:
            yield
        finally:
            for stop, handler in before.items():
                signal.signal(stop, handler)


class _Startup:
    """Keeps the reason why the application did not start, for one clear line instead of a server's traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.failure: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def quietly(message: Message) -> None:
            await send({**message, "message": ""} if message["type"] == "lifespan.startup.failed" else message)

        try:
            await self._app(scope, receive, quietly)
        except Exception as error:
            self.failure = error
            raise

    def admits(self, record: logging.LogRecord) -> bool:
        """The server's own log, without what is told otherwise."""
        return self.failure is None and record.levelno >= logging.WARNING


def run(
    app: ASGIApp,
    settings: Settings,
    listener: socket.socket,
    on_ready: Callable[[Server], None] = lambda server: None,
    drain: int = 30,
) -> None:
    """Serves until SIGINT or SIGTERM; then requests have `drain` seconds to end. Raises what kept it from starting."""
    restrain()
    startup = _Startup(app)
    logging.getLogger("uvicorn.error").addFilter(startup.admits)
    # Client addresses come from named proxies only (edge/proxies.py); an access log would hold patient identifiers.
    config = uvicorn.Config(
        startup,
        loop="auto",
        http="auto",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=drain,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    try:
        config.load()
    except OSError:  # ssl.SSLError is one
        raise SettingsError(
            "GATEWAY_TLS_CERTIFICATE, GATEWAY_TLS_KEY: cannot be read as PEM, or do not belong together"
        ) from None
    try:
        Server(config, on_ready).run([listener])
    except SystemExit:
        if startup.failure is None:
            raise
    if startup.failure:
        raise startup.failure


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM ends things as Ctrl-C does, everything is cleaned up, and neither counts as an error."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in _STOPS}
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
