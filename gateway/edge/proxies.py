"""Reverse proxies that are believed: Forwarded and X-Forwarded-* count only when the peer is one of those named (RFC 7239)."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Scope

from gateway.errors import SettingsError
from gateway.wire.media import split_list

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """The trusted proxies, as addresses or networks. Raises SettingsError for one that is neither."""

    def __init__(self, addresses: Sequence[str]) -> None:
        try:
            self._networks: list[Network] = [ipaddress.ip_network(address) for address in addresses]
        except ValueError:
            raise SettingsError(
                "GATEWAY_TRUSTED_PROXIES: give addresses or networks, such as 10.0.0.5 or 10.0.0.0/24",
                parameter="GATEWAY_TRUSTED_PROXIES",
            ) from None

    def trusts(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def applied(self, scope: Scope) -> Scope:
        """The scope as the caller of the proxy sees it: its scheme and host; unchanged when the peer is not trusted."""
        scope = dict(scope)
        peer = (scope.get("client") or ("", 0))[0]
        if not self.trusts(peer):
            return scope
        said = forwarded(Headers(scope=scope))
        if said.get("proto") in ("http", "https"):
            scope["scheme"] = said["proto"]
        if said.get("host"):
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope["headers"] = [*others, (b"host", said["host"].encode("ascii", "ignore"))]
        return scope


def forwarded(headers: Headers) -> dict[str, str]:
    """proto and host of the nearest proxy's Forwarded element, else of X-Forwarded-Proto and -Host."""
    elements = split_list(headers.get("forwarded", ""))
    if elements:
        pairs = (pair.partition("=") for pair in split_list(elements[-1], ";"))
        return {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}
    found = {key: headers.get(f"x-forwarded-{key}", "") for key in ("proto", "host")}
    return {key: value.split(",")[-1].strip() for key, value in found.items() if value}
