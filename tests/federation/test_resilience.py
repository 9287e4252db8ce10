"""A sick node costs the others nothing: it is left alone, asked once more within bounds, and back as soon as it is well."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from flaky import Flaky
from running import Gateway, files_node
from specimens import specimen, uid

from gateway.assembly import Builder, build_node
from gateway.cache.answers import Answers, Ttl
from gateway.cache.client import Cache
from gateway.errors import NodeBusy, NodeProtocolError, NodeRefused, NodeTimeout, NodeUnreachable, Unsupported
from gateway.federation.node import Node
from gateway.federation.nodes import NodeConfig
from gateway.federation.resilience import Guard, Shed, percentile
from gateway.mapping.load import load_all
from gateway.model.query import Query
from gateway.model.vocabulary import Level
from gateway.simulators.bulk import large_multiframe
from gateway.simulators.dicomweb import DicomwebOptions, DicomwebSimulator
from gateway.simulators.dimse import DimseOptions, DimseSimulator
from tests.faults.leftovers import eventually

STUDY = uid("s")
SERIES, INSTANCE = uid("s", "1"), uid("s", "1", 1)
STORED = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
RETRIEVES = frozenset({"retrieve_study", "retrieve_series", "retrieve_instance"})
QUICK = {"failures": 2, "open": 0.4}


def web_node(identifier: str, url: str, **more: Any) -> dict[str, Any]:
    defaults = {"patient_id_issuer": "I", "quirks": [], "retries": 0}
    return {"id": identifier, "name": identifier, "adapter": "dicomweb", "connection": {"url": url}, **defaults, **more}


def dimse_node(identifier: str, pacs: DimseSimulator, **more: Any) -> dict[str, Any]:
    connection = {"host": "127.0.0.1", "port": pacs.port, "called_ae_title": pacs.ae_title}
    return {"id": identifier, "name": identifier, "adapter": "dimse", "connection": connection, **more}


def node_of(gateway: Gateway, name: str) -> Node:
    assert gateway.app is not None
    node = gateway.app.state.estate.pipeline.federation.nodes[name]
    assert isinstance(node, Node)
    return node


def shown(gateway: Gateway, name: str) -> dict[str, Any]:
    [found] = [one for one in gateway.get("/nodes").json()["nodes"] if one["id"] == name]
    return found


def searched(web: DicomwebSimulator) -> int:
    return web.operations["search_studies"]


def ask_until_it_opens(gateway: Gateway, name: str) -> None:
    """On a busy machine a search may leave the node less than the time after which its silence counts."""
    breaker = node_of(gateway, name).guard.breaker
    for _ in range(10):
        assert f"node {name}: did not" in gateway.get("/dicom-web/studies").headers["warning"]
        if not breaker.is_closed:
            return
    raise AssertionError("the breaker stays closed")


def metric(gateway: Gateway, name: str, **labels: str) -> float:
    listed = ",".join(f'{key}="{value}"' for key, value in labels.items())
    found = re.search(rf"^{name}{{{re.escape(listed)}}} (\S+)$", gateway.get("/metrics").text, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


# --- the guard by itself


def guard_of(**more: Any) -> Guard:
    table = {"id": "n", "name": "n", "adapter": "files", "connection": {"directory": "/none"}, **more}
    return Guard("n", NodeConfig.model_validate(table))


async def turn(guard: Guard, work: Callable[[], Any], seconds: float = 5.0) -> Any:
    async with guard.turn("find", asyncio.get_running_loop().time() + seconds):
        return await work()


async def test_who_waits_is_served_in_order_and_who_comes_too_many_is_turned_away() -> None:
    guard, served, hold = guard_of(max_concurrent=1, max_queued=3), [], asyncio.Event()

    async def work(number: int) -> None:
        served.append(number)
        await hold.wait()

    tasks = [asyncio.create_task(turn(guard, lambda n=number: work(n))) for number in range(4)]
    await asyncio.sleep(0)
    assert (guard.in_flight, guard.queued) == (1, 3)
    with pytest.raises(Shed) as refused:
        await turn(guard, hold.wait)
    assert refused.value.code == "GW203"
    assert refused.value.retry_after
    hold.set()
    await asyncio.gather(*tasks)
    assert served == [0, 1, 2, 3]
    assert (guard.in_flight, guard.queued, guard.permits._value) == (0, 0, 1)


async def test_who_leaves_the_queue_gives_the_place_back_and_nobody_is_overtaken() -> None:
    guard, served, hold = guard_of(max_concurrent=1, max_queued=2), [], asyncio.Event()

    async def work(name: str) -> None:
        served.append(name)
        await hold.wait()

    first, leaves, stays = (asyncio.create_task(turn(guard, lambda n=n: work(n))) for n in ("first", "leaves", "stays"))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    assert guard.queued == 1
    last = asyncio.create_task(turn(guard, lambda: work("last")))
    await asyncio.sleep(0)
    hold.set()
    await asyncio.gather(first, stays, last)
    assert served == ["first", "stays", "last"]
    assert guard.permits._value == 1


async def test_who_waits_too_long_is_turned_away() -> None:
    guard, hold = guard_of(max_concurrent=1), asyncio.Event()
    first = asyncio.create_task(turn(guard, hold.wait))
    await asyncio.sleep(0)
    with pytest.raises(Shed):
        await turn(guard, hold.wait, seconds=0.05)
    hold.set()
    await first
    assert guard.breaker.recent_failures == 0


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (NodeUnreachable("n", "x"), True),
        (NodeTimeout("n", "x"), True),
        (NodeBusy("n", "x"), False),
        (NodeRefused("n", "x"), False),
        (NodeProtocolError("n", "x"), False),
        (Unsupported("n", "x"), False),
        (KeyError("a fault of ours"), False),
        (asyncio.CancelledError(), False),
    ],
)
async def test_only_what_costs_a_deadline_opens_the_breaker(error: BaseException, counts: bool) -> None:
    guard = guard_of(breaker={"failures": 2})

    async def fails() -> None:
        raise error

    for _ in range(2):
        with pytest.raises(type(error)):
            await turn(guard, fails)
    assert guard.breaker.is_closed is not counts
    if counts:
        with pytest.raises(type(error)) as refused:
            await turn(guard, fails)
        assert "is not asked again for" in str(refused.value)
    assert guard.permits._value == 16


async def test_whoever_gives_up_after_nearly_the_whole_time_has_found_a_silent_node() -> None:
    guard = guard_of(breaker={"failures": 1})
    loop = asyncio.get_running_loop()

    async def silent() -> None:
        async with guard.turn("find", loop.time() + 5, patience=0.1):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.15):
            await silent()
    assert not guard.breaker.is_closed


def test_a_percentile_is_a_value_that_was_seen() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0], 0.95) == 3.0
    assert percentile([float(n) for n in range(1, 101)], 0.5) == 50.0
    assert percentile([float(n) for n in range(1, 101)], 0.95) == 95.0


# --- a node that is down


def test_names_that_nobody_resolves_keep_no_other_node_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specimen(tmp_path / "a", "P", "s")
    resolved, released = socket.getaddrinfo, threading.Event()

    def unless_it_hangs(host: Any, *more: Any, **options: Any) -> Any:
        if "hangs.example" in str(host):
            released.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "no name server answers")
        return resolved(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", unless_it_hangs)
    lost = [web_node(f"n{one}", f"http://n{one}.hangs.example/x", search_deadline=2) for one in range(40)]
    with DicomwebSimulator(tmp_path / "a") as web:
        well = web_node("well", web.url.replace("127.0.0.1", "localhost"), search_deadline=2)
        try:
            with Gateway([*lost, well]) as gateway:
                answer = gateway.get("/dicom-web/studies")
                assert (answer.status_code, len(answer.json())) == (200, 1)
                assert "node well" not in answer.headers["warning"]
                assert gateway.get("/metrics", timeout=5).status_code == 200
        finally:
            released.set()


@pytest.fixture
def here(tmp_path: Path) -> dict[str, Any]:
    specimen(tmp_path / "here", "P", "here")
    return files_node("here", tmp_path / "here", patient_id_issuer="I")


def test_a_silent_node_is_asked_no_more_and_named_all_the_same(tmp_path: Path, here: dict[str, Any]) -> None:
    specimen(tmp_path / "a", "P", "s")
    with DicomwebSimulator(tmp_path / "a", DicomwebOptions(black_hole=True)) as web:
        one = web_node("a", web.url, search_deadline=0.3, breaker={"failures": 2, "open": 60})
        with Gateway([here, one], find_ttl=0) as gateway:
            ask_until_it_opens(gateway, "a")
            asked = searched(web)
            for _ in range(5):
                answer = gateway.get("/dicom-web/studies")
                assert len(answer.json()) == 1
                assert re.search(
                    r"node a: did not answer.*; it is not asked again for \d+ s after it failed",
                    answer.headers["warning"],
                )
            assert searched(web) == asked
            alone = gateway.get("/nodes/a/dicom-web/studies")
            assert (alone.status_code, alone.json()["code"]) == (504, "GW202")
            assert 0 < int(alone.headers["retry-after"]) <= 60
            state = shown(gateway, "a")
            assert state["state"] == "down"
            assert state["breaker"]["state"] == "open"
            assert 0 < state["breaker"]["asked_again_in"] <= 60
            assert state["last_failure"]["code"] == "GW202"
            assert metric(gateway, "gateway_node_breaker_state", node="a") == 2
            assert "asked again in" in gateway.get("/").text
            endpoint = gateway.get("/fhir/Endpoint/a").json()
            assert endpoint["status"] == "error"


def test_a_node_is_itself_again_one_probe_after_it_is_well(tmp_path: Path, here: dict[str, Any]) -> None:
    specimen(tmp_path / "a", "P", "s")
    with DicomwebSimulator(tmp_path / "a", DicomwebOptions(black_hole=True)) as web:
        one = web_node("a", web.url, search_deadline=0.3, breaker=QUICK)
        with Gateway([here, one], find_ttl=0) as gateway:
            ask_until_it_opens(gateway, "a")
            web.options = DicomwebOptions()
            assert eventually(lambda: "warning" not in gateway.get("/dicom-web/studies").headers, 10.0)
            assert shown(gateway, "a")["state"] == "up"
            assert shown(gateway, "a")["search_seconds"]["p95"] > 0
            assert metric(gateway, "gateway_node_breaker_state", node="a") == 0


def test_one_probe_goes_out_whoever_else_asks_meanwhile(tmp_path: Path, here: dict[str, Any]) -> None:
    specimen(tmp_path / "a", "P", "s")
    with DicomwebSimulator(tmp_path / "a", DicomwebOptions(black_hole=True)) as web:
        one = web_node("a", web.url, search_deadline=1.0, breaker={"failures": 1, "open": 1.0})
        with Gateway([here, one], cache=False) as gateway:
            ask_until_it_opens(gateway, "a")
            asked = searched(web)
            assert eventually(lambda: node_of(gateway, "a").guard.breaker.seconds_left == 0, 10.0)
            with ThreadPoolExecutor(12) as callers:
                paths = [f"/dicom-web/studies?StudyDate=201001{day:02}" for day in range(1, 13)]
                answers = list(callers.map(gateway.get, paths))
            assert {one.status_code for one in answers} == {200}
            assert all("node a:" in one.headers["warning"] for one in answers)
            assert searched(web) == asked + 1


def test_a_dimse_node_that_is_down_is_left_alone_too(tmp_path: Path, here: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    connection = {"host": "127.0.0.1", "port": port, "called_ae_title": "PACS"}
    one = {"id": "p", "name": "p", "adapter": "dimse", "connection": connection, "retries": 0}
    with Gateway([here, {**one, "breaker": {"failures": 2, "open": 60}}], find_ttl=0) as gateway:
        for _ in range(2):
            assert "no connection" in gateway.get("/dicom-web/studies").headers["warning"]
        assert "is not asked again" in gateway.get("/dicom-web/studies").headers["warning"]


@pytest.mark.parametrize("fault", [{"status_500": True}, {"garbage_json": True}])
def test_a_node_that_answers_nonsense_costs_no_deadline_and_is_asked_on(
    tmp_path: Path, here: dict[str, Any], fault: dict[str, Any]
) -> None:
    specimen(tmp_path / "a", "P", "s")
    with (
        DicomwebSimulator(tmp_path / "a", DicomwebOptions(**fault)) as web,
        Gateway([here, web_node("a", web.url, breaker={"failures": 1})], find_ttl=0) as gateway,
    ):
        for _ in range(4):
            assert "node a:" in gateway.get("/dicom-web/studies").headers["warning"]
        assert searched(web) == 4
        assert shown(gateway, "a")["state"] == "degraded"
        assert shown(gateway, "a")["last_failure"]["code"] == "GW205"


# --- too many at once


def test_a_full_queue_sheds_at_once_with_the_time_to_come_back(tmp_path: Path) -> None:
    specimen(tmp_path / "a", "P", "s")
    with DicomwebSimulator(tmp_path / "a", DicomwebOptions(delay=1.0)) as web:
        one = web_node("a", web.url, max_concurrent=1, max_queued=1)
        with Gateway([one], cache=False) as gateway, ThreadPoolExecutor(6) as callers:
            before = metric(gateway, "gateway_node_shed_total", node="a")
            paths = [f"/dicom-web/studies?StudyDate=201001{day:02}" for day in range(1, 7)]
            answers = list(callers.map(gateway.get, paths))
            refused = [one for one in answers if one.status_code == 503]
            assert len(refused) == 4
            assert {one.json()["code"] for one in refused} == {"GW203"}
            assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
            assert searched(web) == 2
            assert metric(gateway, "gateway_node_shed_total", node="a") == before + 4
            assert metric(gateway, "gateway_node_queued", node="a") == 0
            state = shown(gateway, "a")
            assert (state["in_flight"], state["queued"], state["state"]) == (0, 0, "up")


def test_a_node_whose_places_are_all_taken_by_transfers_is_busy_and_not_down(tmp_path: Path) -> None:
    study = large_multiframe(tmp_path / "a" / "large.dcm", 50)
    with DicomwebSimulator(tmp_path / "a") as web:
        one = web_node("a", web.url, max_concurrent=1, search_deadline=2)
        with (
            Gateway([one], cache=False) as gateway,
            gateway.client.stream("GET", f"/dicom-web/studies/{study}", headers=STORED) as transfer,
        ):
            assert transfer.status_code == 200
            asked = searched(web)
            answers = [gateway.get(path) for path in ("/dicom-web/studies", "/fhir/ImagingStudy")]
            assert [one.status_code for one in answers] == [503, 503]
            assert all("too many requests waiting" in one.text and "GW203" in one.text for one in answers)
            assert all(int(one.headers["retry-after"]) >= 1 for one in answers)
            assert searched(web) == asked
            assert shown(gateway, "a")["state"] == "up"


def test_a_dimse_node_is_asked_as_much_as_it_has_associations_for_and_no_more(tmp_path: Path) -> None:
    """What waits for an association has not been asked: a slow PACS is not taken for a silent one."""
    specimen(tmp_path / "a", "P", "s")
    with DimseSimulator(tmp_path / "a", ae_title="SIM", options=DimseOptions(delay=0.4)) as pacs:
        one = dimse_node("p", pacs, search_deadline=1.0, breaker={"failures": 1})
        one["connection"]["max_associations"] = 1
        with Gateway([one], cache=False) as gateway, ThreadPoolExecutor(6) as callers:
            paths = [f"/dicom-web/studies?StudyDate=201001{day:02}" for day in range(1, 7)]
            answers = list(callers.map(gateway.get, paths))
            assert {one.json()["code"] for one in answers if one.status_code != 200} <= {"GW203", "GW202"}
            assert any(one.status_code in (200, 204) for one in answers)
            guard = node_of(gateway, "p").guard
            assert eventually(lambda: guard.in_flight == 0, 10.0)
            assert guard.config.at_once == 1
            assert guard.breaker.is_closed
            assert shown(gateway, "p")["state"] == "up"


# --- once more


@pytest.fixture
def flaky(tmp_path: Path) -> Iterator[tuple[Flaky, DicomwebSimulator, Gateway]]:
    specimen(tmp_path / "a", "P", "s")
    specimen(tmp_path / "a", "P", "s", "1", 2)
    with DicomwebSimulator(tmp_path / "a") as web, Flaky(web.port) as proxy:
        one = web_node("a", f"http://127.0.0.1:{proxy.port}/dicom-web", retries=2, breaker={"failures": 0})
        with Gateway([one], cache=False) as gateway:
            yield proxy, web, gateway


ASKED = {
    "a search": ("/dicom-web/studies", "GET /dicom-web/studies", {}, "find"),
    "a retrieve": (f"/dicom-web/studies/{STUDY}", f"GET /dicom-web/studies/{STUDY} HTTP", STORED, "retrieve"),
    "metadata": (f"/dicom-web/studies/{STUDY}/series/{SERIES}/metadata", "/metadata HTTP", {}, "describe"),
    "frames": (
        f"/dicom-web/studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}/frames/1",
        "/frames/1 HTTP",
        {"Accept": 'multipart/related; type="application/octet-stream"'},
        "frames",
    ),
}


@pytest.mark.parametrize("what", ASKED)
def test_bad_luck_is_made_good_by_asking_once_more(flaky: tuple[Flaky, DicomwebSimulator, Gateway], what: str) -> None:
    proxy, _, gateway = flaky
    path, head, accept, operation = ASKED[what]
    whole = gateway.get(path, headers=accept)
    before = metric(gateway, "gateway_node_retries_total", node="a", operation=operation)
    proxy.hang_up(head, 3)  # the HTTP library itself tries a connection that was closed once more
    answer = gateway.get(path, headers=accept)
    assert proxy.left == 0
    assert answer.status_code == 200
    assert "warning" not in answer.headers
    assert _without_boundary(answer) == _without_boundary(whole)
    assert metric(gateway, "gateway_node_retries_total", node="a", operation=operation) > before


def _without_boundary(answer: httpx.Response) -> bytes:
    found = re.search(r'boundary="?([^";]+)', answer.headers["content-type"])
    return answer.content.replace(found.group(1).encode(), b"") if found else answer.content


def test_the_third_failure_is_the_answer(flaky: tuple[Flaky, DicomwebSimulator, Gateway]) -> None:
    proxy, _, gateway = flaky
    before = metric(gateway, "gateway_node_retries_total", node="a", operation="find")
    proxy.hang_up("GET /dicom-web/studies", 1000)
    answer = gateway.get("/dicom-web/studies")
    assert (answer.status_code, answer.json()["code"]) == (503, "GW201")
    assert metric(gateway, "gateway_node_retries_total", node="a", operation="find") == before + 2


def test_a_budget_ends_the_retries_of_a_node_that_fails_all_the_time(
    flaky: tuple[Flaky, DicomwebSimulator, Gateway],
) -> None:
    proxy, _, gateway = flaky
    before, began = metric(gateway, "gateway_node_retries_total", node="a", operation="find"), time.monotonic()
    proxy.hang_up("GET /dicom-web/studies", 1000)
    for _ in range(20):
        assert gateway.get("/dicom-web/studies").status_code == 503
    asked = metric(gateway, "gateway_node_retries_total", node="a", operation="find") - before
    assert 10 <= asked <= 10 + 20 * 0.1 + 0.1 * (time.monotonic() - began)


class HalfWay:
    """A directory whose search breaks off after its first row, the first time."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.asked = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def find(self, query: Any) -> AsyncIterator[Any]:
        self.asked += 1
        async for record in self._inner.find(query):
            yield record
            if self.asked == 1:
                raise NodeUnreachable("f", "closed the connection")

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def probe(self) -> Any: ...


