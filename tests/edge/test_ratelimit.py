"""How often a caller may ask: its own bucket, told in the words of the edge it asked at, and nobody else's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.edge.ratelimit import Buckets, RateLimit
from gateway.security.caller import Caller
from tests.running import Gateway, files_node


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.floats(0.1, 50), st.integers(1, 20), st.lists(st.floats(0, 3), max_size=200))
def test_no_caller_gets_more_than_its_burst_and_its_rate(rate: float, burst: int, gaps: list[float]) -> None:
    clock = Clock()
    buckets, granted = Buckets(rate, burst, clock), 0
    for gap in gaps:
        clock.now += gap
        wait = buckets.wait(1)
        granted += not wait
        if wait:
            clock.now += wait + 1e-6
            assert not buckets.wait(1), "the time it was told is enough"
            granted += 1
    assert granted <= burst + rate * clock.now + 1e-6


def test_the_callers_remembered_have_a_ceiling() -> None:
    buckets = Buckets(1.0, 1)
    for caller in range(20_000):
        buckets.wait(caller)
    assert len(buckets._levels) == 10_000


class Named:
    """Takes the caller's name from a header, as Authentication does from a token."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["caller"] = Caller(Request(scope).headers.get("x-name", ""))
        await self._app(scope, receive, send)


async def hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


@asynccontextmanager
async def client() -> AsyncIterator[httpx.AsyncClient]:
    middleware = [Middleware(Named), Middleware(RateLimit, 0.01, 2)]
    app = Starlette(routes=[Route("/{path:path}", hello)], middleware=middleware)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as asking:
        yield asking


async def test_one_caller_who_asks_too_often_is_in_nobody_elses_way() -> None:
    async with client() as asking:
        hasty = {"x-name": "hasty"}
        statuses = [(await asking.get("/dicom-web/studies", headers=hasty)).status_code for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
        assert (await asking.get("/dicom-web/studies", headers={"x-name": "other"})).status_code == 200


async def test_what_needs_no_token_is_not_counted() -> None:
    async with client() as asking:
        for _ in range(5):
            for path in ("/live", "/ready", "/fhir/metadata"):
                assert (await asking.get(path)).status_code == 200


def test_too_many_requests_are_told_in_the_form_of_each_edge(tmp_path: Path) -> None:
    with Gateway([files_node("f", tmp_path)], rate_limit=0.01, rate_burst=1) as gateway:
        assert gateway.get("/fhir/ImagingStudy").status_code == 200
        fhir, web = gateway.get("/fhir/ImagingStudy"), gateway.get("/dicom-web/studies")
    for answer in (fhir, web):
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 100
        assert answer.headers["x-request-id"]
    assert fhir.headers["content-type"].startswith("application/fhir+json")
    [issue] = fhir.json()["issue"]
    assert (issue["code"], issue["details"]["coding"][0]["code"]) == ("throttled", "GW111")
    assert web.headers["content-type"] == "application/problem+json"
    assert web.json()["code"] == "GW111"


def test_without_the_setting_nobody_is_counted(tmp_path: Path) -> None:
    with Gateway([files_node("f", tmp_path)], rate_burst=1) as gateway:
        assert {gateway.get("/nodes").status_code for _ in range(20)} == {200}
