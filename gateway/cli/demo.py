"""`demo`: seven invented hospitals that speak their own protocols, the gateway over them, and what to try."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from gateway import settings
from gateway.app import create_app
from gateway.cli import console, demonodes, guide, query, serving
from gateway.cli.peers import Peers
from gateway.errors import GatewayError, SettingsError
from gateway.settings import Settings
from gateway.simulators import corpus
from gateway.simulators.corpus import Corpus, ScaleName

_HOST = "127.0.0.1"


def cache_directory() -> Path:
    """Where the demo's studies are kept between starts (XDG Base Directory)."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "imaging-gateway" / "demo"


@dataclass(slots=True)
class Outcome:
    """Whether the one query of `--once` was answered."""

    is_answered: bool = False


def run(directory: Path, port: int, scale: ScaleName, *, once: bool) -> None:
    """Serves until SIGINT or SIGTERM, or until one federated query was answered; everything started is then stopped."""
    outcome = Outcome()
    with console.refusals(), serving.stoppable(), ExitStack() as stack:
        listener = stack.enter_context(serving.listen(_HOST, port))
        bound: int = listener.getsockname()[1]
        studies = _studies(directory, scale)
        runtime = directory / f"port-{bound}"
        tables = _hospitals(studies, stack.enter_context(Peers(runtime / "logs")))
        node_file = runtime / "nodes.toml"
        demonodes.write(node_file, tables)
        read = _settings(bound, node_file, runtime / "audit.jsonl")
        text = guide.text(f"http://{_HOST}:{bound}", studies, node_file, read.audit)

        def ready(server: serving.Server) -> None:
            console.output().print(text, markup=False)
            if once:
                server.after_start(asyncio.create_task(_query_once(server, bound, outcome)))

        serving.run(create_app(read), read, [listener], ready)
    if once and not outcome.is_answered:
        raise typer.Exit(console.FOUND_WRONG)


def _studies(directory: Path, scale: ScaleName) -> Corpus:
    """Made once; a second demo that starts meanwhile waits for the first to have made them."""
    root = directory / f"hospitals-{scale}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        (directory / ".lock").touch()
    except OSError:
        raise SettingsError(f"{directory} cannot be written to; name another place with --directory") from None
    with console.progress(f"making the hospitals' studies in {root}"), _alone(directory):
        return corpus.build(root, scale=scale)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _hospitals(studies: Corpus, peers: Peers) -> dict[str, dict[str, object]]:
    with console.progress("starting the hospitals"):
        return demonodes.start(studies, peers)


def _settings(port: int, node_file: Path, audit: Path) -> Settings:
    """The environment's settings, except that the terminal is kept free of audit records and of the node that is down."""
    quiet: dict[str, object] = {"audit": audit, "log_level": "ERROR", "drain_seconds": 5.0}
    given = {name: value for name, value in quiet.items() if f"GATEWAY_{name}".upper() not in os.environ}
    return settings.read(host=_HOST, port=port, nodes=node_file, workers=1, **given)


async def _query_once(server: serving.Server, port: int, outcome: Outcome) -> None:
    try:
        found = await asyncio.to_thread(query.ask, f"http://{_HOST}:{port}")
        query.report(found)
        outcome.is_answered = True
    except GatewayError as error:
        console.complain(error.detail)
    finally:
        server.should_exit = True