async def test_a_search_that_breaks_off_is_begun_anew_and_gives_no_row_twice(tmp_path: Path) -> None:
    for number in range(3):
        specimen(tmp_path, "P", f"s{number}")
    config = NodeConfig.model_validate(files_node("f", tmp_path))
    node = build_node(config, Builder(), load_all([]), Ttl())
    cache = await Cache.open("off", timeout=1.0)
    answers = Answers(cache)
    await node.finder.open()
    inner = node.finder
    node.finder = broken = HalfWay(inner)
    try:
        answer = await node.ask(Query(Level.STUDY), answers)
    finally:
        await inner.close()
        await answers.close()
        await cache.close()
    assert broken.asked == 2
    assert sorted(row.study for row in answer.rows) == sorted(uid(f"s{number}") for number in range(3))


# --- another holder


class Two:
    """Two DICOMweb nodes with the same study; `a` is asked first."""

    def __init__(self, a: DicomwebSimulator, b: DicomwebSimulator, gateway: Gateway) -> None:
        self.a, self.b, self.gateway = a, b, gateway

    def retrieved(self) -> tuple[int, int]:
        return tuple(sum(web.operations[name] for name in RETRIEVES) for web in (self.a, self.b))  # type: ignore[return-value]


@contextmanager
def two_holders(directory: Path, **of_a: Any) -> Iterator[Two]:
    for node in ("a", "b"):
        for number in (1, 2):
            specimen(directory / node, "P", "s", "1", number, PixelData=bytes(60_000), Rows=200, Columns=300)
    with DicomwebSimulator(directory / "a") as a, DicomwebSimulator(directory / "b") as b:
        nodes = [web_node("a", a.url, priority=1, **of_a), web_node("b", b.url, priority=2)]
        with Gateway(nodes, spool_bytes=0) as gateway:
            paths = (f"/dicom-web/studies/{STUDY}", f"/dicom-web/studies/{STUDY}/series/{SERIES}")
            for path in paths:
                assert gateway.get(path, headers=STORED).status_code == 200
            yield Two(a, b, gateway)


