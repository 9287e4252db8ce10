"""The HTTP connections to one node: TLS, URLs as built, library failures in our words. Nothing else knows aiohttp."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import aiohttp
import httpx
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.adapters.http.names import addresses_of
from gateway.errors import (
    GatewayError,
    NodeBusy,
    NodeError,
    NodeProtocolError,
    NodeRefused,
    NodeTimeout,
    NodeUnreachable,
    SettingsError,
    let_go,
)

# An address that is sent as it stands: nothing in it needs encoding (RFC 3986), no step of its path leads upwards.
# Possessive, since an address may be a hundred UIDs long.
_SAFE = r"(?:[A-Za-z0-9._~/:@!$&'()*+,;=-]++|%[0-9A-Fa-f]{2})*+"
_PLAIN = re.compile(rf"(?!.*/\.)https?://[a-z0-9.-]+(?::[0-9]+)?(?:/{_SAFE}(?:\?{_SAFE})?)?")
_READ_SIZE = 64 * 1024  # also bounds what is decompressed at once
_GZIP = 16 + zlib.MAX_WBITS

Content = bytes | AsyncIterator[bytes] | None


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """TLS towards a node. Verification cannot be turned off; a private CA is added to those of the system."""

    ca_bundle: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None


class Reply:
    """The head of one answer, whatever its status; of a compressed one without its length, which is not that of what is read.
    aclose() in every case: it frees or breaks the connection."""

    def __init__(self, node: str, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        headers = _joined(response.raw_headers)
        self._node, self._response = node, response
        self._decoded: AsyncGenerator[bytes] | None = None
        if headers.get("content-encoding", "identity") != "identity":
            headers.pop("content-length", None)
            self._decoded = _decoded(node, response.content, headers["content-encoding"].strip().lower())
        self.headers: Mapping[str, str] = headers

    def at_hand(self) -> bytes | None:
        """What of the body has come already, b"" at its end; None where it has to be waited for, or to be decompressed."""
        content = self._response.content
        if self._decoded is not None or content.exception() is not None:
            return None
        return content.read_nowait() or (b"" if content.at_eof() else None)

    async def piece(self) -> bytes | None:
        """The next bytes of the body, decompressed; None at its end. Raises NodeProtocolError when it is cut short."""
        with _translated(self._node, in_body=True):
            if self._decoded is not None:
                return await anext(self._decoded, None)
            return await self._response.content.readany() or None

    async def aclose(self) -> None:
        """Drops what has come and was not read: whoever remembers why it was not would remember that with it."""
        if self._response.content.exception() is None:
            with contextlib.suppress(RuntimeError):
                self._response.content.read_nowait()
        if self._decoded is not None:
            await self._decoded.aclose()
        self._response.release()
        await self._response.wait_for_close()


def _joined(pairs: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Names in lower case; what comes several times as one list (RFC 9110 5.3)."""
    joined: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


async def _decoded(node: str, content: aiohttp.StreamReader, coding: str) -> AsyncGenerator[bytes]:
    """A compressed body as it was before, in pieces that are never large, whatever it swells to. Raises NodeProtocolError for
    another coding than was asked for, also for several, and for a body that is malformed or cut short."""
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise NodeProtocolError(node, "compressed its answer in a way that it was not asked for")
    inflate: zlib._Decompress | None = None
    try:
        while piece := await content.read(_READ_SIZE):
            inflate = inflate or _inflating(coding, piece)
            for some in _inflated(inflate, piece):
                yield some
    except zlib.error:
        raise NodeProtocolError(node, "sent a body that cannot be decompressed") from None
    if inflate is not None and not inflate.eof:
        raise NodeProtocolError(node, "cut its answer short")


def _inflated(inflate: zlib._Decompress, piece: bytes) -> Iterator[bytes]:
    """What comes of a piece, never empty. Raises zlib.error, also for what lies behind the end."""
    while True:
        some = inflate.decompress(piece, _READ_SIZE)
        if some:
            yield some
        piece = inflate.unconsumed_tail
        if not piece and len(some) < _READ_SIZE:
            break
    if inflate.unused_data:
        raise zlib.error


def _inflating(coding: str, first: bytes) -> zlib._Decompress:
    """By RFC 9110 8.4.1; 'deflate' is sent with and without the zlib header that it should have."""
    if coding != "deflate":
        return zlib.decompressobj(_GZIP)
    has_header = first[0] & 0x0F == zlib.DEFLATED and (len(first) < 2 or int.from_bytes(first[:2]) % 31 == 0)
    return zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)


