"""One bearer token: whether the issuer signed it for this gateway and for now, and whom it names (RFC 9068)."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from joserfc import jwt
from joserfc.errors import ClaimError, ExpiredTokenError, JoseError, UnsupportedAlgorithmError
from joserfc.jws import JWSRegistry

from gateway.errors import Unauthenticated
from gateway.security.caller import Caller
from gateway.security.issuer import IssuerKeys
from gateway.security.purpose import purpose_of

# Asymmetric only (RFC 8725 3.1): with a symmetric algorithm the public key itself would be the secret.
KEY_TYPES = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
    **dict.fromkeys(("EdDSA", "Ed25519", "Ed448"), "OKP"),
}
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
_END_OF_TIME = 2.0**53
_MOST_CHARACTERS = 32 * 1024
_COMPACT = re.compile(r"([A-Za-z0-9_-]{2,4096})\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_ADVICE = {
    "iss": "the token is not from this gateway's issuer: get one there",
    "aud": "the token is not for this gateway: ask the issuer for its audience",
    "exp": "the token says no readable time of expiry",
    "nbf": "the token is not valid yet: check the clocks",
    "iat": "the token was issued in the future: check the clocks",
    "sub": "the token names no readable subject",
}


class _Registry(JWSRegistry):
    """Headers with a certificate chain (x5c) are longer than the library expects."""

    max_header_length = 4096

    def get_alg(self, name: str) -> Any:
        """Without the library's warning against EdDSA, the name that issuers still use for Ed25519 (RFC 9864)."""
        if name not in KEY_TYPES:
            raise UnsupportedAlgorithmError()
        return self.algorithms[name]


_REGISTRY = _Registry(algorithms=tuple(KEY_TYPES), strict_check_header=False)


@dataclass(frozen=True, slots=True)
class Header:
    """What an unverified token says about its signature; nothing else of it is believed before it is verified."""

    algorithm: str
    key_id: str | None

    @property
    def key_type(self) -> str:
        return KEY_TYPES[self.algorithm]


@dataclass(frozen=True, slots=True)
class Verified:
    """A caller and the last moment (Unix time) that its token is good for."""

    caller: Caller
    expires: float


def bearer(authorization: str | None) -> str:
    """The token of an Authorization header (RFC 6750 2.1). Raises Unauthenticated saying how to get and send one."""
    if not authorization:
        raise Unauthenticated("a token is needed: send Authorization: Bearer with an access token of the issuer")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("only bearer tokens are accepted: send Authorization: Bearer with an access token")
    return token.strip()


def header_of(token: str) -> Header:
    """Raises Unauthenticated for what is no signed token, and for an algorithm that is not asymmetric."""
    compact = _COMPACT.fullmatch(token) if len(token) <= _MOST_CHARACTERS else None
    if compact is None:
        raise Unauthenticated("the token cannot be read: a signed JWT is expected")
    header = _json_object(compact.group(1))
    algorithm, key_id, type_ = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in KEY_TYPES:
        raise Unauthenticated("the token is not signed with an accepted algorithm: RS, PS, ES or EdDSA is")
    if not isinstance(type_, str) or type_.lower() not in _TYPES:
        raise Unauthenticated("the token is not an access token")
    if key_id is not None and not isinstance(key_id, str):
        raise Unauthenticated("the token names no readable key")
    return Header(algorithm, key_id)


def _json_object(segment: str) -> dict[str, Any]:
    try:
        found = orjson.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unauthenticated("the token cannot be read: a signed JWT is expected")
    return found


@dataclass(frozen=True, slots=True)
class Verifier:
    """The rules of one gateway. `leeway` is in seconds, for clocks that differ; `now` is Unix time."""

    issuer: str
    audience: str
    leeway: int
    now: Callable[[], float]

    def verified(self, token: str, header: Header, keys: IssuerKeys) -> Verified:
        """Raises Unauthenticated saying what to do, never what the token holds."""
        claims = _signed_claims(token, header, keys)
        self._check(claims)
        return Verified(caller_of(claims), min(claims["exp"], _END_OF_TIME) + self.leeway)

    def _check(self, claims: dict[str, Any]) -> None:
        registry = jwt.JWTClaimsRegistry(
            now=int(self.now()),
            leeway=self.leeway,
            iss={"essential": True, "value": self.issuer},
            aud={"essential": True, "value": self.audience},
            exp={"essential": True},
        )
        try:
            registry.validate(claims)
        except ExpiredTokenError:
            raise Unauthenticated("the token has expired: get a new one") from None
        except ClaimError as error:
            claim = error.claim.partition(",")[0]
            raise Unauthenticated(_ADVICE.get(claim, "the token lacks a claim that is needed")) from None
        except (JoseError, OverflowError):
            raise Unauthenticated("the token's claims cannot be read") from None


def _signed_claims(token: str, header: Header, keys: IssuerKeys) -> dict[str, Any]:
    for key in keys.candidates(header.key_type, header.algorithm, header.key_id):
        try:
            return jwt.decode(token, key, registry=_REGISTRY).claims
        except (JoseError, ValueError, TypeError, RecursionError):
            continue
    raise Unauthenticated("the token's signature does not verify: get a new one from this gateway's issuer")


def caller_of(claims: Mapping[str, Any]) -> Caller:
    """The caller that claims describe. Raises Unauthenticated for a claim that narrows it but makes no sense."""
    if claims.get("cnf") is not None:
        raise Unauthenticated("the token is bound to a key (cnf), which this gateway cannot check: get a bearer token")
    client = _text(claims, "client_id") or _text(claims, "azp")
    subject = _text(claims, "sub") or client
    if not subject:
        raise Unauthenticated(_ADVICE["sub"])
    try:
        purpose = purpose_of(claims)
    except ValueError:
        raise Unauthenticated("the token's purpose of use cannot be read") from None
    scopes = _words(claims, "scope") or _words(claims, "scp") or frozenset()
    return Caller(subject, client, scopes, purpose, _words(claims, "nodes"))


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name, "")
    return _writable(value, name) if isinstance(value, str) else ""


def _writable(text: str, name: str) -> str:
    """Raises Unauthenticated for half a surrogate pair: whoever is shown something is written down."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unauthenticated(f"the token's {name} claim cannot be read") from None
    return text


def _words(claims: Mapping[str, Any], name: str) -> frozenset[str] | None:
    """A claim that is words in one string or in a list; None when it is not there."""
    value = claims.get(name)
    if value is None:
        return None
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise Unauthenticated(f"the token's {name} claim cannot be read")
    return frozenset(_writable(word, name) for word in words)
