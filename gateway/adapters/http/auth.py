"""How the gateway proves itself to a node over HTTP: a fixed header, or a token fetched and kept until it ages."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from gateway.adapters.http.joined import joined
from gateway.errors import NodeRefused, SettingsError

_EARLY = 30.0  # seconds before its end at which a token is replaced
_ASSERTION_LIFE = 300  # SMART Backend Services: at most five minutes
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass(frozen=True, slots=True)
class Basic:
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Bearer:
    """A token that an administrator put into the node file."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """OAuth 2.0 client credentials: a secret, or private_key_jwt when `private_key` names a PEM or JWK file."""

    token_url: str
    client_id: str
    client_secret: str = field(default="", repr=False)
    private_key: Path | None = None
    key_id: str = ""
    scope: str = ""


HttpAuth = Basic | Bearer | ClientCredentials | None
PostForm = Callable[[str, dict[str, str]], Awaitable[Any]]


def authorizer(node: str, auth: HttpAuth, post_form: PostForm) -> Authorizer:
    """`post_form(url, form)` gives the token endpoint's JSON answer; it is only used for client credentials."""
    if isinstance(auth, ClientCredentials):
        return TokenAuthorizer(node, auth, post_form)
    return Authorizer(_fixed_header(auth))


def _fixed_header(auth: Basic | Bearer | None) -> dict[str, str]:
    if isinstance(auth, Basic):
        pair = f"{auth.username}:{auth.password}".encode()  # UTF-8: RFC 7617 2.1
        return {"Authorization": "Basic " + base64.b64encode(pair).decode()}
    return {"Authorization": f"Bearer {auth.token}"} if auth else {}


class Authorizer:
    """Gives the headers of a request. `renewable` says that a 401 is worth one more try with a new token."""

    renewable = False

    def __init__(self, header: dict[str, str]) -> None:
        self._header = header

    async def headers(self) -> dict[str, str]:
        return self._header

    def reject(self, header: dict[str, str]) -> None:
        """The node answered 401 to these headers."""

    async def close(self) -> None:
        """Stops what is still under way."""


class TokenAuthorizer(Authorizer):
    """Client credentials: one fetch for everybody who waits; a caller who leaves does not stop it for the others."""

    renewable = True

    def __init__(self, node: str, auth: ClientCredentials, post_form: PostForm) -> None:
        super().__init__({})
        self._node, self._auth, self._post_form = node, auth, post_form
        self._expires = 0.0
        self._fetch: asyncio.Task[None] | None = None

    async def headers(self) -> dict[str, str]:
        if not self._header or time.monotonic() > self._expires - _EARLY:
            if self._fetch is None or self._fetch.done():
                self._fetch = asyncio.create_task(self._renew())
            await joined(self._fetch, self._node)
        return self._header

    def reject(self, header: dict[str, str]) -> None:
        if header is self._header:
            self._header = {}

    async def close(self) -> None:
        if self._fetch is not None:
            self._fetch.cancel()
            await asyncio.gather(self._fetch, return_exceptions=True)

    async def _renew(self) -> None:
        try:
            proof = self._proof()
        except SettingsError as error:  # at work it is this node's trouble alone: a key that is being replaced
            raise NodeRefused(self._node, f"gets no token: {error.detail}") from None
        form = {"grant_type": "client_credentials", "scope": self._auth.scope, **proof}
        answer = await self._post_form(self._auth.token_url, {k: v for k, v in form.items() if v})
        token = answer.get("access_token") if isinstance(answer, dict) else None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise NodeRefused(self._node, "the token endpoint gave no access token")
        life = answer.get("expires_in", 300)
        self._expires = time.monotonic() + (float(life) if isinstance(life, int | float) else 300.0)
        self._header = {"Authorization": f"Bearer {token}"}

    def _proof(self) -> dict[str, str]:
        if self._auth.private_key is None:
            return {"client_id": self._auth.client_id, "client_secret": self._auth.client_secret}
        return {"client_assertion_type": _ASSERTION_TYPE, "client_assertion": assertion(self._auth, int(time.time()))}


def assertion(auth: ClientCredentials, now: int) -> str:
    """The signed proof of private_key_jwt (RFC 7523 2.2). Raises SettingsError for a key that cannot be read."""
    key = signing_key(Path(auth.private_key or ""))
    algorithm = "RS384" if key.key_type == "RSA" else "ES384"  # the two that SMART asks servers to support
    header = {"alg": algorithm, "typ": "JWT", "kid": auth.key_id or key.kid or key.thumbprint()}
    claims: dict[str, Any] = {"iss": auth.client_id, "sub": auth.client_id, "aud": auth.token_url}
    claims |= {"jti": str(uuid.uuid4()), "iat": now, "exp": now + _ASSERTION_LIFE}
    return jwt.encode(header, claims, key, algorithms=[algorithm])


def signing_key(path: Path) -> RSAKey | ECKey:
    """A PEM or JWK file. Raises SettingsError. The kind is tried, not guessed: without it any bytes at all pass as a symmetric
    key."""
    try:
        raw = path.read_bytes()
        material = json.loads(raw) if raw.lstrip().startswith(b"{") else raw
    except (OSError, ValueError) as error:
        raise SettingsError("private_key is not a readable PEM or JWK file") from error
    for kind in (RSAKey, ECKey):
        with contextlib.suppress(ValueError, TypeError, JoseError):
            return kind.import_key(material)
    raise SettingsError("private_key is neither an RSA nor an EC key")