class _Names(AbstractResolver):
    """The names of hosts, in threads of their own."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host=one.address, port=one.port, family=one.family, proto=one.protocol, flags=0
            )
            for one in await addresses_of(host, port, family)
        ]

    async def close(self) -> None:
        """Nothing is held."""


class Connections:
    """A pool of at most `max_connections`. `connect_timeout` is in seconds; every other deadline is the caller's."""

    def __init__(self, node: str, tls: TlsOptions, connect_timeout: float, max_connections: int) -> None:
        self._node, self._tls = node, tls
        self._timeout = aiohttp.ClientTimeout(sock_connect=connect_timeout)
        self._max_connections = max_connections
        self._context: ssl.SSLContext | None = None
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Reads the certificates; connects to nobody yet. Raises SettingsError for certificates that cannot be read."""
        self._context = self._context or _tls_context(self._tls, _written_at(self._tls))

    async def close(self) -> None:
        session, self._session, self._context = self._session, None, None
        if session is not None:
            await session.close()

    async def send(self, method: str, url: str, headers: Mapping[str, str], content: Content) -> Reply:
        """Sends one request as it is and waits for the head of the answer."""
        with _translated(self._node):
            response = await self._opened().request(
                method,
                _exactly(url),
                headers=headers,
                data=content or None,
                allow_redirects=False,
                timeout=self._timeout,
            )
        return Reply(self._node, response)

    def _opened(self) -> aiohttp.ClientSession:
        """Made where it is used first: it belongs to the event loop that runs then. No cookies are kept. Raises NodeBusy where
        it is not open, or no more."""
        if self._context is None:
            raise NodeBusy(self._node, "not open")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._context, limit=self._max_connections, resolver=_Names()),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=2 * _READ_SIZE,
            )
        return self._session


def _exactly(url: str) -> yarl.URL:
    """The URL goes out as it was built: yarl's percent-encoding decides whether some nodes find anything at all. What no
    URL may hold is encoded. Raises httpx.InvalidURL."""
    return yarl.URL(url if _PLAIN.fullmatch(url) else str(httpx.URL(url)), encoded=True)


def _written_at(tls: TlsOptions) -> tuple[int, ...]:
    """When the files of certificates were last written, 0 for one that is not there."""
    system = ssl.get_default_verify_paths()
    files = (system.cafile, system.capath, tls.ca_bundle, tls.client_cert, tls.client_key)
    return tuple(os.stat(file).st_mtime_ns if file and os.path.exists(file) else 0 for file in files)


@lru_cache(64)
def _tls_context(tls: TlsOptions, _written: tuple[int, ...]) -> ssl.SSLContext:
    """One for all nodes with the same options, for as long as their files are the same: to read the system's certificates takes
    20 ms and 0.9 MB."""
    context = ssl.create_default_context()
    try:
        if tls.ca_bundle:
            context.load_verify_locations(cafile=tls.ca_bundle)
        if tls.client_cert:
            context.load_cert_chain(tls.client_cert, tls.client_key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError("tls: the CA bundle, certificate or key is not a readable PEM file") from error
    return context


# The most specific class of an error's ancestry decides.
_MEANINGS: dict[type[BaseException], tuple[type[NodeError], str]] = {
    aiohttp.ClientConnectorCertificateError: (NodeRefused, "shows a certificate that is not trusted"),
    aiohttp.ClientSSLError: (NodeRefused, "and the gateway do not agree on TLS"),
    aiohttp.ServerTimeoutError: (NodeTimeout, "did not accept a connection in time"),
    aiohttp.ServerDisconnectedError: (NodeUnreachable, "closed the connection without an answer"),
    aiohttp.ClientConnectionError: (NodeUnreachable, "cannot be reached"),
    aiohttp.ClientPayloadError: (NodeProtocolError, "cut its answer short"),
    aiohttp.ClientError: (NodeProtocolError, "does not answer in HTTP"),
    httpx.HTTPError: (NodeProtocolError, "does not answer in HTTP"),
    httpx.InvalidURL: (NodeProtocolError, "handed out an address that is not a URL"),
    OSError: (NodeUnreachable, "cannot be reached"),
}


@contextlib.contextmanager
def _translated(node: str, *, in_body: bool = False) -> Iterator[None]:
    """A library's failure in the gateway's words. In a body every broken connection is a truncated answer."""
    try:
        yield
    except (aiohttp.ClientError, httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise _in_our_words(node, error, in_body) from None


def _in_our_words(node: str, error: Exception, in_body: bool) -> GatewayError:
    origin = _origin(error)
    let_go(error)  # the stream that it comes from holds it
    if isinstance(origin, GatewayError):
        return origin
    kind, text = next(_MEANINGS[cls] for cls in type(origin).__mro__ if cls in _MEANINGS)
    if in_body and kind is NodeUnreachable:
        return NodeProtocolError(node, "cut its answer short")
    return kind(node, text)


def _origin(error: BaseException) -> BaseException:
    """The cause that says most: an error of ours out of an upload's source, or aiohttp's, which httpx's blurs."""
    cause = error.__cause__
    return _origin(cause) if isinstance(cause, GatewayError | aiohttp.ClientError) else error
