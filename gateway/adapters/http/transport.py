"""The HTTP connections to one node: TLS, URLs as built, library failures in our words. Nothing else knows httpx."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import yarl
from httpx_aiohttp.transport import AiohttpResponseStream, AiohttpTransport

from gateway.errors import (
    GatewayError,
    NodeError,
    NodeProtocolError,
    NodeRefused,
    NodeTimeout,
    NodeUnreachable,
    SettingsError,
)

_READ_SIZE = 64 * 1024  # also bounds what one compressed chunk can swell to

Content = bytes | AsyncIterator[bytes] | None


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """TLS towards a node. Verification cannot be turned off; a private CA is added to those of the system."""

    ca_bundle: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None


class Reply:
    """The head of one answer, whatever its status. aclose() in every case: it frees or breaks the connection."""

    def __init__(self, node: str, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
        self._node, self._response, self._pieces = node, response, response.aiter_bytes()

    async def piece(self) -> bytes | None:
        """The next bytes of the body, decompressed; None at its end. Raises NodeProtocolError when it is cut short."""
        with _translated(self._node, in_body=True):
            return await anext(self._pieces, None)

    async def aclose(self) -> None:
        await self._response.aclose()


class Connections:
    """A pool of at most `max_connections`. `connect_timeout` is in seconds; every other deadline is the caller's."""

    def __init__(self, node: str, tls: TlsOptions, connect_timeout: float, max_connections: int) -> None:
        self._node, self._tls = node, tls
        self._connect_timeout, self._max_connections = connect_timeout, max_connections
        self._client: httpx.AsyncClient | None = None

    async def open(self) -> None:
        """Reads the certificates; connects to nobody yet. Raises SettingsError for certificates that cannot be read."""
        if self._client is None:
            transport = _Transport(_tls_context(self._tls), self._max_connections)
            timeout = httpx.Timeout(None, connect=self._connect_timeout)
            no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
            self._client = httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False, cookies=no_cookies)

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    async def send(self, method: str, url: str, headers: Mapping[str, str], content: Content) -> Reply:
        """Sends one request as it is and waits for the head of the answer."""
        assert self._client is not None, "open() comes first"
        with _translated(self._node):
            request = self._client.build_request(method, httpx.URL(url), headers=dict(headers), content=content)
            return Reply(self._node, await self._client.send(request, stream=True))


def _tls_context(tls: TlsOptions) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        if tls.ca_bundle:
            context.load_verify_locations(cafile=tls.ca_bundle)
        if tls.client_cert:
            context.load_cert_chain(tls.client_cert, tls.client_key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError("tls: the CA bundle, certificate or key is not a readable PEM file") from error
    return context


class _Body(AiohttpResponseStream):
    CHUNK_SIZE = _READ_SIZE

    async def aclose(self) -> None:
        """Drops what has come and was not read: whoever remembers why it was not would remember that with it."""
        with contextlib.suppress(aiohttp.ClientError, OSError, RuntimeError):
            self._aiohttp_response.content.read_nowait()
        await super().aclose()


class _Transport(AiohttpTransport):
    """aiohttp under httpx, with two differences: the URL goes out exactly as built, and no cookies are kept.

    The stock transport lets yarl rewrite percent-encoding, which decides whether some nodes find anything at all.
    """

    def __init__(self, context: ssl.SSLContext, max_connections: int) -> None:
        self._context, self._most = context, max_connections
        super().__init__(verify=context, client=self._session)

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=self._context, limit=self._most)
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, read_bufsize=2 * _READ_SIZE
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not isinstance(self.client, aiohttp.ClientSession):
            self.client = self.get_client()
        connect = request.extensions.get("timeout", {}).get("connect")
        response = await self.client.request(
            request.method,
            yarl.URL(str(request.url), encoded=True),
            headers=[(k, v) for k, v in request.headers.multi_items() if k != "transfer-encoding"],
            data=_request_body(request),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(sock_connect=connect),
        )
        return httpx.Response(response.status, headers=response.raw_headers, stream=_Body(response), request=request)


def _request_body(request: httpx.Request) -> Any:
    try:
        return request.content or None
    except httpx.RequestNotRead:
        return request.stream


# The most specific class of an error's ancestry decides.
_MEANINGS: dict[type[BaseException], tuple[type[NodeError], str]] = {
    aiohttp.ClientConnectorCertificateError: (NodeRefused, "shows a certificate that is not trusted"),
    aiohttp.ClientSSLError: (NodeRefused, "and the gateway do not agree on TLS"),
    aiohttp.ServerTimeoutError: (NodeTimeout, "did not accept a connection in time"),
    aiohttp.ServerDisconnectedError: (NodeUnreachable, "closed the connection without an answer"),
    aiohttp.ClientConnectionError: (NodeUnreachable, "cannot be reached"),
    aiohttp.ClientPayloadError: (NodeProtocolError, "cut its answer short"),
    aiohttp.ClientError: (NodeProtocolError, "does not answer in HTTP"),
    httpx.DecodingError: (NodeProtocolError, "sent a body that cannot be decompressed"),
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
        origin = _origin(error)
        if isinstance(origin, GatewayError):
            raise origin from None
        kind, text = next(_MEANINGS[cls] for cls in type(origin).__mro__ if cls in _MEANINGS)
        if in_body and kind is NodeUnreachable:
            kind, text = NodeProtocolError, "cut its answer short"
        raise kind(node, text) from None


def _origin(error: BaseException) -> BaseException:
    """The cause that says most: an error of ours out of an upload's source, or aiohttp's, which httpx's blurs."""
    cause = error.__cause__
    return _origin(cause) if isinstance(cause, GatewayError | aiohttp.ClientError) else error
