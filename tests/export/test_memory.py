"""What an export holds at once is a crowded day, or a little more, however many of them and however many studies the archives have."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from gateway.edge.export import pages
from gateway.federation.node import Node
from gateway.model.study import Row
from tests.catalogue import catalogue_nodes, made_up
from tests.export.asking import begin
from tests.federation.flaky import Flaky
from tests.running import Gateway

NODES, ON_A_DAY = 3, 800
DAYS = ("20010104", "20010103", "20010102", "20010101")
Rows = list[list[dict[str, Any]]]


def crowded(*days: str) -> Rows:
    """So many studies on each of the days, without a time, so that nothing cuts a day into smaller parts; ten undated."""
    rows = made_up(ON_A_DAY * len(days) + 10, nodes=NODES, undated=0)
    at = {row["StudyInstanceUID"]: number for number, row in enumerate(row for part in rows for row in part)}
    of_day = {uid: days[number % len(days)] if number >= 10 else "" for uid, number in at.items()}
    return [[row | {"StudyDate": of_day[row["StudyInstanceUID"]], "StudyTime": ""} for row in part] for part in rows]


def held(rows: Rows) -> set[str]:
    return {row["StudyInstanceUID"] for part in rows for row in part}


def most_blocks(rows: Rows, directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The most blocks of memory that Python has in use, of all the times that a node has just answered, over those before
    the export began. What is only waiting for the collector is not in use."""
    in_use: list[int] = []
    load = Node._load

    async def loaded(*asked: Any) -> Any:
        found = await load(*asked)
        in_use.append(_blocks_in_use())
        return found

    with catalogue_nodes(rows) as nodes, monkeypatch.context() as patched:
        patched.setattr(Node, "_load", loaded)
        tables = nodes.tables(quirks=[])
        with Gateway(tables, export_page=100, export_directory=directory, cache=False) as served:
            before = _blocks_in_use()
            export = begin(served.client, "/fhir/$export?_type=ImagingStudy")
            ids = export.ids(export.manifest(120))
    assert set(ids) == held(rows)
    assert set(ids.values()) == {1}
    return max(in_use) - before


def _blocks_in_use() -> int:
    gc.collect()
    return sys.getallocatedblocks()


def test_four_crowded_days_in_a_row_take_less_memory_than_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not just that of one: a node that is ahead of the others may have given two parts of what lies behind it."""
    one = most_blocks(crowded(DAYS[0]), tmp_path / "one", monkeypatch)
    four = most_blocks(crowded(*DAYS), tmp_path / "four", monkeypatch)
    assert four < 2 * one


def test_of_all_that_an_archive_gives_only_what_has_no_date_is_kept_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[Row, ...]] = []
    collect = Node._collect

    async def collected(node: Node, asked: Any, *more: Any) -> Any:
        answer = await collect(node, asked, *more)
        if not asked.match:
            kept.append(answer.rows)
        return answer

    monkeypatch.setattr(Node, "_collect", collected)
    rows = crowded(DAYS[0])
    with catalogue_nodes(rows) as nodes, Gateway(nodes.tables(quirks=[]), export_page=100) as served:
        manifest = begin(served.client, "/fhir/$export?_type=ImagingStudy").manifest()
    assert manifest["error"] == []
    largest = max(len(part) for part in rows)
    assert sorted(len(some) for some in kept)[-1] < largest
    assert sum(map(len, kept[-NODES:])) == 10


def test_what_lies_behind_a_crowded_day_is_no_more_than_was_asked_for() -> None:
    rows = crowded(*DAYS)
    asked = (
        "/fhir/$export?_type=ImagingStudy&_typeFilter=ImagingStudy%3Fstarted%3Dge2001-01-02%26started%3Dlt2001-01-04"
    )
    with catalogue_nodes(rows) as nodes, Gateway(nodes.tables(quirks=[]), export_page=100) as served:
        export = begin(served.client, asked)
        ids = export.ids(export.manifest(120))
    wanted = {row["StudyInstanceUID"] for part in rows for row in part if row["StudyDate"] in DAYS[1:3]}
    assert set(ids) == wanted
    assert set(ids.values()) == {1}


@pytest.mark.parametrize(
    ("filter_", "maximum", "is_wanted"),
    [
        ("modality:not=CT&modality:not=MR", None, lambda row, at: not {"CT", "MR"} & set(row["ModalitiesInStudy"])),
        ("endpoint=Endpoint/n01", 150, lambda row, at: at == 1),
        (
            "endpoint=Endpoint/n02&modality:not=MR",
            None,
            lambda row, at: at == 2 and "MR" not in row["ModalitiesInStudy"],
        ),
    ],
    ids=["excluded", "limited nodes", "both"],
)
def test_of_crowded_days_all_is_given_that_the_search_s_own_conditions_take_and_nothing_else(
    filter_: str, maximum: int | None, is_wanted: Callable[[dict[str, Any], int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.federation.paging._CROWDED", 40)
    rows = crowded(*DAYS[:3])
    with catalogue_nodes(rows, maximum=maximum) as nodes, Gateway(nodes.tables(quirks=[]), export_page=20) as served:
        asked = f"/fhir/$export?_type=ImagingStudy&_typeFilter={quote(f'ImagingStudy?{filter_}')}"
        export = begin(served.client, asked)
        ids = export.ids(export.manifest(120))
    wanted = {row["StudyInstanceUID"] for at, part in enumerate(rows) for row in part if is_wanted(row, at)}
    assert 0 < len(wanted) < len(held(rows))
    assert set(ids) == wanted
    assert set(ids.values()) == {1}


@pytest.mark.parametrize("times", [1, 1000])
def test_a_crowded_day_on_which_a_node_fails_ends_without_a_line_lost_or_doubled_of_the_others(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_PAUSES", (0.1,))
    rows = crowded(*DAYS[:2])
    with catalogue_nodes(rows) as nodes, Flaky(int(nodes[0].rpartition(":")[2])) as flaky:
        tables = nodes.tables(quirks=[])
        tables[0]["connection"] = {"url": f"http://127.0.0.1:{flaky.port}"}
        flaky.hang_up(f"StudyDate={DAYS[1]}&", times)
        with Gateway(tables, export_page=100) as served:
            export = begin(served.client, "/fhir/$export?_type=ImagingStudy")
            manifest = export.manifest(120)
            ids = export.ids(manifest)
    assert flaky.left < times
    assert set(ids.values()) == {1}
    assert held(rows[1:]) <= set(ids)
    assert (set(ids) == held(rows)) is (manifest["error"] == []) is (times == 1)