PATHS = {
    "instances": (f"/dicom-web/studies/{STUDY}", STORED),
    "metadata": (f"/dicom-web/studies/{STUDY}/series/{SERIES}/metadata", {}),
    "frames": ASKED["frames"][0:3:2],
}


@pytest.mark.parametrize("what", PATHS)
def test_while_the_breaker_of_one_holder_is_open_the_other_one_serves(tmp_path: Path, what: str) -> None:
    path, accept = PATHS[what]
    with two_holders(tmp_path, breaker={"failures": 1, "open": 60}, first_byte_deadline=0.3) as two:
        if what == "frames":
            two.gateway.get(path, headers=accept)
        two.a.options = DicomwebOptions(black_hole=True)
        for _ in range(2):
            answer = two.gateway.get(f"/dicom-web/studies/{STUDY}", headers=STORED)
            assert answer.status_code == 200
            assert answer.content.count(b"DICM") == 2
        assert not node_of(two.gateway, "a").guard.breaker.is_closed
        asked = sum(two.a.operations.values())
        answer = two.gateway.get(path, headers=accept)
        assert answer.status_code == 200, answer.text
        assert sum(two.a.operations.values()) == asked


@pytest.mark.parametrize("what", PATHS)
def test_while_one_holder_is_busy_the_other_one_serves(tmp_path: Path, what: str) -> None:
    path, accept = PATHS[what]
    with two_holders(tmp_path, max_concurrent=1, max_queued=0) as two:
        if what == "frames":
            two.gateway.get(path, headers=accept)
        permits = node_of(two.gateway, "a").guard.permits
        asyncio.run_coroutine_threadsafe(permits.acquire(), two.gateway.loop).result(5)
        asked = sum(two.a.operations.values())
        answer = two.gateway.get(path, headers=accept)
        two.gateway.loop.call_soon_threadsafe(permits.release)
        assert answer.status_code == 200, answer.text
        assert sum(two.a.operations.values()) == asked


