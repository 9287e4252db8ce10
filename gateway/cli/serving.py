"""Runs an ASGI application as this process's one server: its port, its TLS, its end."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.cli.libraries import restrain
from gateway.cli.sending import Protocol
from gateway.errors import SettingsError
from gateway.settings import Settings
from gateway.telemetry import log

_STOPS = (signal.SIGINT, signal.SIGTERM)
_CLOSE = (b"connection", b"close")
_TICK = 0.1
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2, whatever the system allows: those that RFC 9325 (BCP 195) recommends, as PS3.15 B asks of DICOM servers."""
# Seconds that cancelled requests have to give back what they hold, and the seconds after which the server stops waiting.
_UNWINDING, _BACKSTOP = 5.0, 10.0


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


def hold_hangups() -> None:
    """From the start: a SIGHUP that comes before there is somebody to hear it waits, and ends nothing."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def hear_hangups() -> None:
    """Lets those through that were held."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


class Server(uvicorn.Server):
    """Says when it is ready, and ends in order; signals make it return, not die, so that what surrounds it can clean up.

    The first SIGINT or SIGTERM begins the end: not ready at once, no new connections `delay` seconds later, and from then
    on `drain` seconds for the requests under way. A second one cuts at once. SIGHUP calls `on_hangup` where one is given.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        app: Starlette,
        on_ready: Callable[[Server], None],
        *,
        delay: float = 0.0,
        drain: float = 30.0,
        on_hangup: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(config)
        self._app = app
        self._on_ready = on_ready
        self._on_hangup = on_hangup
        self._delay = delay
        self._drain = drain
        self._stops: float | None = None
        self._is_cut = False
        self._tasks: set[asyncio.Task[None]] = set()

    def after_start(self, task: asyncio.Task[None]) -> None:
        """Keeps a task that runs beside the requests from being collected."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def leave(self, delay: float | None = None) -> None:
        """Begins the end; said again it changes nothing, except that a shorter `delay` (seconds) counts."""
        self._app.state.ready, self._app.state.draining = False, True
        stops = time.monotonic() + (self._delay if delay is None else delay)
        self._stops = stops if self._stops is None else min(self._stops, stops)
        self._say_close()

    def cut(self) -> None:
        """Ends what still runs: connections break off, so that nobody takes half an answer for a whole one."""
        self.leave(0.0)
        self._is_cut = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._stops is None:
            self.leave()
        else:
            self.cut()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._hear_hangups()
            self._on_ready(self)

    def _hear_hangups(self) -> None:
        if self._on_hangup:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hangup)
            hear_hangups()

    async def on_tick(self, counter: int) -> bool:
        if self._stops is not None and time.monotonic() >= self._stops:
            self.should_exit = True
        ends = await super().on_tick(counter)
        if self._stops is not None:
            self._say_close()  # uvicorn makes its own headers anew at each tick
        return ends

    def _say_close(self) -> None:
        """Who keeps a connection open goes elsewhere after the next answer."""
        if _CLOSE not in self.server_state.default_headers:
            self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.leave(0.0)
        cutting = asyncio.create_task(self._cut_when_due(time.monotonic() + self._drain))
        try:
            await super().shutdown(sockets)
        finally:
            cutting.cancel()

    async def _cut_when_due(self, ends: float) -> None:
        while not self._is_cut and time.monotonic() < ends:  # noqa: ASYNC110 - a signal handler may set no event
            await asyncio.sleep(_TICK)
        running = list(self.server_state.tasks)
        if running:
            log().warning("drain", outcome="cut", count=len(running))
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=_UNWINDING)

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
    app: Starlette,
    settings: Settings,
    listeners: Sequence[socket.socket],
    on_ready: Callable[[Server], None] = lambda server: None,
    *,
    serve: Callable[..., Server] = Server,
    on_hangup: Callable[[], None] | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM, then ends in order (see `Server`). Raises what kept it from starting."""
    restrain()
    startup = _Startup(app)
    logging.getLogger("uvicorn.error").addFilter(startup.admits)
    # Client addresses come from named proxies only (edge/proxies.py); an access log would hold patient identifiers.
    config = uvicorn.Config(
        startup,
        loop="auto",
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds + _BACKSTOP),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    try:
        config.load()
    except OSError:  # ssl.SSLError is one
        raise SettingsError(
            "GATEWAY_TLS_CERTIFICATE, GATEWAY_TLS_KEY: cannot be read as PEM, or do not belong together"
        ) from None
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        config.ssl.set_ciphers(_CIPHERS)
    server = serve(config, app, on_ready, delay=settings.drain_delay, drain=settings.drain_seconds, on_hangup=on_hangup)
    try:
        server.run(list(listeners))
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
