"""What one request costs: its stages in Server-Timing, its one line in the log, and what its cache was worth."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import io
import json
import os
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import telemetry
from gateway.simulators import corpus as corpora
from gateway.simulators.bulk import large_multiframe
from gateway.simulators.corpus import Corpus
from gateway.telemetry import Account, stage
from tests.running import Gateway, files_node

ENTRY = re.compile(r"([a-z]+);dur=(\d+\.\d)")


class Clock:
    """Stands in for the clock of the accounts, so that time passes when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(telemetry.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def account(clock: Clock) -> Account:
    made = Account()
    telemetry._account.set(made)
    return made


def test_a_stage_inside_another_is_not_counted_twice(clock: Clock, account: Account) -> None:
    with stage("merge"):
        clock.now += 1
        with stage("cache"):
            clock.now += 2
            with stage("nodes"):
                clock.now += 4
        clock.now += 8
    clock.now += 16
    account.tick()
    assert account.stages == {"merge": 9, "cache": 2, "nodes": 4}
    assert account.seconds == 31


async def test_twenty_nodes_at_once_cost_what_the_request_waited_for_them(clock: Clock, account: Account) -> None:
    """Each task is in the cache and then at its node; the moments are counted once, for the nodes while any works."""
    turn = [asyncio.Event() for _ in range(20)]

    async def ask(number: int) -> None:
        with stage("cache"), stage("nodes"):
            await turn[number].wait()

    with stage("merge"):
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(ask(number))
            await asyncio.sleep(0)
            for event in turn:
                clock.now += 1
                event.set()
                await asyncio.sleep(0)
        clock.now += 1
    account.tick()
    assert account.stages["nodes"] == 20
    assert account.stages["merge"] == 1
    assert sum(account.stages.values()) == account.seconds == 21


async def test_two_requests_at_once_do_not_share_their_stages(clock: Clock) -> None:
    async def request(name: str) -> dict[str, float]:
        account = Account()
        telemetry._account.set(account)
        with stage(name):
            await asyncio.sleep(0)
            clock.now += 1
            await asyncio.sleep(0)
        return account.stages

    assert [set(stages) for stages in await asyncio.gather(request("view"), request("auth"))] == [{"view"}, {"auth"}]


def test_a_stage_may_end_in_another_context_than_it_began(clock: Clock, account: Account) -> None:
    """As the stage inside a generator does that another task closes."""

    def working() -> Iterator[None]:
        with stage("nodes"):
            clock.now += 1
            yield

    generator = working()
    next(generator)
    contextvars.Context().run(generator.close)
    clock.now += 5
    account.tick()
    assert account.stages == {"nodes": 1}


def test_outside_a_request_a_stage_is_nothing() -> None:
    telemetry._account.set(None)
    with stage("nodes"), telemetry.node_operation("x", "find"):
        pass


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpora.build(tmp_path_factory.mktemp("corpus"), scale="small")


@pytest.fixture(scope="module")
def gateway(corpus: Corpus) -> Iterator[Gateway]:
    with Gateway([files_node("disk", corpus.nodes["es-madrid"].directory)], log_level="INFO") as running:
        yield running


def timing(value: str) -> dict[str, float]:
    entries = [ENTRY.fullmatch(entry) for entry in value.split(", ")]
    assert None not in entries, value
    return {entry[1]: float(entry[2]) for entry in entries if entry}


def test_a_search_says_where_its_time_went_and_the_stages_add_up_to_no_more_than_the_whole(gateway: Gateway) -> None:
    for path in ("/dicom-web/studies?StudyDate=20240101-", "/fhir/ImagingStudy?started=ge2024"):
        told = timing(gateway.get(path).headers["server-timing"])
        assert list(told) == [*telemetry.STAGES, "total"]
        assert sum(told.values()) - told["total"] <= told["total"] + 0.1 * len(told)


def test_a_look_up_from_the_cache_has_no_time_at_a_node(gateway: Gateway) -> None:
    path = "/dicom-web/studies?StudyDate=20230101-"
    assert "nodes" in timing(gateway.get(path).headers["server-timing"])
    assert "nodes" not in timing(gateway.get(path).headers["server-timing"])


def test_a_stream_says_what_came_before_its_first_byte(gateway: Gateway, corpus: Corpus) -> None:
    study = corpus.nodes["es-madrid"].studies[0]
    told = timing(gateway.get(f"/dicom-web/studies/{study.study_uid}").headers["server-timing"])
    assert {"auth", "plan", "nodes", "total"} <= set(told)
    assert list(told)[-1] == "total"


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"request"' in line]


def test_one_line_per_request_says_what_it_cost(
    corpus: Corpus, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    nodes = [files_node("disk", corpus.nodes["es-madrid"].directory), files_node("none", tmp_path / "none")]
    study = corpus.nodes["es-madrid"].studies[0].study_uid
    with Gateway(nodes, log_level="INFO") as gateway:
        identifiers = []
        studies, anew = "/dicom-web/studies", {"Cache-Control": "no-cache"}
        asked = [(studies, {}), (studies, {}), (studies, anew), (f"{studies}/{study}", {}), ("/nix", {}), ("/live", {})]
        for path, headers in asked:
            answer = gateway.get(path, headers={"Accept-Encoding": "identity", **headers})
            identifiers.append((answer.headers["x-request-id"], len(answer.content)))
    told = lines(capfd)
    assert [(line["request_id"], line["bytes"]) for line in told] == identifiers
    shown = [(line["route"], line["method"], line["status"], line["nodes"], line["cache"]) for line in told]
    assert shown == [
        ("search", "GET", 200, 2, "miss"),
        ("search", "GET", 200, 0, "kept"),
        ("search", "GET", 200, 0, "hit"),
        ("retrieve", "GET", 200, 2, "miss"),
        ("none", "GET", 404, 0, "none"),
        ("live", "GET", 200, 0, "none"),
    ]
    assert {line["outcome"] for line in told} == {"whole"}
    assert all(set(line) <= telemetry.LOGGABLE and line["seconds"] >= 0 for line in told)


def test_a_stream_that_its_caller_leaves_is_logged_as_broken_off(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    uid = large_multiframe(tmp_path / "big" / "one.dcm", 100)
    with (
        Gateway([files_node("disk", tmp_path / "big")], log_level="INFO") as gateway,
        gateway.client.stream("GET", f"/dicom-web/studies/{uid}") as answer,
    ):
        next(answer.iter_raw())
    told = [line for line in lines(capfd) if line["route"] == "retrieve"]
    assert [(line["status"], line["outcome"]) for line in told] == [(200, "broken off")]


async def test_the_lines_of_one_turn_of_the_loop_leave_together_and_those_of_a_thread_at_once() -> None:
    written: list[bytes] = []

    class File(io.BytesIO):
        def write(self, data: Any) -> int:
            written.append(bytes(data))
            return len(data)

    lines_ = telemetry.Lines(File())
    for line in (b"1\n", b"2\n"):
        lines_.write(line)
        lines_.flush()
    assert written == []
    await asyncio.sleep(0)
    assert written == [b"1\n2\n"]

    def in_a_thread() -> None:
        lines_.write(b"3\n")
        lines_.flush()

    await asyncio.to_thread(in_a_thread)
    assert written == [b"1\n2\n", b"3\n"]


async def test_lines_that_cannot_be_written_are_lost_and_make_no_more_of_them() -> None:
    """asyncio logs what a callback raises, and to write that is such a callback again."""
    tried: list[bytes] = []

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            tried.append(bytes(data))
            raise OSError(errno.ENOSPC, "No space left on device")

    lines_ = telemetry.Lines(Full())

    def another_line(*_: Any) -> None:
        lines_.write(b"an exception in a callback\n")
        lines_.flush()

    asyncio.get_running_loop().set_exception_handler(another_line)
    another_line()
    await asyncio.sleep(0.05)
    assert len(tried) == 1
    await asyncio.to_thread(another_line)
    assert len(tried) == 2


def test_a_line_is_written_though_the_loop_that_was_to_write_it_has_ended() -> None:
    file = io.BytesIO()
    lines = telemetry.Lines(file)

    async def ends_at_once() -> None:
        asyncio.get_running_loop().call_soon(asyncio.get_running_loop().stop)
        lines.write(b"first\n")
        lines.flush()

    loop = asyncio.new_event_loop()
    writing = loop.create_task(ends_at_once())
    loop.run_forever()
    assert writing.done()
    loop.close()

    async def goes_on() -> None:
        lines.write(b"second\n")
        lines.flush()
        await asyncio.sleep(0.01)

    asyncio.run(goes_on())
    assert file.getvalue() == b"first\nsecond\n"


def test_a_transfer_that_its_node_breaks_is_no_fault_of_ours_in_the_log(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "big" / "one.dcm"
    uid = large_multiframe(file, 100)
    with (
        Gateway([files_node("disk", file.parent)], log_level="INFO") as gateway,
        gateway.client.stream("GET", f"/dicom-web/studies/{uid}") as answer,
    ):
        pieces = answer.iter_raw()
        next(pieces)
        os.truncate(file, 60_000_000)
        with pytest.raises(httpx.RemoteProtocolError):
            deque(pieces, maxlen=0)
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["kind"] for line in told if line["event"] == "broken off"] == ["NodeProtocolError"]
    assert not [line for line in told if line["event"] == "fault"]