def test_copies_are_never_mixed_once_the_first_byte_is_out(tmp_path: Path) -> None:
    with two_holders(tmp_path) as two:
        two.a.options = DicomwebOptions(truncate_after=90_000)
        before = two.retrieved()
        received: list[bytes] = []
        with two.gateway.client.stream("GET", f"/dicom-web/studies/{STUDY}", headers=STORED) as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):
                received.extend(answer.iter_raw())
        assert b"DICM" in b"".join(received)
        after = two.retrieved()
        assert (after[0] - before[0], after[1] - before[1]) == (1, 0)


# --- where the study is


def test_a_nearline_study_has_its_own_time_for_the_first_byte(tmp_path: Path) -> None:
    specimen(tmp_path / "a", "P", "s")
    slow = DicomwebOptions(availability="NEARLINE", delay=0.6, faulty_operations=RETRIEVES)
    times = {"first_byte_deadline": 0.2, "nearline_first_byte_deadline": 20, "breaker": {"failures": 1}}
    with (
        DicomwebSimulator(tmp_path / "a", slow) as web,
        Gateway([web_node("a", web.url, **times)], validate_fhir=True) as gateway,
    ):
        [row] = gateway.get("/dicom-web/studies").json()
        assert row["00080056"]["Value"] == ["NEARLINE"]
        assert gateway.get(f"/dicom-web/studies/{STUDY}", headers=STORED).status_code == 200
        [extension] = gateway.get(f"/fhir/ImagingStudy/{STUDY}").json()["extension"]
        assert extension["valueCode"] == "NEARLINE"


