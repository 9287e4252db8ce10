"""What a request sees of the gateway from its first byte to its last, whatever happens to the node file meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.edge.fhir.identifiers import Issuers
from gateway.pipeline import Pipeline


class Users:
    """Counts the requests that hold an estate: `with` it, once each."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def gone(self) -> None:
        """Returns when no request holds it."""
        await self._none.wait()


@dataclass(frozen=True, slots=True, eq=False)
class Estate:
    """Everything that follows from one node file and its mappings, never changed: another file is another estate.

    `time_zones` are by node; nodes that two files agree on are in both estates.
    """

    pipeline: Pipeline
    time_zones: Mapping[str, str]
    issuers: Issuers
    users: Users = field(default_factory=Users)


class Residence:
    """Gives each request the estate in force, as `scope["estate"]`, and holds it for the request until its last byte."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        estate: Estate = scope["app"].state.estate
        scope["estate"] = estate
        with estate.users:
            await self._app(scope, receive, send)
