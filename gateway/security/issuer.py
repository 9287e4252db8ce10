"""The issuer's public keys: found by OpenID Connect Discovery, kept while fresh, longer when it is unreachable."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, Key, OKPKey, RSAKey

from gateway.errors import IdentityUnavailable, SettingsError
from gateway.settings import is_loopback
from gateway.telemetry import log

_MOST_BYTES = 1024 * 1024
_LEAST_RSA_BITS = 2048  # RFC 7518 3.3


class _UntrustedError(Exception):
    """The issuer answered, but not in a way that keys may be taken from. The text is ours."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long keys live and how often the issuer is asked, in seconds.

    `fresh` is how long keys are used unasked, `stale` how long in all when the issuer cannot be reached. `early` is the
    least time between two refreshes for keys that are not known, `retry` between two tries that fail; `deadline` is for
    one fetch of the metadata and the keys together.
    """

    fresh: float = 600.0
    stale: float = 3600.0
    early: float = 30.0
    retry: float = 5.0
    deadline: float = 5.0


@dataclass(frozen=True, slots=True)
class IssuerKeys:
    """One key set, of keys that may verify signatures. `metadata` is what the issuer says of itself (RFC 8414)."""

    keys: tuple[RSAKey | ECKey | OKPKey, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def candidates(self, key_type: str, algorithm: str, key_id: str | None) -> list[RSAKey | ECKey | OKPKey]:
        """The keys a token with this header may be signed with (RFC 7515 4.1.4). Without a kid, only an only key."""
        fitting = [key for key in self.keys if key.key_type == key_type and key.get("alg") in (None, algorithm)]
        if key_id is None:
            return fitting if len(fitting) == 1 else []
        return [key for key in fitting if key.get("kid") == key_id]


class Issuer:
    """The keys of one issuer. `open` it before use; `close` ends a fetch under way."""

    def __init__(
        self,
        issuer: str,
        ca_bundle: Path | None = None,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = issuer
        self._ca_bundle = ca_bundle
        self._pace = pace or Pace()
        self._clock = clock
        self._http: httpx.AsyncClient | None = None
        self._keys: IssuerKeys | None = None
        self._fetched = self._tried = float("-inf")
        self._raw: Any = None
        self._failing = False
        self._refresh: asyncio.Task[None] | None = None

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the issuer says of itself (RFC 8414); empty until it was reached."""
        return self._keys.metadata if self._keys else {}

    async def open(self) -> None:
        """Reads the CA bundle and fetches the keys once; an issuer that is down is asked again when a token comes."""
        self._http = httpx.AsyncClient(verify=_tls(self._ca_bundle), follow_redirects=False)
        await self._refreshing()

    async def close(self) -> None:
        if self._refresh is not None:
            self._refresh.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refresh
        if self._http is not None:
            await self._http.aclose()

    async def keys(self) -> IssuerKeys:
        """The keys as they are now: asks the issuer when they are no longer fresh.

        Raises IdentityUnavailable when there are none, or when they are older than the issuer's absence excuses.
        """
        if self._age >= self._pace.fresh:
            await self._renewed()
        if self._keys is None or self._age >= self._pace.stale:
            raise IdentityUnavailable("tokens cannot be verified: the issuer's keys cannot be had; try again shortly")
        return self._keys

    @property
    def _age(self) -> float:
        return self._clock() - self._fetched

    async def keys_anew(self) -> IssuerKeys:
        """The keys, asked for early because a token names one that is not among them; seldom, as anyone can do that."""
        if self._is_refreshing or self._clock() - self._tried >= self._pace.early:
            await asyncio.shield(self._refreshing())
        return await self.keys()

    @property
    def _is_refreshing(self) -> bool:
        return self._refresh is not None and not self._refresh.done()

    async def _renewed(self) -> None:
        """Asks for the keys again, not too soon after a failure; old ones stand in while a second try is under way."""
        if not self._is_refreshing and self._clock() - self._tried < self._pace.retry:
            return
        refresh = self._refreshing()
        if not self._failing or self._age >= self._pace.stale:
            await asyncio.shield(refresh)

    def _refreshing(self) -> asyncio.Task[None]:
        """The one fetch under way, begun if there is none. A caller that leaves must not end it for the others."""
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.create_task(self._fetch(), name="issuer keys")
        return self._refresh

    async def _fetch(self) -> None:
        """Replaces the keys, or leaves them as they are and says why in the log."""
        try:
            async with asyncio.timeout(self._pace.deadline):
                metadata = await self._metadata()
                raw = await self._json(metadata["jwks_uri"])
            keys = _usable(raw)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError, _UntrustedError) as error:
            reason = str(error) if isinstance(error, _UntrustedError) else type(error).__name__
            log().warning("issuer", operation="keys", outcome="failed", reason=reason)
            self._failing = True
            return
        finally:
            self._tried = self._clock()
        if not keys:
            log().warning(
                "issuer", operation="keys", outcome="empty", reason="the issuer has no keys: every token is refused"
            )
        if self._keys is None or (raw, metadata) != self._raw:
            self._keys, self._raw = IssuerKeys(keys, metadata), (raw, metadata)
        self._fetched, self._failing = self._clock(), False

    async def _metadata(self) -> dict[str, Any]:
        """OpenID Connect Discovery 1.0, 4: whoever answers must be exactly the issuer that was configured."""
        metadata = await self._json(self._issuer.rstrip("/") + "/.well-known/openid-configuration")
        if not isinstance(metadata, dict) or metadata.get("issuer") != self._issuer:
            raise _UntrustedError("the metadata is another issuer's")
        if not _may_be_fetched(metadata.get("jwks_uri"), self._issuer):
            raise _UntrustedError("jwks_uri is not an https address")
        return metadata

    async def _json(self, url: str) -> Any:
        assert self._http is not None, "open() comes first"
        async with self._http.stream("GET", url, headers={"Accept": "application/json"}) as response:
            if response.status_code != 200:
                raise _UntrustedError(f"status {response.status_code}")
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _MOST_BYTES:
                    raise _UntrustedError("the answer is too large")
        try:
            return orjson.loads(body)
        except ValueError:
            raise _UntrustedError("the answer is not JSON") from None


