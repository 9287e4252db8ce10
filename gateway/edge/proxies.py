"""Reverse proxies that are believed: Forwarded and X-Forwarded-* count only from a named peer (RFC 7239)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Scope

from gateway.errors import SettingsError
from gateway.wire.media import split_list

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# RFC 7239 4, and values without the quotes they should have ("host=a:8443"). What does not match as a whole is not
# believed at all: an open quote in a caller's own header could otherwise swallow what the proxy added to it. Every
# repetition is possessive, so that a hostile header costs no backtracking.
_VALUE = r'(?:"(?:[^"\\]|\\.)*+"|[^\s",;\\]*+)'
_ELEMENT = rf"[\w-]++={_VALUE}(?:\s*+;\s*+[\w-]++={_VALUE})*+(?:\s*+;)?+\s*+"
_FORWARDED = re.compile(rf"\s*+{_ELEMENT}(?:,\s*+{_ELEMENT})*+")
_HOST = re.compile(r"[A-Za-z0-9._-]+(?::\d{1,5})?|\[[0-9A-Fa-f:.]+\](?::\d{1,5})?")
_PORT, _HAS_PORT = re.compile(r"\d{1,5}"), re.compile(r":\d{1,5}$")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_PARTS = ("proto", "host")


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
        """Whether the peer's address is a trusted proxy's; on a dual-stack socket IPv4 comes as ::ffff:10.0.0.5."""
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)

    def applied(self, scope: Scope) -> Scope:
        """The scope as the caller of the proxy sees it: its scheme and host; the very one given when the peer is not trusted."""
        peer = (scope.get("client") or ("", 0))[0]
        if not self._networks or not self.trusts(peer):
            return scope
        scope = dict(scope)
        said = forwarded(Headers(scope=scope))
        if "proto" in said:
            scope["scheme"] = said["proto"]
        if "prefix" in said:
            scope["public_prefix"] = said["prefix"]
        if "host" in said:
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope["headers"] = [*others, (b"host", said["host"].encode("ascii"))]
        return scope


def forwarded(headers: Headers) -> dict[str, str]:
    """`proto`, `host` and `prefix` (of the path) as the nearest proxy says them; what it does not say, or what cannot be one,
    is left out.

    A proxy sets one family of headers and may pass the other on as its caller sent it. Where the two disagree, the
    scheme is http and the host is not believed.
    """
    standard, customary = _standard(headers), _customary(headers)
    said = {**customary, **standard}
    for part in _PARTS:
        if part in standard and part in customary and standard[part] != customary[part]:
            said.pop(part)
            said |= {"proto": "http"} if part == "proto" else {}
    return said


def _standard(headers: Headers) -> dict[str, str]:
    """The last element of Forwarded: each proxy adds its own at the end, as an element or as a line of its own."""
    text = ",".join(headers.getlist("forwarded"))
    if not text.strip():
        return {}
    if not _FORWARDED.fullmatch(text):
        return {"proto": "http"}
    pairs = (pair.partition("=") for pair in split_list(split_list(text)[-1], ";"))
    return _believable({name.strip().lower(): value.strip().strip('"') for name, _, value in pairs})


def _customary(headers: Headers) -> dict[str, str]:
    """X-Forwarded-Proto, -Host, -Port (where the host has none) and -Prefix, the last value of each."""
    lists = {part: ",".join(headers.getlist(f"x-forwarded-{part}")) for part in (*_PARTS, "port", "prefix")}
    said = {part: text.rpartition(",")[2].strip() for part, text in lists.items()}
    believed = _believable(said)
    standard_port = {"http": "80", "https": "443"}.get(believed.get("proto", ""))
    if "host" in believed and _PORT.fullmatch(said["port"]) and not _HAS_PORT.search(believed["host"]):
        believed["host"] += "" if said["port"] == standard_port else f":{said['port']}"
    prefix = said["prefix"].rstrip("/")
    return believed | ({"prefix": prefix} if _PREFIX.fullmatch(prefix) else {})


def _believable(said: dict[str, str]) -> dict[str, str]:
    proto, host = said.get("proto", "").lower(), said.get("host", "")
    found = {"proto": proto} if proto in ("http", "https") else {}
    return found | ({"host": host} if _HOST.fullmatch(host) else {})
