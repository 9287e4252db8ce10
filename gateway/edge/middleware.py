"""What happens to every request before a route sees it: request id, proxy, token, clock, log, metrics. Pure ASGI."""

from __future__ import annotations

import re
from typing import Protocol
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.edge import problems
from gateway.edge.proxies import Proxies
from gateway.errors import Forbidden, GatewayError, Unauthenticated
from gateway.security import guard
from gateway.security.caller import Caller
from gateway.telemetry import Exchange, stage
from gateway.wire.media import quoted

# Paths that anyone may ask: they say nothing about patients or nodes.
_OPEN = ("/live", "/ready")
_OPEN_FHIR = re.compile(r"/fhir(?:/r4|/r5)?/(?:metadata/?|\.well-known/smart-configuration)")
_SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class Identity(Protocol):
    """Turns an Authorization header into a Caller. Raises Unauthenticated."""

    async def caller(self, authorization: str | None) -> Caller: ...


def is_open(method: str, path: str) -> bool:
    """Whether a request needs no token: liveness, discovery, capability statements, preflights."""
    return method == "OPTIONS" or path in _OPEN or path.startswith("/.well-known/") or bool(_OPEN_FHIR.fullmatch(path))


class Telemetry:
    """Gives the request its id and its clock; logs and counts the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(Headers(scope=scope).getlist("traceparent"))

        async def observe(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                told = exchange.begins(message["status"], route_name(scope))
                for name, value in (*told.items(), *_SECURITY_HEADERS.items()):
                    headers[name] = value
            elif message["type"] == "http.response.body":
                exchange.sends(len(message.get("body", b"")), is_last=not message.get("more_body"))
            await send(message)

        try:
            await self._app(scope, receive, observe)
        finally:
            exchange.ends(route_name(scope), scope["method"])


def route_name(scope: Scope) -> str:
    """The route's name, never the path: paths carry identifiers."""
    route = scope.get("route")
    return getattr(route, "name", None) or "none"


class Authentication:
    """Puts the Caller into the scope, or answers 401. Believes a proxy only when it is a named one.

    `require_tls` refuses a token that came over plain HTTP. `public_root` is the gateway's own URL, or ''.
    """

    def __init__(
        self, app: ASGIApp, identity: Identity, proxies: Proxies, *, require_tls: bool, public_root: str = ""
    ) -> None:
        self._app = app
        self._identity = identity
        self._proxies = proxies
        self._require_tls = require_tls
        self._public_root = public_root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # In place: the telemetry around this reads the route that is found further in.
        scope.update(self._proxies.applied(scope))
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
        sent = Headers(scope=scope).getlist("authorization")
        if len(sent) > 1:
            raise Unauthenticated("more than one Authorization header: send one")
        if sent and self._require_tls and scope["scheme"] != "https":
            raise Unauthenticated("a token must not travel over plain HTTP: use https, and get a new token")
        caller = await self._identity.caller(sent[0] if sent else None)
        if caller.is_open and not is_loopback(Headers(scope=scope).get("host", "")):
            raise Forbidden("without an issuer (GATEWAY_OIDC_ISSUER) this gateway answers as localhost only")
        return caller

    async def _refuse(self, error: GatewayError, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        response = await problems.gateway_error(request, error)
        if isinstance(error, Unauthenticated):
            root = self._public_root.rstrip("/") or str(request.base_url).rstrip("/")
            response.headers["WWW-Authenticate"] = challenge(root, "authorization" in request.headers)
        await response(scope, receive, send)


def challenge(root: str, had_token: bool) -> str:
    """WWW-Authenticate (RFC 6750 3): where to learn about tokens (RFC 9728 5.1), and that the one sent is no good."""
    metadata = quoted(f"{root}/.well-known/oauth-protected-resource")
    error = ', error="invalid_token"' if had_token else ""
    return f'Bearer realm="imaging-gateway", resource_metadata={metadata}{error}'


def is_loopback(host: str) -> bool:
    """Whether a Host header names this machine: another name that leads here is a page's trick (DNS rebinding)."""
    try:
        return guard.is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