def _tls(ca_bundle: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except (OSError, ssl.SSLError):
        raise SettingsError(
            "GATEWAY_OIDC_CA_BUNDLE: not a readable PEM bundle", parameter="GATEWAY_OIDC_CA_BUNDLE"
        ) from None


def _may_be_fetched(url: object, issuer: str) -> bool:
    """Keys come over TLS; over plain HTTP only from loopback, for an issuer that is itself there."""
    if not isinstance(url, str):
        return False
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    plain = parts.scheme == "http" and is_loopback(host) and urlsplit(issuer).scheme == "http"
    return bool(host) and (parts.scheme == "https" or plain)


def _usable(raw: Any) -> tuple[RSAKey | ECKey | OKPKey, ...]:
    """The public keys of a JWK Set that may verify; the others are passed over, one by one (RFC 7517 5). An empty set is one: the
    issuer has withdrawn its keys. One in which no key is of use is rather a mistake, and is not believed."""
    listed = raw.get("keys") if isinstance(raw, dict) else None
    if not isinstance(listed, list):
        raise _UntrustedError("the answer is not a JWK Set")
    keys = tuple(key for key in map(_imported, listed) if key is not None)
    if listed and not keys:
        raise _UntrustedError("the JWK Set has no key that verifies signatures")
    return keys


def _imported(jwk: Any) -> RSAKey | ECKey | OKPKey | None:
    """One key; None for a symmetric one, one meant for something else, a weak one and one that cannot be read."""
    if not isinstance(jwk, dict) or jwk.get("kty") not in ("RSA", "EC", "OKP") or jwk.get("use") not in (None, "sig"):
        return None
    operations = jwk.get("key_ops") or ["verify"]
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    try:
        key: Key = JWKRegistry.import_key(_public(jwk))
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAKey) and key.raw_value.key_size < _LEAST_RSA_BITS:
        return None
    return key if isinstance(key, RSAKey | ECKey | OKPKey) else None


def _public(jwk: dict[str, Any]) -> dict[str, Any]:
    """Only the members that verifying needs: an odd certificate chain beside them must not cost the key."""
    names = ("kty", "kid", "use", "alg", "key_ops", "n", "e", "crv", "x", "y")
    return {name: jwk[name] for name in names if jwk.get(name) is not None}
