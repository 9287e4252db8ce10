"""What happens to every request before a route sees it: request id, proxy, token, clock, log, metrics. Pure ASGI."""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from typing import Protocol
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.cache import freshness
from gateway.edge import problems
from gateway.edge.leaving import has_left
from gateway.edge.proxies import Proxies
from gateway.errors import Forbidden, GatewayError, Unauthenticated
from gateway.security.caller import Caller
from gateway.security.turned_away import TurnedAway
from gateway.settings import Settings, is_loopback
from gateway.telemetry import Exchange, stage
from gateway.wire.media import quoted

Headers = tuple[tuple[bytes, bytes], ...]

# Paths that anyone may ask: they say nothing about patients or nodes.
_OPEN = ("/live", "/ready", "/openapi.json")
_OPEN_FHIR = re.compile(r"/fhir(?:/r4|/r5)?/(?:metadata/?|\.well-known/smart-configuration)")
_ASKED_FOR = (b"x-forwarded-for", b"x-real-ip")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_SECURITY_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


def isolation(settings: Settings) -> Headers:
    """The headers that let pages be isolated from other origins, and load from here when they are (HTML, cross-origin
    isolation: viewers need it for threads that share memory)."""
    policies = {
        b"cross-origin-resource-policy": settings.cross_origin_resource_policy,
        b"cross-origin-embedder-policy": settings.cross_origin_embedder_policy,
        b"cross-origin-opener-policy": settings.cross_origin_opener_policy,
    }
    return tuple((name, policy.encode()) for name, policy in policies.items() if policy)


class Identity(Protocol):
    """Turns an Authorization header into a Caller. Raises Unauthenticated."""

    async def caller(self, authorization: str | None) -> Caller: ...


def is_open(method: str, path: str) -> bool:
    """Whether a request needs no token: liveness, discovery, capability statements, preflights."""
    if method == "OPTIONS" or path in _OPEN or path.startswith("/.well-known/"):
        return True
    return path.startswith("/fhir") and _OPEN_FHIR.fullmatch(path) is not None


def sent(scope: Scope, name: bytes) -> list[str]:
    """The values of one request header, by its lower-case name, in order."""
    return [value.decode("latin-1") for given, value in scope["headers"] if given == name]


def in_ascii(query: bytes) -> bytes:
    """A query string with percent signs in the place of bytes that none may have: so what is no UTF-8 is found where the
    parameter can be named, and not by whatever reads the address first."""
    return query if query.isascii() else _NOT_ASCII.sub(lambda found: b"%%%02X" % found[0][0], query)


class Telemetry:
    """Gives the request its id and its clock; logs and counts the answer. `headers` go with every answer."""

    def __init__(self, app: ASGIApp, headers: Headers = ()) -> None:
        self._app = app
        self._headers = (*_SECURITY_HEADERS, *headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["query_string"] = in_ascii(scope["query_string"])
        exchange = Exchange(sent(scope, b"traceparent"))
        is_head = scope["method"] == "HEAD"
        freshness.begin()

        async def observe(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = exchange.begins(message["status"], route_name(scope))
                message = {**message, "headers": [*message.get("headers", ()), *told, *self._headers]}
            elif message["type"] == "http.response.body":
                # The server keeps the body of an answer to HEAD back.
                size = 0 if is_head else len(message.get("body", b""))
                exchange.sends(size, is_last=not message.get("more_body"))
            await send(message)

        try:
            await self._app(scope, receive, observe)
        except asyncio.CancelledError:
            exchange.leaves()
            task = asyncio.current_task()
            if not has_left(scope) or task is None or task.uncancel():
                raise
        finally:
            exchange.ends(route_name(scope), scope["method"])


def route_name(scope: Scope) -> str:
    """The route's name, never the path: paths carry identifiers."""
    route = scope.get("route")
    return getattr(route, "name", None) or "none"


class Authentication:
    """Puts the Caller into the scope, or answers 401. Believes a proxy only when it is a named one.

    Who is refused is told to `turned_away`, but not who has sent no token: that is how one asks where to get one.
    `require_tls` refuses a token that came over plain HTTP. `public_root` is the gateway's own URL, or ''.
    """

    def __init__(
        self,
        app: ASGIApp,
        identity: Identity,
        proxies: Proxies,
        *,
        require_tls: bool,
        public_root: str = "",
        turned_away: TurnedAway | None = None,
    ) -> None:
        self._app = app
        self._turned_away = turned_away or TurnedAway()
        self._identity = identity
        self._proxies = proxies
        self._require_tls = require_tls
        self._public_root = public_root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = self._proxies.applied(scope)
        if seen is not scope:
            scope.update(seen)  # in place: the telemetry around this reads the route that is found further in
        try:
            with stage("auth"):
                scope["caller"] = await self._caller(scope)
        except GatewayError as error:
            await self._refuse(error, scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Caller:
        if is_open(scope["method"], scope["path"]):
            return Caller()
        tokens = sent(scope, b"authorization")
        if len(tokens) > 1:
            raise Unauthenticated("more than one Authorization header: send one")
        if tokens and self._require_tls and scope["scheme"] != "https":
            raise Unauthenticated("a token must not travel over plain HTTP: use https, and get a new token")
        caller = await self._identity.caller(tokens[0] if tokens else None)
        if caller.is_open:
            _require_this_machine(scope)
        return caller

    async def _refuse(self, error: GatewayError, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        if isinstance(error, Forbidden) or "authorization" in request.headers:
            self._turned_away.note("authenticate", error.code, address_of(scope))
        response = await problems.gateway_error(request, error)
        if isinstance(error, Unauthenticated):
            root = self._public_root.rstrip("/") or str(request.base_url).rstrip("/")
            response.headers["WWW-Authenticate"] = challenge(root, "authorization" in request.headers)
        await response(scope, receive, send)


def address_of(scope: Scope) -> str:
    """Where a request came from, behind the proxies that are believed."""
    return str((scope.get("client") or ("",))[0])


def _require_this_machine(scope: Scope) -> None:
    """Raises Forbidden where an open gateway is asked under another name, or by a proxy on this machine for another one."""
    if not names_this_machine("".join(sent(scope, b"host")[:1])):
        raise Forbidden("without an issuer (GATEWAY_OIDC_ISSUER) this gateway answers as localhost only")
    for_whom = [one.strip() for name in _ASKED_FOR for value in sent(scope, name) for one in value.split(",")]
    if not all(map(is_loopback, for_whom)):
        raise Forbidden("without an issuer (GATEWAY_OIDC_ISSUER) this gateway answers no other machine through a proxy")


def challenge(root: str, had_token: bool) -> str:
    """WWW-Authenticate (RFC 6750 3): where to learn about tokens (RFC 9728 5.1), and that the one sent is no good."""
    metadata = quoted(f"{root}/.well-known/oauth-protected-resource")
    error = ', error="invalid_token"' if had_token else ""
    return f'Bearer realm="imaging-gateway", resource_metadata={metadata}{error}'


@lru_cache(512)
def names_this_machine(host: str) -> bool:
    """Whether a Host header names this machine: another name that leads here is a page's trick (DNS rebinding)."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
