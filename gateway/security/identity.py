"""Who is asking: the open caller of a loopback demo, or the caller that a verified bearer token names."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.errors import SettingsError
from gateway.security.caller import OPEN_CALLER, Caller
from gateway.security.issuer import Issuer, IssuerKeys, Pace
from gateway.security.tokens import Header, Verified, Verifier, bearer, header_of

_MOST_LEEWAY = 60
_MOST_VERIFIED = 4096


class OpenIdentity:
    """Everybody is the open caller, whatever they send: for loopback only. `purpose` is its purpose of use."""

    def __init__(self, purpose: str = "") -> None:
        self._caller = replace(OPEN_CALLER, purpose=purpose)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """There is no issuer, so nothing is known of one."""
        return {}

    async def open(self) -> None:
        """Nothing is needed."""

    async def close(self) -> None:
        """Nothing is held."""

    async def caller(self, _authorization: str | None) -> Caller:
        return self._caller


class OidcIdentity:
    """Callers are named by access tokens (JWT) of one OpenID Connect issuer.

    `leeway` is how far clocks may differ, at most 60 seconds. `open` it before use.
    """

    def __init__(
        self,
        issuer: str,
        audience: str,
        ca_bundle: Path | None = None,
        leeway: int = 30,
        *,
        pace: Pace | None = None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= leeway <= _MOST_LEEWAY:
            raise SettingsError(f"the leeway between clocks is at most {_MOST_LEEWAY} s")
        if not audience:
            raise SettingsError("GATEWAY_OIDC_AUDIENCE: tokens must be for somebody", parameter="GATEWAY_OIDC_AUDIENCE")
        self._now = now
        self._issuer = Issuer(issuer, ca_bundle, pace, clock)
        self._verifier = Verifier(issuer, audience, leeway, now)
        self._remembered = VerifiedTokens()

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the issuer says of itself (RFC 8414); empty until it was reached."""
        return self._issuer.metadata

    async def open(self) -> None:
        await self._issuer.open()

    async def close(self) -> None:
        await self._issuer.close()

    async def caller(self, authorization: str | None) -> Caller:
        """Raises Unauthenticated, which says what to do; IdentityUnavailable when there are no keys to verify with."""
        token = bearer(authorization)
        digest = hashlib.sha256(token.encode()).digest()
        keys = await self._issuer.keys()
        caller = self._remembered.caller(digest, keys, self._now())
        if caller is None:
            header = header_of(token)
            keys = await self._keys_for(header, keys)
            verified = self._verifier.verified(token, header, keys)
            self._remembered.add(digest, keys, verified)
            caller = verified.caller
        return caller

    async def _keys_for(self, header: Header, keys: IssuerKeys) -> IssuerKeys:
        """The keys, asked for once more when none of them is the token's: the issuer may have a new one."""
        if keys.candidates(header.key_type, header.algorithm, header.key_id):
            return keys
        return await self._issuer.keys_anew()


class VerifiedTokens:
    """The tokens verified last, by SHA-256, never the tokens themselves; each while it and its key set are valid."""

    def __init__(self, most: int = _MOST_VERIFIED) -> None:
        self._most = most
        self._entries: OrderedDict[bytes, tuple[IssuerKeys, Verified]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def caller(self, digest: bytes, keys: IssuerKeys, now: float) -> Caller | None:
        """The caller of a token verified with just these keys; a key that is withdrawn takes its tokens with it."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if entry[0] is not keys or now >= entry[1].expires:
            del self._entries[digest]
            return None
        self._entries.move_to_end(digest)
        return entry[1].caller

    def add(self, digest: bytes, keys: IssuerKeys, verified: Verified) -> None:
        self._entries[digest] = (keys, verified)
        while len(self._entries) > self._most:
            self._entries.popitem(last=False)
