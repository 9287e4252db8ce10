"""`serve`: the gateway over the hospitals of a node file."""

from __future__ import annotations

from gateway import settings
from gateway.app import create_app
from gateway.cli import console, serving


def run(given: dict[str, object]) -> None:
    """Serves with the GATEWAY_* settings of the environment; `given` are the flags, which win."""
    with console.refusals(), serving.stoppable():
        read = settings.read(**given)
        app = create_app(read)
        with serving.listen(read.host, read.port) as listener:
            serving.run(app, read, listener, lambda _: _announce(read, listener.getsockname()[1]))


def _announce(read: settings.Settings, port: int) -> None:
    scheme = "https" if read.tls_certificate else "http"
    host = f"[{read.host}]" if ":" in read.host else read.host
    console.errors().print(f"imaging-gateway: serving {read.nodes} on {scheme}://{host}:{port}", markup=False)
