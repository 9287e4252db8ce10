"""What the gateway offers and where tokens come from; no token is needed to ask (PS3.18 8.9, SMART App Launch, RFC 9728)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.sax.saxutils import quoteattr

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from gateway.edge import negotiation
from gateway.edge.context import base_of
from gateway.edge.dicomweb.qidoquery import OPTIONS
from gateway.edge.dicomweb.representations import OFFERED
from gateway.edge.negotiation import DICOM, FRAME_TYPES, JSON, MULTIPART, OCTETS
from gateway.federation.pictures import RENDERED_TYPES
from gateway.security.discovery import protected_resource, smart_configuration
from gateway.wire.media import parse_media_type, preferred

WADL = "application/vnd.sun.wadl+xml"
_OFFERS = (JSON, WADL, "application/xml", "text/xml")
_NAMESPACE = "http://wadl.dev.java.net/2009/02"
_TEXTS = tuple(one.name for one in OFFERED)
_INSTANCES = f'{MULTIPART}; type="{DICOM}"'

REPRESENTATIONS: dict[str, tuple[str, ...]] = {
    "search": _TEXTS,
    "metadata": _TEXTS,
    "retrieve": (_INSTANCES,),
    "frames": tuple(f'{MULTIPART}; type="{each}"' for each in FRAME_TYPES),
    "bulkdata": (f'{MULTIPART}; type="{OCTETS}"', OCTETS),
    "rendered": RENDERED_TYPES,
    "thumbnail": RENDERED_TYPES,
    "store": _TEXTS,
}
"""What each kind of resource is available as, by the name of its route."""
PARAMETERS: dict[str, tuple[str, ...]] = {"search": ("{attributeID}", "includefield", *sorted(OPTIONS))}
"""The query parameters of each kind of resource, besides `accept` and `charset`, which all take."""
_COMMON = ("accept", "charset")
_ABOUT_ITSELF = "capabilities"

Resource = dict[str, object]


def description(base: str, routes: Iterable[BaseRoute]) -> dict[str, object]:
    """Resources, methods, parameters and representations of the service at `base`, in the shape of a WADL application as JSON.

    `routes` are the service's own, from the table that answers requests: nothing is described that is not there.
    """
    return {"application": {"resources": {"@base": f"{base}/", "resource": list(_resources(routes))}}}


def _resources(routes: Iterable[BaseRoute]) -> Iterator[Resource]:
    by_path: dict[str, list[Resource]] = {}
    for route in routes:
        if isinstance(route, Route) and route.name != _ABOUT_ITSELF:
            methods = sorted((route.methods or set()) - {"HEAD", "OPTIONS"})
            by_path.setdefault(route.path.lstrip("/"), []).extend(_method(verb, route) for verb in methods)
    return ({"@path": path, "method": methods} for path, methods in by_path.items())


def _method(verb: str, route: Route) -> Resource:
    types = list(REPRESENTATIONS.get(route.name, ()))
    if route.name == "retrieve" and route.path.endswith("{instance}"):
        types.append(DICOM)
    parameters = (*PARAMETERS.get(route.name, ()), *_COMMON)
    request: Resource = {"param": [{"@name": name, "@style": "query"} for name in parameters]}
    if verb == "POST":
        request["representation"] = [{"@mediaType": _INSTANCES}]
    return {
        "@name": verb,
        "@id": route.name,
        "request": request,
        "response": {"@status": "200", "representation": [{"@mediaType": each} for each in types]},
    }


def as_wadl(described: Resource) -> bytes:
    """The description as WADL in XML (W3C member submission of 2009)."""
    body = "".join(_element("application", described["application"]))
    body = body.replace("<application>", f"<application xmlns={quoteattr(_NAMESPACE)}>", 1)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'.encode()


def _element(name: str, content: object) -> Iterator[str]:
    """'@' names are attributes, lists are repeated elements."""
    assert isinstance(content, dict)
    attributes = "".join(f" {key[1:]}={quoteattr(str(value))}" for key, value in content.items() if key[0] == "@")
    yield f"<{name}{attributes}>"
    for key, value in content.items():
        if key[0] != "@":
            for one in value if isinstance(value, list) else [value]:
                yield from _element(key, one)
    yield f"</{name}>"


async def dicomweb(request: Request) -> Response:
    """The capabilities of the root that was asked: JSON, or WADL for who asks for XML."""
    node = request.path_params.get("node")
    root = f"{base_of(request)}/nodes/{node}/dicom-web" if node else f"{base_of(request)}/dicom-web"
    described = description(root, _routes_of(request))
    headers = {"Allow": "GET, HEAD, POST, OPTIONS", "Vary": "Accept"}
    best = preferred(negotiation.ranges(request, strict=False), [parse_media_type(each) for each in _OFFERS])
    if best:
        return Response(as_wadl(described), headers=headers, media_type=_OFFERS[best])
    return Response(orjson.dumps(described), headers=headers, media_type=JSON)


def _routes_of(request: Request) -> list[BaseRoute]:
    mounts = (route for route in request.app.routes if isinstance(route, Mount) and route.name == "dicomweb")
    return list(next(mounts).routes or ())


async def smart(request: Request) -> Response:
    """`/.well-known/smart-configuration`: where tokens come from and which scopes there are. 404 on an open gateway."""
    issuer, metadata = request.app.state.settings.oidc_issuer, request.app.state.identity.metadata
    return Response(orjson.dumps(smart_configuration(issuer, metadata)), media_type="application/json")


async def resource(request: Request) -> Response:
    """`/.well-known/oauth-protected-resource`: which issuer guards this gateway. 404 on an open one."""
    issuer = request.app.state.settings.oidc_issuer
    return Response(orjson.dumps(protected_resource(base_of(request), issuer)), media_type="application/json")
