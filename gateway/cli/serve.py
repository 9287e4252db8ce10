"""`serve`: the gateway over the hospitals of a node file, in this process or in several workers."""

from __future__ import annotations

import asyncio
import os
import socket

import typer

from gateway import settings, telemetry
from gateway.cli import console, serving, shared
from gateway.cli.supervisor import Supervisor
from gateway.security.guard import check_start


def run(given: dict[str, object]) -> None:
    """Serves with the GATEWAY_* settings of the environment; `given` are the flags, which win."""
    with console.refusals(), serving.stoppable():
        serving.hold_hangups()
        read = settings.read(**given)
        _tell_strangers(read)
        if read.workers > 1:
            _serve_with_workers(read, given)
        else:
            _serve_here(read)


def _tell_strangers(read: settings.Settings) -> None:
    """A misspelt variable would leave its setting at the default: a cache in the clear, an audit elsewhere.

    The node file's reader is imported only where it is needed, and once hangups are held: the threads that numpy starts
    as it is imported would hear them.
    """
    strangers = settings.strangers(os.environ)
    if not strangers:
        return
    from gateway.federation import nodes

    for name, meant in strangers.items():
        if name not in nodes.variables(read.nodes):
            guess = f"; is {meant} meant?" if meant else " (README.md lists them)"
            console.complain(f"{name} is no setting and has no effect{guess}")


def _serve_here(read: settings.Settings) -> None:
    from gateway.app import create_app

    app = create_app(read)
    with serving.listen(read.host, read.port) as listener:
        port = listener.getsockname()[1]
        serving.run(app, read, [listener], lambda _: _announce(read, port), on_hangup=lambda: app.state.reload())


def _serve_with_workers(read: settings.Settings, given: dict[str, object]) -> None:
    check_start(read)
    telemetry.configure(read.log_level)
    with serving.listen(read.host, read.port) as listener:
        flags = {f"GATEWAY_{name.upper()}": str(value) for name, value in given.items()}
        refusal = asyncio.run(_supervise(read, listener, flags))
    if refusal:
        raise typer.Exit(refusal)


async def _supervise(read: settings.Settings, listener: socket.socket, flags: dict[str, str]) -> int:
    port = listener.getsockname()[1]
    async with shared.environment(read) as variables:
        supervisor = Supervisor(read, listener, flags | variables, lambda: _announce(read, port))
        await supervisor.run()
    return supervisor.refusal


def _announce(read: settings.Settings, port: int) -> None:
    scheme = "https" if read.tls_certificate else "http"
    host = f"[{read.host}]" if ":" in read.host else read.host
    console.errors().print(f"imaging-gateway: serving {read.nodes} on {scheme}://{host}:{port}", markup=False)