@pytest.mark.parametrize("adapter", ["dicomweb", "dimse"])
def test_a_study_still_on_its_way_from_the_tape_is_503_and_not_a_sick_node(tmp_path: Path, adapter: str) -> None:
    specimen(tmp_path / "a", "P", "s")
    times = {"first_byte_deadline": 0.2, "nearline_first_byte_deadline": 0.5, "breaker": {"failures": 1}}
    web = DicomwebSimulator(
        tmp_path / "a", DicomwebOptions(availability="NEARLINE", black_hole=True, faulty_operations=RETRIEVES)
    )
    pacs = DimseSimulator(tmp_path / "a", ae_title="SIM", options=DimseOptions(availability="NEARLINE"))
    with web, pacs:
        one = web_node("a", web.url, **times) if adapter == "dicomweb" else dimse_node("a", pacs, **times)
        with Gateway([one]) as gateway:
            gateway.get("/dicom-web/studies", params={"StudyInstanceUID": STUDY})
            pacs.options = DimseOptions(availability="NEARLINE", delay=20)
            for _ in range(2):
                answer = gateway.get(f"/dicom-web/studies/{STUDY}", headers=STORED)
                assert (answer.status_code, answer.json()["code"]) == (503, "GW203")
                assert "nearline storage" in answer.json()["detail"]
                assert int(answer.headers["retry-after"]) >= 30
            assert shown(gateway, "a")["breaker"]["state"] == "closed"


