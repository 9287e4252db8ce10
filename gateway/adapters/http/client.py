"""HTTP towards one node: credentials, redirects by hand, deadlines and ceilings, refusals as the gateway's errors."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import urlencode, urlsplit

import orjson

from gateway import metrics, tracing
from gateway.adapters.http.address import AllowList
from gateway.adapters.http.auth import Basic, Bearer, ClientCredentials, HttpAuth, authorizer
from gateway.adapters.http.body import Body
from gateway.adapters.http.transport import Connections, Content, Reply, TlsOptions
from gateway.errors import (
    NodeBusy,
    NodeError,
    NodeProtocolError,
    NodeRefused,
    NodeTimeout,
    NodeUnreachable,
    deadline_told,
)
from gateway.settings import is_loopback

MAX_CHUNK = 1024 * 1024
_MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_AGENT = "imaging-gateway"
_DOCUMENTS_AT_ONCE = 2
_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. `total` bounds whole searches; bodies have only `first_byte` and `idle`, because they may be large."""

    connect: float = 5.0
    first_byte: float = 30.0
    idle: float = 30.0
    total: float = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, and its body as chunks of at most 1 MiB, decompressed. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    url: str
    body: AsyncIterator[bytes]

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "")


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """`document` is None for an answer without a body, as 204 is, and for one with another status than 2xx; `size` is its bytes."""

    status: int
    headers: Mapping[str, str]
    url: str
    document: Any
    size: int = 0


