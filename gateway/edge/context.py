"""What one request carries through the edge: the caller, the nodes it is about, and the addresses it is answered with."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import URL, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.cache import bodies, freshness
from gateway.edge.estate import Estate
from gateway.errors import InvalidQuery
from gateway.model.answer import Found
from gateway.pipeline import Pipeline
from gateway.security.caller import Caller
from gateway.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """`base` is the gateway's own URL as the caller sees it; `root` that of the DICOMweb service asked; no slash at the end.

    `nodes` are the names asked for by path or by `?node=`; none means all.
    """

    settings: Settings
    pipeline: Pipeline
    caller: Caller
    nodes: tuple[str, ...]
    base: str
    root: str

    def root_of(self, found: Found) -> str:
        """The root that a result can be retrieved at: an ambiguous one only at a node that holds it."""
        return f"{self.base}/nodes/{found.origin}/dicom-web" if found.ambiguous and len(self.nodes) != 1 else self.root

    def json_response(
        self,
        request: Request,
        body: bytes,
        media_type: str,
        warnings: Sequence[str],
        complete: bool,
        identity: bytes | None = None,
    ) -> Response:
        """A look-up's answer. A complete one has an ETag and may be kept and revalidated; a partial one is stored nowhere.

        `identity` stands for the body in the ETag, where something shorter determines it."""
        response = Response(body, media_type=media_type)
        mark_cacheable(response.headers, (identity or body) if complete else None)
        for warning in warnings:
            response.headers.append("Warning", warning)
        return revalidated(request, response)


_ROUNDING = 0.01
"""Seconds that pass while an answer is made of one that is as good as new: they take no whole second off its time."""


def mark_cacheable(headers: MutableHeaders, body: bytes | None) -> None:
    """ETag and Cache-Control for a complete body; no-store for None. Answers differ by caller and by Accept.

    `Age` is that of the oldest answer of a node that it was made of; `max-age` counts from then on (RFC 9111 4.2), so that
    whoever keeps it stops believing it when the first of them is no longer fresh.
    """
    headers["Vary"] = "Accept, Authorization"
    collected = freshness.current()
    age, remaining = int(collected.age), collected.remaining + _ROUNDING
    if math.isfinite(remaining):
        headers["Age"] = str(age)
    if body is None:
        headers["Cache-Control"] = "no-store"
        return
    headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    lasts = math.isfinite(remaining) and remaining >= 1
    headers["Cache-Control"] = (
        f"private, max-age={age + int(remaining)}, must-revalidate" if lasts else "private, no-cache"
    )


def revalidated(request: Request, response: Response) -> Response:
    """304 in place of a body that the caller has already: If-None-Match, compared weakly; '*' is any (RFC 9110 13.1.2)."""
    _offer(response)
    asked = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if not asked & {response.headers.get("etag", "none"), "*"} or "etag" not in response.headers:
        return response
    kept = {
        name: value
        for name, value in response.headers.items()
        if not name.startswith("content-") or name == "content-location"
    }
    return Response(status_code=304, headers=kept)


def _offer(response: Response) -> None:
    """Tells who keeps answers what the whole one is, also where only a 304 goes out."""
    making = bodies.current()
    is_whole = not isinstance(response, StreamingResponse)
    if making is not None and is_whole and response.status_code == 200 and "etag" in response.headers:
        making.whole = response.status_code, tuple(response.raw_headers), bytes(response.body)


def context_of(request: Request) -> Context:
    """The context of a request that the middleware has let in."""
    node = request.path_params.get("node")
    if any(name != "node" and name.lower() == "node" for name in request.query_params):
        raise InvalidQuery("node is written in small letters", parameter="node")
    named = [name for value in request.query_params.getlist("node") for name in value.split(",") if name]
    if node and named and set(named) != {node}:
        raise InvalidQuery("the path already names the node", parameter="node")
    base = base_of(request)
    nodes = (node,) if node else tuple(dict.fromkeys(named))
    root = f"{base}/nodes/{node}/dicom-web" if node else f"{base}/dicom-web"
    estate: Estate = request.scope["estate"]
    return Context(request.app.state.settings, estate.pipeline, request.scope["caller"], nodes, base, root)


def base_of(request: Request) -> str:
    """The configured public root, else what the request (or the trusted proxy's Forwarded) says."""
    configured: str = request.app.state.settings.public_root
    return configured.rstrip("/") or str(_with_port(request)).rstrip("/") + request.scope.get("public_prefix", "")


def _with_port(request: Request) -> URL:
    """The root of the request's own URL. dicomweb-client leaves the port out of Host: where Host is the very address that
    the connection came in on, the connection knows it."""
    base, address = request.base_url, request.scope.get("server")
    if base.port is None and base.scheme == "http" and address and base.hostname in (address[0], "localhost"):
        return base.replace(port=address[1]) if address[1] != 80 else base
    return base
