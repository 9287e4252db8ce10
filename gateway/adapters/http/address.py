"""The addresses a node may send us to: its own origin, and what its `allow` list names; everything else is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from gateway.errors import NodeRefused, SettingsError

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")


@dataclass(frozen=True, slots=True)
class Place:
    """One origin with a path prefix; '' allows every path. A prefix ends at a '/' of the path, never inside a name."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    def holds(self, address: SplitResult) -> bool:
        if _origin(address) != (self.scheme, self.host, self.port):
            return False
        path = unquote(address.path)
        if _leads_up(path):
            return not self.prefix
        return not self.prefix or path == self.prefix or path.startswith(self.prefix + "/")


def _leads_up(path: str) -> bool:
    """Whether some server takes a step of the path for '..': Tomcat does with parameters behind it, IIS by a backslash, and one
    that stands behind another decodes twice."""
    return any(step.partition(";")[0] == ".." for step in re.split(r"[/\\]", unquote(path)))


def place(url: str) -> Place:
    """An entry of an `allow` list. Raises SettingsError for anything but an http(s) address without userinfo."""
    origin = _origin(urlsplit(url))
    if origin is None:
        raise SettingsError("an allowed address is http:// or https:// with a host, a port and a path if need be")
    return Place(*origin, prefix=unquote(urlsplit(url).path).rstrip("/"))


class AllowList:
    """What one node may lead us to. `trusted` are the places that are sent the node's credentials too."""

    def __init__(self, node: str, base_url: str, allow: Iterable[str], trusted: Iterable[str] = ()) -> None:
        self._node = node
        home = place(base_url)
        home = Place(home.scheme, home.host, home.port)
        self._below_base = base_url.rstrip("/") + "/"
        self._trusted = (home, *map(place, trusted))
        self._allowed = (*self._trusted, *map(place, allow))

    def check(self, url: str, base: str) -> str:
        """The absolute form of an address that a node gave. Raises NodeRefused, naming no more than the host."""
        if _UNSAFE.search(url):
            raise NodeRefused(self._node, "handed out an address that is not a URL")
        address = _resolved(base, url)
        if address is None or _origin(address) is None:
            raise NodeRefused(self._node, "handed out an address that is not a plain http or https URL")
        if not any(place.holds(address) for place in self._allowed):
            raise NodeRefused(self._node, f"led to the host {address.hostname}, which is outside its allow list")
        return urlunsplit(address._replace(fragment=""))

    def trusts(self, url: str) -> bool:
        """Whether the node's credentials may go to this (already checked) address."""
        return url.startswith(self._below_base) or any(place.holds(urlsplit(url)) for place in self._trusted)


def _resolved(base: str, url: str) -> SplitResult | None:
    try:
        return urlsplit(urljoin(base, url))
    except ValueError:
        return None


def same_origin(a: str, b: str) -> bool:
    """Whether two http(s) URLs have one scheme, host and port. False for anything that is no such URL."""
    try:
        origins = _origin(urlsplit(a)), _origin(urlsplit(b))
    except ValueError:
        return False
    return origins[0] is not None and origins[0] == origins[1]


def _origin(address: SplitResult) -> tuple[str, str, int] | None:
    """(scheme, host, port); None for other schemes, userinfo, and hosts or ports that are none."""
    host = (address.hostname or "").removesuffix(".")  # the root of all names, which each name may say (RFC 1034 3.1)
    if address.scheme not in _DEFAULT_PORTS or "@" in address.netloc or not _HOST.fullmatch(host):
        return None
    try:
        return address.scheme, host, address.port or _DEFAULT_PORTS[address.scheme]
    except ValueError:
        return None