class HttpClient:
    """One node's HTTP service. `base_url` is where relative paths start; open() before use, close() after.

    Every method raises NodeError: unreachable, timed out, busy (429, 503), refused (401, 403, an address outside
    `allow`), or out of protocol. A status in `expect` is handed to the caller instead. The node's credentials go to
    its own origin and to the `trusted` places; the other places of `allow` are asked without. `codings` are those in which a
    document may come: over loopback, to compress it takes longer than to send it.
    """

    def __init__(
        self,
        node: str,
        *,
        base_url: str,
        auth: HttpAuth = None,
        tls: TlsOptions | None = None,
        timeouts: Timeouts | None = None,
        allow: Sequence[str] = (),
        trusted: Sequence[str] = (),
        max_connections: int = 16,
        json_ceiling: int = 64 * 1024 * 1024,
    ) -> None:
        self.node = node
        self.base_url = base_url.rstrip("/")
        self.timeouts = timeouts or Timeouts()
        self._connections = Connections(node, tls or TlsOptions(), self.timeouts.connect, max_connections)
        self._addresses = AllowList(node, self.base_url, allow, trusted)
        self._authorizer = authorizer(node, auth, self._post_form)
        self._json_ceiling = json_ceiling
        self.codings = "identity" if is_loopback(urlsplit(base_url).hostname or "") else "gzip, deflate"
        self._being_read = 0
        self._received, self._sent = metrics.received_from(node), metrics.sent_to(node)

    async def open(self) -> None:
        """Reads the certificates; connects to nobody yet. Raises SettingsError for certificates that cannot be read."""
        await self._connections.open()

    async def close(self) -> None:
        await self._authorizer.close()
        await self._connections.close()

    def url(self, path: str, query: str = "") -> str:
        """The address below the base URL. Both go out as they are: the caller has percent-encoded them."""
        return f"{self.base_url}/{path.lstrip('/')}" + (f"?{query}" if query else "")

    def check_address(self, url: str, *, base: str = "") -> str:
        """An address that the node handed out, made absolute. Raises NodeRefused when it leads outside `allow`."""
        return self._addresses.check(url, base or self.base_url + "/")

    async def get_json(
        self,
        url: str,
        *,
        accept: str = "application/json",
        headers: Mapping[str, str] | None = None,
        expect: Collection[int] = (),
        within: float | None = None,
        ceiling: int | None = None,
    ) -> JsonAnswer:
        """One JSON document, read whole within `within` seconds (`timeouts.total`) and `ceiling` bytes."""
        seconds = self.timeouts.total if within is None else within
        asked = {"Accept": accept, "Accept-Encoding": self.codings, **(headers or {})}
        with deadline_named(self.node, f"did not complete its answer within {seconds:g} s"):
            async with asyncio.timeout(seconds), self.stream("GET", url, headers=asked, expect=expect) as answer:
                is_told = 200 <= answer.status < 300
                document, size = await self._document(answer, ceiling) if is_told else (None, 0)
        return JsonAnswer(answer.status, answer.headers, answer.url, document, size)

    async def read_json(self, answer: Answer, ceiling: int | None = None) -> Any:
        """The document of an answer; None for an empty body. Raises NodeError as `read`, and for what is no JSON."""
        return (await self._document(answer, ceiling))[0]

    async def _document(self, answer: Answer, ceiling: int | None) -> tuple[Any, int]:
        with Body(self._json_ceiling if ceiling is None else ceiling) as body:
            await self._fill(body, answer)
            with body.view() as raw:
                return (self._parsed(raw) if body.size else None), body.size

    async def read(self, answer: Answer, ceiling: int | None = None) -> bytes:
        """A whole body. Raises NodeProtocolError when it is larger than the ceiling, NodeBusy when all that is being read
        of this node at once is larger than two such."""
        with Body(self._json_ceiling if ceiling is None else ceiling) as body:
            await self._fill(body, answer)
            with body.view() as raw:
                return bytes(raw)

    async def _fill(self, body: Body, answer: Answer) -> None:
        try:
            async for chunk in answer.body:
                body.add(chunk)
                self._being_read += len(chunk)
                if body.size > body.ceiling:
                    raise NodeProtocolError(self.node, f"sent a document larger than {body.ceiling} bytes")
                if self._being_read > _DOCUMENTS_AT_ONCE * self._json_ceiling:
                    raise NodeBusy(self.node, "is sending more than is read of one node at once", retry_after=1.0)
        finally:
            self._being_read -= body.size

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Content = None,
        expect: Collection[int] = (),
    ) -> AsyncIterator[Answer]:
        """An answer whose body streams. Leaving the block before its end closes the connection."""
        reply, final_url = await self._follow(method, url, dict(headers or {}), content)
        try:
            if not (200 <= reply.status < 300 or reply.status in expect):
                raise _refusal(self.node, reply)
            yield Answer(reply.status, reply.headers, final_url, self._chunks(reply))
        finally:
            await reply.aclose()

    async def _follow(self, method: str, url: str, headers: dict[str, str], content: Content) -> tuple[Reply, str]:
        """The final answer and its address. Only a GET is redirected, and each step stays inside the allow list."""
        for _ in range(_MAX_REDIRECTS + 1):
            reply = await self._send_authorized(method, url, headers, content)
            if reply.status not in _REDIRECTS:
                return reply, url
            await reply.aclose()
            if method != "GET":
                raise NodeRefused(self.node, "redirected an upload")
            url = self.check_address(reply.headers.get("location", ""), base=url)
        raise NodeProtocolError(self.node, f"redirected more than {_MAX_REDIRECTS} times")

    async def _send_authorized(self, method: str, url: str, headers: dict[str, str], content: Content) -> Reply:
        """With the credentials where they belong; after a 401 once more with a new token if the body allows."""
        if not self._addresses.trusts(url):
            return await self._send(method, url, headers, content)
        proof = await self._authorizer.headers()
        reply = await self._send(method, url, headers | proof, content)
        if reply.status != 401 or not self._authorizer.renewable:
            return reply
        self._authorizer.reject(proof)
        if content is not None and not isinstance(content, bytes):
            return reply
        await reply.aclose()
        return await self._send(method, url, headers | await self._authorizer.headers(), content)

    async def _send(self, method: str, url: str, headers: dict[str, str], content: Content) -> Reply:
        """The first-byte deadline runs from the last byte sent: a long upload that moves is not a late answer."""
        seconds = self.timeouts.first_byte
        identified = {"User-Agent": _AGENT, "Accept-Encoding": "identity", **tracing.outgoing(), **headers}
        with deadline_named(self.node, f"did not begin to answer within {seconds:g} s"):
            async with asyncio.timeout(seconds) as deadline:
                if content is not None and not isinstance(content, bytes):
                    content = _moving(content, deadline, seconds, self._sent.inc)
                elif content:
                    self._sent.inc(len(content))
                del deadline  # it holds this task, which keeps the frames that it is cancelled in
                return await self._connections.send(method, url, identified, content)

    async def _chunks(self, reply: Reply) -> AsyncIterator[bytes]:
        seconds = max(self.timeouts.first_byte, self.timeouts.idle)  # a head alone is not the first byte of a body
        while True:
            piece = reply.at_hand()
            if piece is None:
                with deadline_named(self.node, f"went silent for {seconds:g} s"):
                    async with asyncio.timeout(seconds):
                        piece = await reply.piece()
            if not piece:
                return
            self._received.inc(len(piece))
            seconds = self.timeouts.idle
            for start in range(0, len(piece), MAX_CHUNK):
                yield piece if len(piece) <= MAX_CHUNK else piece[start : start + MAX_CHUNK]

    async def _post_form(self, url: str, form: dict[str, str]) -> Any:
        """A token is fetched within the time of a search: those who wait for it share one fetch, and its silence."""
        seconds = self.timeouts.total
        with deadline_named(self.node, f"got no token from its token endpoint within {seconds:g} s"):
            async with asyncio.timeout(seconds):
                return await self._post(url, form)

    async def _post(self, url: str, form: dict[str, str]) -> Any:
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        reply = await self._send("POST", url, headers, urlencode(form).encode())
        try:
            if reply.status != 200:
                raise NodeRefused(self.node, f"got no token: the token endpoint answered {reply.status}")
            return self._parsed(await self.read(Answer(200, reply.headers, url, self._chunks(reply)), MAX_CHUNK))
        finally:
            await reply.aclose()

    def _parsed(self, raw: bytes | memoryview) -> Any:
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(raw)
        # Raised out here, because orjson's error holds the whole document and would stay as this one's context.
        raise NodeProtocolError(self.node, "answered with something that is not JSON")


