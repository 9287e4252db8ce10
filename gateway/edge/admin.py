"""What operators and passers-by ask: alive, ready, the nodes and their state, metrics, and a plain first page."""

from __future__ import annotations

import asyncio
from html import escape

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from gateway.edge.context import base_of
from gateway.exposition import exposition
from gateway.federation.resilience import Health
from gateway.pipeline import NodeState

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Imaging gateway</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body{{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#1b1f24}}
table{{border-collapse:collapse;width:100%}}td,th{{text-align:left;padding:.4rem .8rem;border-bottom:1px solid #d0d7de}}
.down{{color:#b3261e}}.degraded{{color:#9a6700}}.up{{color:#1a7f37}}
code{{background:#f3f4f6;padding:.1rem .3rem}}</style></head><body>
<h1>Imaging gateway</h1><p>One FHIR ImagingStudy and DICOMweb interface over {count} nodes.</p>
<table><thead><tr><th>Node</th><th>Organisation</th><th>Country</th><th>Speaks</th><th>State</th>
<th>At work / queued</th><th>Search p50 / p95</th><th>Service</th></tr>
</thead><tbody>{rows}</tbody></table><h2>Try</h2><ul>{links}</ul></body></html>"""


async def live(_: Request) -> Response:
    """200 while the process answers at all."""
    return PlainTextResponse("live")


async def ready(request: Request) -> Response:
    """One word: ready, or 503 and why not."""
    state = request.app.state
    if state.ready:
        return PlainTextResponse("ready")
    return PlainTextResponse("draining" if state.draining else "starting", 503)


async def metrics(_: Request) -> Response:
    """Prometheus text, added up over all workers."""
    return Response(await asyncio.to_thread(exposition), media_type=CONTENT_TYPE_LATEST)


async def nodes(request: Request) -> Response:
    """`{"nodes": [...]}`: every node and its state, and whether the node file on disk is in force; no addresses of the
    hospitals' own network."""
    states = request.scope["estate"].pipeline.node_states(request.scope["caller"])
    body = {
        "nodes": [_as_json(state, base_of(request)) for state in states],
        "cache": request.app.state.cache_state(),
        "node_file": request.app.state.node_file_state(),
    }
    return Response(orjson.dumps(body), media_type="application/json", headers={"Cache-Control": "no-store"})


def _as_json(state: NodeState, base: str) -> dict[str, object]:
    return {
        "id": state.id,
        "name": state.name,
        "country": state.country,
        "organisation": state.organisation,
        "adapter": state.adapter,
        "mapping": state.mapping,
        "state": state.state,
        "reason": state.reason,
        "availability": state.availability,
        **_health_as_json(state.health),
        "dicomweb": f"{base}/nodes/{state.id}/dicom-web",
    }


def _health_as_json(health: Health) -> dict[str, object]:
    """Seconds throughout; the last failure by its kind and code, never in its own words."""
    failed = {"kind": health.failure, "code": health.code, "seconds_ago": _short(health.failed_ago)}
    return {
        "breaker": {"state": health.breaker, "asked_again_in": _short(health.asked_again_in)},
        "in_flight": health.in_flight,
        "queued": health.queued,
        "last_failure": failed if health.code else None,
        "search_seconds": {"p50": _short(health.p50), "p95": _short(health.p95)},
    }


def _short(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


async def page(request: Request) -> Response:
    """The nodes, their state and links, without any script."""
    states = request.scope["estate"].pipeline.node_states(request.scope["caller"])
    rows = "".join(_row(state) for state in states)
    paths = (
        "/nodes",
        "/dicom-web/studies?limit=10",
        "/fhir/ImagingStudy?_count=10",
        "/fhir/metadata",
        "/openapi.json",
        "/metrics",
    )
    links = "".join(f'<li><a href="{path}"><code>{path}</code></a></li>' for path in paths)
    return HTMLResponse(_PAGE.format(count=len(states), rows=rows, links=links), headers={"Cache-Control": "no-store"})


def _row(state: NodeState) -> str:
    address = f"/nodes/{state.id}/dicom-web/studies"
    cells = (state.name, state.organisation, state.country, state.adapter)
    kind = state.state if state.state in ("down", "degraded") else "up"
    label = f"{state.state}: {state.reason}" if state.reason else state.state
    label += f", asked again in {state.health.asked_again_in:.0f} s" if state.health.asked_again_in else ""
    work = f"{state.health.in_flight} / {state.health.queued}"
    times = " / ".join("-" if one is None else f"{one * 1000:.0f} ms" for one in (state.health.p50, state.health.p95))
    middle = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    middle += f'<td class="{kind}">{escape(label)}</td><td>{work}</td><td>{times}</td>'
    return f'<tr>{middle}<td><a href="{address}">studies</a></td></tr>'