def test_where_a_study_is_can_be_searched_for_and_the_one_at_hand_wins(tmp_path: Path) -> None:
    for node in ("tape", "disk"):
        specimen(tmp_path / node, "P", "s")
    specimen(tmp_path / "tape", "P", "old")
    tape = DicomwebSimulator(tmp_path / "tape", DicomwebOptions(availability="NEARLINE"))
    with tape, DicomwebSimulator(tmp_path / "disk") as disk:
        nodes = [web_node("tape", tape.url, priority=1), web_node("disk", disk.url, priority=2)]
        with Gateway(nodes) as gateway:
            near = gateway.get("/dicom-web/studies", params={"InstanceAvailability": "NEARLINE"}).json()
            assert {row["0020000D"]["Value"][0] for row in near} == {STUDY, uid("old")}
            [both] = gateway.get("/dicom-web/studies", params={"StudyInstanceUID": STUDY}).json()
            assert both["00080054"]["Value"] == ["disk", "tape"]
            assert both["00080056"]["Value"] == ["ONLINE"]
            assert gateway.get(f"/dicom-web/studies/{STUDY}", headers=STORED).status_code == 200
            assert sum(tape.operations[name] for name in RETRIEVES) == 0


def test_the_node_file_can_say_where_all_of_a_nodes_studies_are(tmp_path: Path) -> None:
    specimen(tmp_path / "a", "P", "s")
    with Gateway([files_node("a", tmp_path / "a", availability="OFFLINE")]) as gateway:
        [row] = gateway.get("/dicom-web/studies").json()
        assert row["00080056"]["Value"] == ["OFFLINE"]
        found = {
            value: len(gateway.get("/dicom-web/studies", params={"InstanceAvailability": value}).json() or ())
            for value in ("ONLINE", "OFFLINE")
        }
        assert found == {"ONLINE": 0, "OFFLINE": 1}
        assert shown(gateway, "a")["availability"] == "OFFLINE"
        assert gateway.get(f"/dicom-web/studies/{STUDY}", headers=STORED).status_code == 200