async def _moving(
    content: AsyncIterator[bytes], deadline: asyncio.Timeout, seconds: float, count: Callable[[int], None]
) -> AsyncIterator[bytes]:
    """Puts the deadline off at every chunk that the connection takes; filling a chunk is on its source's own clock."""
    loop = asyncio.get_running_loop()

    def postpone(until: float | None) -> None:
        with contextlib.suppress(RuntimeError):  # answered before the upload was read: the deadline has done its work
            deadline.reschedule(until)

    postpone(None)
    async for chunk in content:
        postpone(loop.time() + seconds)
        count(len(chunk))
        yield chunk
        postpone(None)
    postpone(loop.time() + seconds)


def deadline_named(node: str, text: str) -> deadline_told:
    """A deadline that passes inside is the node's."""
    return deadline_told(partial(NodeTimeout, node, text))


_REFUSALS: dict[int, Callable[[str, Reply], NodeError]] = {
    401: lambda node, _: NodeRefused(node, "does not accept the gateway's credentials (401)"),
    403: lambda node, _: NodeRefused(node, "forbids the request (403)"),
    407: lambda node, _: NodeRefused(node, "is behind a proxy that asks for credentials (407)"),
    429: lambda node, reply: NodeBusy(node, "is busy (429)", retry_after=_retry_after(reply)),
    502: lambda node, _: NodeUnreachable(node, "is not reached by its own front (502)"),
    503: lambda node, reply: NodeBusy(node, "is busy (503)", retry_after=_retry_after(reply)),
    504: lambda node, _: NodeTimeout(node, "is not reached in time by its own front (504)"),
}


def _refusal(node: str, reply: Reply) -> NodeError:
    refusal = _REFUSALS.get(reply.status)
    return refusal(node, reply) if refusal else NodeProtocolError(node, f"answered with status {reply.status}")


def _retry_after(reply: Reply) -> float | None:
    """Retry-After in seconds, a day at most, from seconds or an HTTP date (RFC 9110 10.2.3); None when absent or unreadable."""
    raw = reply.headers.get("retry-after", "")
    if raw.isascii() and raw.isdecimal():
        return min(float(raw), _DAY)
    try:
        return min(max(0.0, parsedate_to_datetime(raw).timestamp() - time.time()), _DAY)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


__all__ = [
    "Answer",
    "Basic",
    "Bearer",
    "ClientCredentials",
    "Content",
    "HttpAuth",
    "HttpClient",
    "JsonAnswer",
    "Timeouts",
    "TlsOptions",
    "deadline_named",
]
