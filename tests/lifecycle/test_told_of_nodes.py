"""What callers and alarms are told of nodes."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway import metrics
from gateway.errors import NodeUnreachable
from gateway.federation.node import Working
from gateway.federation.nodes import NodeConfig
from gateway.federation.resilience import Guard
from tests.bench.processes import gateway, node, node_file
from tests.faults.leftovers import eventually
from tests.handmade import dicomweb_node
from tests.lifecycle.conftest import Hospitals, hospitals, ids, put  # noqa: F401
from tests.running import Gateway, files_node, serving
from tests.specimens import specimen


def test_retry_after_is_when_the_first_node_may_answer_and_not_the_last() -> None:
    """Any node that answers gives a (partial) 200: a tape robot that asks for a day does not keep the caller away for a day."""

    async def busy(request: Request) -> Response:
        return Response(status_code=503, headers={"Retry-After": "86400"})

    app = Starlette(routes=[Route("/studies", busy)])
    with serving(app) as port:
        nodes = [
            dicomweb_node("busy", port),
            dicomweb_node("away", 9, breaker={"failures": 1, "open": 5}),
        ]
        with Gateway(nodes, cache=False) as gateway_:
            gateway_.get("/dicom-web/studies")
            refused = gateway_.get("/dicom-web/studies")
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) <= 5


def test_a_node_that_is_taken_out_is_down_in_no_metric(hospitals: Hospitals) -> None:  # noqa: F811
    """As its breaker is not: nobody is to be woken for a hospital that is no longer in the file."""
    steady = hospitals.node("steady", hospitals.first)
    gone = node("gone", "dicomweb", {"url": "http://127.0.0.1:9/dicom-web"}, retries=0)

    def shown() -> str:
        text = httpx.get(f"{served.url}/metrics").text
        found = re.search(r'^gateway_node_up\{[^}]*node="gone"[^}]*\} (\S+)$', text, re.M)
        return found[1] if found else ""

    with gateway([steady, gone], probe=False, find_ttl=0) as served:
        httpx.get(f"{served.url}/dicom-web/studies")
        assert shown() == "0.0"
        put(served, node_file([steady]))
        assert eventually(lambda: ids(served) == ["steady"])
        assert eventually(lambda: shown() in ("", "1.0"), 6), shown()


def test_what_a_node_cannot_do_does_not_make_it_down(tmp_path: Path) -> None:
    """The guard does not count it as a failure; the metric that alarms hang on does."""
    specimen(tmp_path / "a", "P", "s")

    async def studies(request: Request) -> Response:
        return JSONResponse([])

    async def none(request: Request) -> Response:
        return Response(status_code=501)

    app = Starlette(routes=[Route("/studies", studies), Route("/series", none)])

    def up(gateway_: Gateway) -> str:
        found = re.search(r'^gateway_node_up\{node="able"\} (\S+)$', gateway_.get("/metrics").text, re.M)
        return found[1] if found else ""

    with serving(app) as port, Gateway([dicomweb_node("able", port)], cache=False) as gateway_:
        assert gateway_.get("/dicom-web/studies").status_code in (200, 204)
        assert up(gateway_) == "1.0"
        gateway_.get("/dicom-web/series?Modality=CT")
        assert up(gateway_) == "1.0"


def test_a_node_that_is_closed_while_it_is_asked_does_not_fail_the_search_of_all(tmp_path: Path) -> None:
    """As `Estates._retire` does when the time of a node that was taken out is over."""
    specimen(tmp_path / "good", "P", "s")

    async def silent(request: Request) -> Response:
        await asyncio.sleep(4)
        return Response(status_code=204)

    app = Starlette(routes=[Route("/{path:path}", silent)])
    with serving(app) as port:
        other = dicomweb_node("other", port, search_deadline=20)
        del other["quirks"]
        with (
            Gateway([files_node("good", tmp_path / "good"), other], cache=False) as gateway_,
            ThreadPoolExecutor(1) as caller,
        ):
            assert gateway_.app is not None
            asked = gateway_.app.state.estate.pipeline.federation.nodes["other"]
            waits = caller.submit(gateway_.get, "/dicom-web/studies")
            assert eventually(lambda: asked.guard.in_flight == 1)
            assert not eventually(waits.done, 0.5)
            asyncio.run_coroutine_threadsafe(asked.finder.close(), gateway_.loop).result(10)
            answer = waits.result(20)
            assert answer.status_code == 200, answer.text
            assert len(answer.json()) == 1


def guard_of():
    return Guard(
        "n",
        NodeConfig.model_validate({"id": "n", "name": "n", "adapter": "files", "connection": {"directory": "/none"}}),
    )


async def test_what_still_ends_at_a_node_that_was_taken_out_does_not_make_it_down():
    guard = guard_of()

    async def search() -> None:
        async with Working(guard, "find", asyncio.get_running_loop().time() + 5, 5.0):
            guard.retire()  # the node file no longer names it
            raise NodeUnreachable("n", "cannot be reached")

    with pytest.raises(NodeUnreachable):
        await search()
    assert metrics.up("n")._value.get() == 1
