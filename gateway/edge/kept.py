"""Answers that are given again from this process's memory: after the token, the rights and the audit, before anything else.

A request for which an answer is kept still has its caller authenticated, its rights and nodes decided, its audit record
written, and is counted and logged; only asking, merging and rendering are left out. Pure ASGI, inside Authentication.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import isfinite

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.cache import bodies, freshness
from gateway.cache.bodies import Bodies, Kept, Making
from gateway.errors import GatewayError
from gateway.pipeline import Pipeline
from gateway.telemetry import answer_was_kept, log, place_of

_AFTER = 0.02
"""Seconds after an answer that it is made one that is kept: what it mentions takes as long to work out as to ask for it, and
the rest of it may still be on its way."""

SHAPING = frozenset({b"accept", b"content-type", b"host", b"if-range", b"prefer", b"range"})
"""The request headers that an answer may depend on, other than by who asks: `test_kept_answers` holds it to the edge."""

_METHODS = ("GET", "HEAD")
_ANEW = re.compile(rb"no-cache|no-store|max-age=0+(?![0-9])", re.IGNORECASE)
_NOT_KEPT = re.compile(rb"no-store", re.IGNORECASE)


@dataclass(slots=True)
class _Asked:
    """What a request's headers say here. `anew` is a caller that wants no kept answer, `not_kept` one that wants none made."""

    shaping: tuple[tuple[bytes, bytes], ...]
    if_none_match: bytes = b""
    anew: bool = False
    not_kept: bool = False


class KeptAnswers:
    """Gives kept answers again, and keeps those that the application gives. `longest` is the seconds that one is kept
    which was made from nothing that says how fresh it is."""

    def __init__(self, app: ASGIApp, kept: Bodies, longest: float) -> None:
        self._app = app
        self._bodies = kept
        self._longest = longest
        self._waiting: dict[Hashable, Callable[[], None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] not in _METHODS or self._bodies.is_off:
            bodies.keep_nothing()
            await self._app(scope, receive, send)
        else:
            await self._look_up(scope, receive, send)

    async def _look_up(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, asked = time.monotonic(), _asked(scope)
        pipeline: Pipeline = scope["estate"].pipeline
        try:
            key = _key(scope, asked, pipeline.access(scope["caller"]))
        except GatewayError:  # who has no view is told so on the whole way
            bodies.keep_nothing()
            await self._app(scope, receive, send)
            return
        self._keep_what_waits(key)
        kept = None if asked.anew else self._bodies.get(key)
        if kept is not None:
            if pipeline.again(scope["caller"], kept.grounds, started):
                await kept.do_then(scope["caller"], self._bodies.now())
                await _give(kept, asked.if_none_match, self._bodies.now() - kept.made, scope, send)
                return
            self._bodies.forget(key)
        fresh, making = freshness.begin(), bodies.begin(self._bodies.generation)
        try:
            await self._app(scope, receive, send)
        except BaseException:
            making.end()
            raise
        if not making.may_be_kept or asked.not_kept or fresh.stale:
            making.end()
            return
        made, route, room = self._bodies.now(), scope.get("route"), _room_of(scope, asked)
        age, lasts = fresh.age, fresh.remaining if isfinite(fresh.remaining) else self._longest

        def keep() -> None:
            try:
                self._bodies.keep(key, _kept(making, age, lasts, route, made, room), making.generation)
            except Exception as error:  # noqa: BLE001 - the request that it is done in may be another's
                log().error("fault", kind=type(error).__name__, reason=place_of(error))
            finally:
                making.end()

        self._keep_what_waits(key)
        self._waiting[key] = keep
        asyncio.get_running_loop().call_later(_AFTER, self._keep_what_waits, key)

    def _keep_what_waits(self, key: Hashable) -> None:
        keep = self._waiting.pop(key, None)
        if keep is not None:
            keep()


def _asked(scope: Scope) -> _Asked:
    shaping, tags, anew, not_kept = [], b"", False, False
    for header in scope["headers"]:
        name = header[0]
        if name in SHAPING:
            shaping.append(tuple(header))
        elif name == b"if-none-match":
            tags = tags + b"," + header[1] if tags else header[1]
        elif name in (b"cache-control", b"pragma"):
            anew = anew or _ANEW.search(header[1]) is not None
            not_kept = not_kept or _NOT_KEPT.search(header[1]) is not None
    return _Asked(tuple(shaping), tags, anew, not_kept)


def _rooted(scope: Scope) -> tuple[str, str]:
    return scope.get("root_path", ""), scope.get("public_prefix", "")


def _key(scope: Scope, asked: _Asked, access: Hashable) -> Hashable:
    """What is asked for, at which address, by whom; `server` because Host without a port is completed from the connection."""
    path = scope.get("raw_path") or scope["path"].encode()
    query = canonical(path, scope["query_string"])
    return path, query, scope["scheme"], scope.get("server"), _rooted(scope), asked.shaping, access


def canonical(path: bytes, query: bytes) -> bytes:
    """One query string for all orders of its parameters, where the order cannot matter.

    It does below /fhir, whose answers repeat it; between values of one name; and names that are written in code may be one.
    """
    if b"&" not in query or path.startswith(b"/fhir"):
        return query
    pieces = query.split(b"&")
    names = {piece.partition(b"=")[0] for piece in pieces}
    if len(names) != len(pieces) or any(b"%" in name or b"+" in name for name in names):
        return query
    return b"&".join(sorted(pieces))


def _room_of(scope: Scope, asked: _Asked) -> int:
    """The bytes of a key that are as many as the caller likes."""
    return (
        len(scope.get("raw_path") or scope["path"])
        + len(scope["query_string"])
        + sum(len(value) for _, value in asked.shaping)
    )


def _kept(making: Making, age: float, lasts: float, route: object, now: float, room: int) -> Kept:
    """The answer, which is of that age now and `lasts` so many seconds more, without the headers that change while it is kept;
    these are told apart once, here. Its key takes `room`."""
    assert making.whole is not None
    assert making.grounds is not None
    status, headers, body = making.whole
    named = dict(headers)
    return Kept(
        status,
        tuple(header for header in headers if header[0] != b"age"),
        body,
        named[b"etag"],
        route,
        making.grounds,
        frozenset(making.keys),
        making.tags,
        now,
        now + lasts,
        age,
        making.then,
        room,
    )


async def _give(kept: Kept, if_none_match: bytes, seconds: float, scope: Scope, send: Send) -> None:
    scope["route"] = kept.route
    answer_was_kept()
    # max-age counts from when its oldest part was fetched (RFC 9111 4.2): only Age goes on.
    headers = [*kept.headers, (b"age", b"%d" % int(kept.age + seconds))]
    if if_none_match and is_current(if_none_match, kept.etag):
        headers = [header for header in headers if not header[0].startswith(b"content-")]
        await send({"type": "http.response.start", "status": 304, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
        return
    await send({"type": "http.response.start", "status": kept.status, "headers": headers})
    await send({"type": "http.response.body", "body": kept.body})


def is_current(if_none_match: bytes, etag: bytes) -> bool:
    """If-None-Match (RFC 9110 13.1.2), compared weakly; '*' is any."""
    if if_none_match == etag:
        return True
    tags = {tag.strip().removeprefix(b"W/") for tag in if_none_match.split(b",")}
    return etag in tags or b"*" in tags
