"""Refuses to start a gateway that would show patients to the network, or let tokens travel in plain text."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from gateway.errors import SettingsError
from gateway.settings import Settings, is_loopback

_LEAST_SECRET = 16
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@*\sA-Z]+")


def check_start(settings: Settings) -> None:
    """Raises SettingsError naming the variable to set.

    A gateway on loopback is reachable from elsewhere all the same when a proxy or a public address is named.
    """
    _check_certificate(settings)
    _check_secret(settings)
    _check_public_root(settings.public_root)
    _check_origins(settings)
    if is_exposed(settings):
        _check_exposed(settings)
    if settings.oidc_issuer:
        _check_issuer(settings.oidc_issuer)


def is_exposed(settings: Settings) -> bool:
    """Whether others than the users of this machine can reach it: there, tokens are needed and must come over TLS."""
    public = urlsplit(settings.public_root).hostname
    return not settings.on_loopback or bool(settings.trusted_proxies) or bool(public and not is_loopback(public))


def _check_certificate(settings: Settings) -> None:
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        missing = "GATEWAY_TLS_KEY" if settings.tls_certificate else "GATEWAY_TLS_CERTIFICATE"
        raise SettingsError(f"{missing}: a certificate and its key are set together", parameter=missing)


def _check_secret(settings: Settings) -> None:
    """Who guesses it reads Patient ids, and which values the audit says were searched for."""
    if settings.secret is not None and len(settings.secret.get_secret_value()) < _LEAST_SECRET:
        raise SettingsError(
            f"GATEWAY_SECRET: give at least {_LEAST_SECRET} characters that nobody can guess, such as those that "
            "`openssl rand -hex 32` prints",
            parameter="GATEWAY_SECRET",
        )


def _check_origins(settings: Settings) -> None:
    """'null' is every page's as well: one that puts a frame with `sandbox` into itself has that origin."""
    for origin in settings.cors_origins:
        if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
            raise SettingsError(
                f"GATEWAY_CORS_ORIGINS: no browser has the origin '{origin}': give scheme, host and port as it sends them, "
                "such as https://viewer.example.eu",
                parameter="GATEWAY_CORS_ORIGINS",
            )
    if not settings.oidc_issuer and not {"*", "null"}.isdisjoint(settings.cors_origins):
        raise SettingsError(
            "GATEWAY_CORS_ORIGINS: without GATEWAY_OIDC_ISSUER any page that is open in a browser here could read "
            "patients; name the origins instead of * and null",
            parameter="GATEWAY_CORS_ORIGINS",
        )


def _check_exposed(settings: Settings) -> None:
    if not settings.oidc_issuer:
        raise SettingsError(
            "GATEWAY_OIDC_ISSUER: without it anyone who reaches this gateway may see its patients; name the issuer "
            "whose tokens are accepted, or listen on 127.0.0.1 without a proxy or a public root",
            parameter="GATEWAY_OIDC_ISSUER",
        )
    if not settings.tls_certificate and not settings.trusted_proxies:
        raise SettingsError(
            "GATEWAY_TLS_CERTIFICATE: tokens would travel in plain text; set it with GATEWAY_TLS_KEY, or name the "
            "proxies that terminate TLS in GATEWAY_TRUSTED_PROXIES",
            parameter="GATEWAY_TLS_CERTIFICATE",
        )


def _check_public_root(root: str) -> None:
    """What is no URL names no host, and would pass for an address on loopback."""
    if root and _root_url(root) is None:
        raise SettingsError(
            "GATEWAY_PUBLIC_ROOT: give an https URL without query or fragment, such as https://imaging.example.eu: every "
            "address in an answer begins with it",
            parameter="GATEWAY_PUBLIC_ROOT",
        )


def _check_issuer(issuer: str) -> None:
    """OpenID Connect Discovery 1.0, 3; plain http on loopback only."""
    url = _root_url(issuer)
    if url is None or (url.scheme == "http" and not is_loopback(url.hostname or "")):
        raise SettingsError(
            "GATEWAY_OIDC_ISSUER: give an https URL without query or fragment (http only for an issuer on loopback): "
            "the keys that tokens are verified with are fetched from there",
            parameter="GATEWAY_OIDC_ISSUER",
        )


def _root_url(text: str) -> SplitResult | None:
    """A URL with a host, and without query, fragment or credentials, or None."""
    try:
        url = urlsplit(text)
        is_root = url.scheme in ("https", "http") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        return None
    return url if is_root and not (url.query or url.fragment or url.username) else None
