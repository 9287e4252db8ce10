"""Who leaves before the answer begins is no longer worked for: the nodes are not asked on, and nobody waits behind it."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SOON = 0.1
"""Seconds within which most answers have begun: up to then nobody is watched."""


_LEFT = "left"


def has_left(scope: Scope) -> bool:
    """Whether the request was cancelled because nobody waits for it any more: the outermost of all lets it rest."""
    return _LEFT in scope


class Leaving:
    """Cancels a request that only reads once its caller has closed the connection, as long as nothing of its answer has left;
    from then on whoever sends finds it out. What others wait for with it (a load of the cache) goes on.

    Around the routes alone: an answer that is given again needs nobody to be watched.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        if scope["type"] != "http" or not _only_reads(scope) or task is None:
            await self._app(scope, receive, send)
            return
        caller = _Caller(scope, receive, task)

        async def begin(message: Message) -> None:
            caller.end_watch()
            await send(message)

        try:
            await self._app(scope, caller.receive, begin)
        finally:
            caller.end_watch()


def _only_reads(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD") or (scope["method"] == "POST" and scope["path"].endswith("/_search"))


class _Caller:
    """Whoever waits for the answer that `task` makes. Watched once it is slow, and what was sent is taken in."""

    def __init__(self, scope: Scope, receive: Receive, task: asyncio.Task[object]) -> None:
        self._scope = scope
        self._receive = receive
        self._task = task
        self._is_sending = scope["method"] == "POST"
        self._is_answered = False
        self._heard: list[Message] = []
        self._watch: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_SOON, self._begin_watch)

    async def receive(self) -> Message:
        message = self._heard.pop() if self._heard else await self._receive()
        self._is_sending = self._is_sending and bool(message.get("more_body"))
        return message

    def end_watch(self) -> None:
        self._is_answered = True
        self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _begin_watch(self) -> None:
        if self._is_sending:
            self._timer = asyncio.get_running_loop().call_later(_SOON, self._begin_watch)
        elif not self._is_answered:
            self._watch = asyncio.create_task(self._listen(), name="whether the caller leaves")

    async def _listen(self) -> None:
        while (message := await self._receive())["type"] != "http.disconnect":
            if self._heard:  # a body where none belongs: for whoever takes or refuses it
                return
            self._heard.append(message)
        self._scope[_LEFT] = True
        self._task.cancel()
