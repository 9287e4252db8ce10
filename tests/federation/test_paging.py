"""Pages over many nodes: every study once, in order, on any replica, and only as much of each archive as a page needs."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from gateway.errors import NodeTimeout
from gateway.federation.paging import _Search
from gateway.federation.walk import Walk
from gateway.simulators.bulk import ct_series
from tests.catalogue import CatalogueNodes, Row, catalogue_nodes, made_up
from tests.federation.flaky import Flaky
from tests.running import Gateway, files_node

STUDIES = 2400
ROWS = made_up(STUDIES, nodes=4, shared=0.1, undated=0.01)
TRUTH = {row["StudyInstanceUID"]: row for rows in ROWS for row in rows}
FIRST = {row["StudyInstanceUID"]: number for number, rows in reversed(list(enumerate(ROWS))) for row in rows}
"""The first node that has it: of one moment, the studies of one node come after those of another."""
SECRET = "the same on both replicas"


@pytest.fixture(scope="module")
def nodes() -> Iterator[CatalogueNodes]:
    with catalogue_nodes(ROWS) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(nodes: CatalogueNodes) -> Iterator[Gateway]:
    with Gateway(nodes.tables(), secret=SECRET) as running:
        yield running


def bundles(client: httpx.Client, path: str) -> Iterator[dict[str, Any]]:
    while path:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        yield answer.json()
        links = {link["relation"]: link["url"] for link in answer.json()["link"]}
        path = links.get("next", "")


def uids(bundle: dict[str, Any]) -> list[str]:
    matches = [entry["resource"] for entry in bundle.get("entry", ()) if entry["search"]["mode"] == "match"]
    return [study["id"] for study in matches]


def diagnostics(bundle: dict[str, Any]) -> list[str]:
    outcomes = [entry["resource"] for entry in bundle.get("entry", ()) if entry["search"]["mode"] == "outcome"]
    return [issue["diagnostics"] for outcome in outcomes for issue in outcome["issue"]]


def moment(uid: str) -> str:
    return str(TRUTH[uid]["StudyDate"] + TRUTH[uid]["StudyTime"])


def in_order(sort: str) -> list[str]:
    if sort == "_id":
        return sorted(TRUTH)
    placed = sorted(TRUTH, key=lambda uid: (FIRST[uid], uid))
    dated = [uid for uid in placed if moment(uid)]
    undated = [uid for uid in placed if not moment(uid)]
    return sorted(dated, key=moment, reverse=sort == "-started") + undated


@pytest.mark.parametrize(("sort", "count"), [("-started", 37), ("-started", 1000), ("started", 200), ("_id", 500)])
def test_next_links_walk_every_study_once_and_in_order(gateway: Gateway, sort: str, count: int) -> None:
    pages = list(bundles(gateway.client, f"/fhir/ImagingStudy?_sort={sort}&_count={count}"))
    assert [uid for page in pages for uid in uids(page)] == in_order(sort)
    assert not any(diagnostics(page) for page in pages)


def test_a_crowded_day_is_walked_a_few_at_a_time_and_loses_none(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.federation.paging._CROWDED", 40)
    pages = list(bundles(gateway.client, "/fhir/ImagingStudy?_count=150"))
    assert [uid for page in pages for uid in uids(page)] == in_order("-started")


def test_offsets_walk_every_study_once_and_in_order(gateway: Gateway) -> None:
    found: list[str] = []
    while len(found) < len(TRUTH) + 1:
        answer = gateway.get(f"/dicom-web/studies?limit=101&offset={len(found)}")
        more = [row["0020000D"]["Value"][0] for row in answer.json()]
        found += more
        assert ("additional results" in answer.headers.get("warning", "")) is (len(found) < len(TRUTH))
        if not more:
            break
    assert found == in_order("-started")


def test_a_filtered_walk_finds_what_the_filter_finds(gateway: Gateway) -> None:
    query = "/fhir/ImagingStudy?modality=PT&started=ge1999-01-01&started=lt2005-06-01&_count=20"
    found = [uid for page in bundles(gateway.client, query) for uid in uids(page)]
    wanted = [
        uid
        for uid in in_order("-started")
        if "PT" in TRUTH[uid]["ModalitiesInStudy"] and "19990101" <= moment(uid)[:8] < "20050601"
    ]
    assert found == wanted


@pytest.mark.parametrize("day", ["17530101", "18000101", "99991231"])
@pytest.mark.parametrize("asked", ["", "&StudyDate=-18000101", "&StudyDate=99991231-", "&StudyDate=17530101-18000101"])
def test_a_day_at_an_end_of_the_calendar_is_opened_like_any_other(day: str, asked: str) -> None:
    """Where there is no day to cut at, a range is asked for whole, and cut by times: no walk goes on for ever."""
    old = made_up(120, nodes=2, undated=0.0)
    rows = [
        [row | {"StudyDate": day, "StudyTime": f"{n % 24:02}{n:02}00"} if n < 45 else row for n, row in enumerate(part)]
        for part in old
    ]
    first, _, last = asked.removeprefix("&StudyDate=").partition("-")
    held = [row for part in rows for row in part if first <= row["StudyDate"] <= (last or "99999999")]
    with (
        catalogue_nodes(rows) as nodes,
        Gateway(nodes.tables(quirks=[], max_results=20, search_deadline=8), search_deadline=8) as gateway,
    ):
        answer = gateway.get(f"/dicom-web/studies?limit=300{asked}")
        found = [row["0020000D"]["Value"][0] for row in answer.json() or ()] if answer.status_code == 200 else []
    assert sorted(found) == sorted(row["StudyInstanceUID"] for row in held)
    assert "did not answer" not in answer.headers.get("warning", "")


async def test_a_search_whose_time_is_over_opens_nothing_more_though_all_of_it_were_kept() -> None:
    class Opened(Walk):
        async def advance(self) -> None:
            raise AssertionError("it was opened all the same")

    walk = object.__new__(Opened)
    walk.node = SimpleNamespace(id="n00")
    search = object.__new__(_Search)
    [outcome] = await search._advanced({"n00": walk}, 0.0)
    assert isinstance(outcome.error, NodeTimeout)
    assert "within the time of the whole search" in outcome.error.reason


def test_samples_of_nodes_that_do_not_look_at_a_key_mislead_no_walk() -> None:
    """These nodes match no PatientSex: of what they show at first, seven in eight are not asked for."""
    asked = {uid for number, uid in enumerate(sorted(TRUTH)) if number % 8 == 0}
    rows = [[row | {"PatientSex": "F" if row["StudyInstanceUID"] in asked else "M"} for row in part] for part in ROWS]
    with catalogue_nodes(rows) as nodes, Gateway(nodes.tables(quirks=[])) as gateway:
        found: list[str] = []
        while more := gateway.get(f"/dicom-web/studies?PatientSex=F&limit=40&offset={len(found)}").json():
            found += [row["0020000D"]["Value"][0] for row in more]
        days = gateway.get("/dicom-web/studies?PatientSex=F&StudyDate=20050101-20101231&limit=30").json()
    assert found == [uid for uid in in_order("-started") if uid in asked]
    assert [row["0020000D"]["Value"][0] for row in days] == [
        uid for uid in found if "20050101" <= moment(uid)[:8] <= "20101231"
    ][:30]


def test_a_first_page_fetches_a_small_part_of_the_archives(nodes: CatalogueNodes) -> None:
    with Gateway(nodes.tables(), cache=False) as gateway:
        gateway.get("/dicom-web/studies?limit=1")  # the nodes' quirks are learned
        nodes.reset()
        page = gateway.get("/fhir/ImagingStudy?_count=20").json()
    counts = nodes.counts()
    assert uids(page) == in_order("-started")[:20]
    assert sum(count.rows for count in counts) < STUDIES / 2, counts
    assert max(count.requests for count in counts) <= 20, "series of shared studies are counted, too"


@pytest.mark.parametrize("sort", ["-started", "started"])
def test_archives_that_show_last_what_comes_first_give_no_more_of_themselves_for_a_first_page(sort: str) -> None:
    place = {uid: number for number, uid in enumerate(in_order(sort))}
    rows = [sorted(part, key=lambda row: place[row["StudyInstanceUID"]], reverse=True) for part in ROWS]
    with catalogue_nodes(rows) as nodes, Gateway(nodes.tables(quirks=[]), cache=False) as gateway:
        nodes.reset()
        page = gateway.get(f"/fhir/ImagingStudy?_sort={sort}&_count=20").json()
        counts = nodes.counts()
    assert uids(page) == in_order(sort)[:20]
    assert sum(count.rows for count in counts) < STUDIES / 2, counts
    assert max(count.requests for count in counts) <= 30, "series of shared studies are counted, too"


def uneven() -> list[list[dict[str, Any]]]:
    """Archives whose first rows say little of the rest: oldest first, one large, one of few days, one with next to nothing."""
    by_date = sorted((dict(row) for row in TRUTH.values()), key=lambda row: (row["StudyDate"], row["StudyInstanceUID"]))
    large, few_days, old = by_date[::2], by_date[1::8], by_date[3::8]
    few_days = [row | {"StudyDate": f"2024112{number % 3}", "StudyTime": ""} for number, row in enumerate(few_days)]
    return [large, few_days, old, [row for row in by_date[5::8] if row["StudyDate"][:4] == "2010"]]


def test_the_first_page_is_right_whatever_the_nodes_show_first() -> None:
    rows = uneven()
    known = {row["StudyInstanceUID"]: row["StudyDate"] + row["StudyTime"] for part in rows for row in part}
    modalities = {row["StudyInstanceUID"]: row["ModalitiesInStudy"] for part in rows for row in part}
    newest = sorted((uid for uid in sorted(known) if known[uid]), key=known.__getitem__, reverse=True)
    oldest = sorted((uid for uid in sorted(known) if known[uid]), key=known.__getitem__)
    cases = [(f"_sort={sort}&_count={count}", order[:count]) for count in (1, 20, 150, 900)
             for sort, order in (("-started", newest), ("started", oldest))]  # fmt: skip
    cases += [
        (f"modality={code}&_count=60", [uid for uid in newest if code in modalities[uid]][:60]) for code in ("PT", "CT")
    ]
    cases += [(f"started=lt{day}&_count=40", [uid for uid in newest if known[uid][:8] < day.replace("-", "")][:40])
              for day in ("2024-11-22", "2010-06-01", "1999-01-03")]  # fmt: skip
    with catalogue_nodes(rows) as nodes, Gateway(nodes.tables(quirks=[]), cache=False) as gateway:
        for _ in ("nothing is known", "where pages ended the last time is remembered"):
            found = {query: uids(gateway.get(f"/fhir/ImagingStudy?{query}").json()) for query, _ in cases}
            assert found == dict(cases)


def hidden_behind_a_day() -> list[list[dict[str, Any]]]:
    """Three archives with a few recent studies each, and one that shows a day of its own before the thousand that it has behind."""
    older = [dict(row) for row in TRUTH.values() if "1995" < row["StudyDate"] < "2020"]
    dates = ["20210301"] * 200 + ["20210508"] * 1000 + ["20240611"] * 3
    whole = [row | {"StudyDate": date} for row, date in zip(older, dates, strict=False)]
    rest = older[len(whole) :]
    parts = [rest[number::3] for number in range(3)]
    recent = [
        row | {"StudyDate": f"2025{1 + place % 12:02d}{1 + number:02d}"}
        for number, part in enumerate(parts)
        for place, row in enumerate(part[:10])
    ]
    return [*([*part[10:], *recent[10 * number : 10 * number + 10]] for number, part in enumerate(parts)), whole]


def test_a_day_that_one_archive_alone_has_so_many_of_costs_no_further_round_trip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps, advanced = [0], _Search._advanced

    async def counted(*arguments: Any) -> Any:
        steps[0] += 1
        return await advanced(*arguments)

    monkeypatch.setattr(_Search, "_advanced", counted)
    rows = hidden_behind_a_day()
    known = {row["StudyInstanceUID"]: row["StudyDate"] + row["StudyTime"] for part in rows for row in part}
    with catalogue_nodes(rows) as nodes, Gateway(nodes.tables(quirks=[]), cache=False) as gateway:
        page = gateway.get("/fhir/ImagingStudy?_count=20").json()
    assert uids(page) == sorted(known, key=known.__getitem__, reverse=True)[:20]
    assert steps == [2]


def test_a_round_number_is_no_maximum_where_another_answer_of_the_moment_is_larger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.adapters.dicomweb.adapter._MOMENT", 2.0)
    rows = [
        dict(row) | {"StudyDate": "20200101" if place < 64 else "20210101"} for place, row in enumerate(TRUTH.values())
    ]
    with catalogue_nodes([rows[:331]], delay=0.05) as nodes, Gateway(nodes.tables(quirks=[]), cache=False) as gateway:
        nodes.reset()
        with ThreadPoolExecutor() as threads:
            asked = threads.map(
                lambda day: gateway.get(f"/dicom-web/studies?StudyDate={day}").json(), ("20210101", "20200101")
            )
            assert list(map(len, asked)) == [267, 64]
        (counts,) = nodes.counts()
    assert counts.requests == 2


@pytest.mark.parametrize(
    "path",
    ["dicom-web/studies?limit=20", "dicom-web/studies?StudyDate=-20031231&limit=20", "fhir/ImagingStudy?_sort=started&_count=20",
     "fhir/ImagingStudy?started=le2004-06-30&_count=20"],
)  # fmt: skip
def test_a_first_page_that_was_asked_for_before_costs_one_question_to_each_node(path: str) -> None:
    asked, shown = list[list[int]](), list[list[str]]()
    with catalogue_nodes(made_up(1600, nodes=4)) as nodes, Gateway(nodes.tables(quirks=[]), cache=False) as gateway:
        for _ in range(3):
            nodes.reset()
            answer = gateway.get(f"/{path}").json()
            shown.append(uids(answer) if "fhir" in path else [row["0020000D"]["Value"][0] for row in answer])
            asked.append([count.requests for count in nodes.counts()])
            gateway.get("/dicom-web/studies?StudyDate=19990101-19991231&limit=20")  # another search leaves it as it is
    assert shown[0] == shown[1] == shown[2]
    assert len(shown[0]) == 20
    assert min(asked[0]) > 1
    assert asked[1:] == [[1] * 4] * 2


def test_another_replica_goes_on_where_the_first_one_stopped(gateway: Gateway, nodes: CatalogueNodes) -> None:
    first = gateway.get("/fhir/ImagingStudy?_count=50").json()
    onward = next(link["url"] for link in first["link"] if link["relation"] == "next")
    with Gateway(nodes.tables(), secret=SECRET, cache=False) as replica:
        second = replica.get(onward.removeprefix(gateway.url)).json()
    assert uids(first) + uids(second) == in_order("-started")[:100]


def test_a_total_is_told_when_it_is_known_and_counted_when_asked_for(gateway: Gateway) -> None:
    page = gateway.get("/fhir/ImagingStudy?_count=5").json()
    assert "total" not in page, "not every archive was looked through"
    estimated = gateway.get("/fhir/ImagingStudy?_count=5&_total=estimate").json()
    assert 5 <= estimated["total"] < len(TRUTH)
    assert "estimate" in diagnostics(estimated)[0]
    for counted in ("_total=accurate&_count=5", "_summary=count"):
        assert gateway.get(f"/fhir/ImagingStudy?{counted}").json()["total"] == len(TRUTH)
    few = gateway.get("/fhir/ImagingStudy?_count=5&started=2003-02").json()
    assert few["total"] == sum(moment(uid).startswith("200302") for uid in TRUTH)
    assert "total" not in gateway.get("/fhir/ImagingStudy?_count=5&started=2003-02&_total=none").json()


DECLARED = re.compile(r"not all is shown of (.*)$")


def lies_in(row: Row, declared: str) -> bool:
    """Whether a study belongs to a part that an answer declared incomplete."""
    if declared == "studies without a StudyDate":
        return not row["StudyDate"]
    keys = dict(part.split(" ", 1) for part in declared.split(", "))
    low, _, high = keys["StudyDate"].partition("-")
    first, _, last = keys.get("StudyTime", "000000-235959").partition("-")
    return (
        low <= row["StudyDate"] <= (high or low)
        and first <= row["StudyTime"] <= last
        and keys.get("Modality", row["ModalitiesInStudy"][0]) in row["ModalitiesInStudy"]
        and row["PatientID"].startswith(keys.get("PatientID", "*").rstrip("*"))
    )


@pytest.mark.parametrize(
    ("maximum", "own", "has_times"),
    [(100, {}, True), (100, {}, False), (60, {"node_maximum": 60}, True)],
    ids=["recognised, with times", "recognised, without times", "configured"],
)
def test_what_limited_nodes_keep_back_lies_in_parts_declared_incomplete(
    maximum: int, own: dict[str, int], has_times: bool
) -> None:
    rows = [[{**row, "StudyTime": row["StudyTime"] if has_times else ""} for row in held] for held in ROWS]
    with catalogue_nodes(rows, maximum=maximum) as limited, Gateway(limited.tables(**own)) as gateway:
        pages = list(bundles(gateway.client, "/fhir/ImagingStudy?_count=500"))
    counted = Counter(uid for page in pages for uid in uids(page))
    declared = {(text.split()[1].rstrip(":"), DECLARED.search(text)[1]) for page in pages for text in diagnostics(page)}
    assert set(counted.values()) == {1}
    missing = set(TRUTH) - set(counted)
    assert len(missing) < STUDIES * 0.05, "what can be asked for in parts is"
    for number, held in enumerate(rows):
        parts = [part for node, part in declared if node == f"n{number:02d}"]
        for row in held:
            assert row["StudyInstanceUID"] not in missing or any(lies_in(row, part) for part in parts), row


@pytest.fixture
def breaking(nodes: CatalogueNodes) -> Iterator[tuple[Flaky, list[dict[str, Any]]]]:
    """The nodes, the first of them behind a proxy that can hang up; nobody asks twice or gives it up."""
    with Flaky(int(nodes[0].rpartition(":")[2])) as flaky:
        tables = nodes.tables(retries=0, breaker={"failures": 0})
        tables[0]["connection"] = {"url": f"http://127.0.0.1:{flaky.port}"}
        yield flaky, tables


def test_a_walk_goes_on_behind_a_page_in_which_a_node_broke_off(breaking: tuple[Flaky, list[dict[str, Any]]]) -> None:
    flaky, tables = breaking
    with Gateway(tables, secret=SECRET) as gateway:
        flaky.hang_up("StudyDate=-", 10_000)  # the oldest part
        pages = list(bundles(gateway.client, "/fhir/ImagingStudy?_count=500"))
    counted = Counter(uid for page in pages for uid in uids(page))
    missing = set(TRUTH) - set(counted)
    assert set(counted.values()) == {1}
    assert missing <= {row["StudyInstanceUID"] for row in ROWS[0] if not row["StudyDate"]}
    *_, broken, _ = pages
    assert uids(broken)
    assert diagnostics(broken) == ["node n00: closed the connection without an answer"]


def test_a_page_ends_where_a_node_broke_off_in_the_middle_so_that_the_next_one_asks_it_again(
    breaking: tuple[Flaky, list[dict[str, Any]]],
) -> None:
    flaky, tables = breaking
    tables = [{**table, "quirks": []} for table in tables]  # what it is learned by is not what is looked for
    ended_early = 0
    with Gateway(tables, secret=SECRET, cache=False) as gateway:
        for spare in range(1, 7):  # some of these questions are the first of their page, before which there is nothing
            flaky.hang_up("StudyDate=", 2, spare=spare)  # the client itself tries a connection that was open once more
            pages = list(bundles(gateway.client, "/fhir/ImagingStudy?_count=250"))
            counted = Counter(uid for page in pages for uid in uids(page))
            missing = set(TRUTH) - set(counted)
            assert set(counted.values()) == {1}
            assert missing <= {row["StudyInstanceUID"] for row in ROWS[0]}
            broken = [page for page in pages if diagnostics(page)]
            assert broken or not missing
            if any(len(uids(page)) < 250 for page in broken):
                ended_early += 1
                assert not missing, spare
    assert ended_early


def test_when_every_node_breaks_off_before_a_result_is_certain_that_is_an_error(
    breaking: tuple[Flaky, list[dict[str, Any]]],
) -> None:
    flaky, tables = breaking
    with Gateway(tables[:1], secret=SECRET) as gateway:
        flaky.hang_up("StudyDate", 10_000)
        assert gateway.get("/fhir/ImagingStudy?_count=5").status_code == 503


def test_a_study_that_arrives_between_two_pages_moves_no_row(tmp_path: Path) -> None:
    archive, later = tmp_path / "archive", tmp_path / "later"
    held = {ct_series(archive / str(n), 1, rows=16, columns=16, key=f"held-{n}") for n in range(8)}
    ct_series(later, 1, rows=16, columns=16, key="new")
    table = files_node("files", archive)
    table["connection"]["rescan"] = 0.05
    with Gateway([table], cache=False) as gateway:
        first = {row["0020000D"]["Value"][0] for row in gateway.get("/dicom-web/studies?limit=4").json()}
        shutil.move(later, archive / "new")
        while len(gateway.get("/dicom-web/studies?PatientID=*").json()) < 9:
            pass
        second = {row["0020000D"]["Value"][0] for row in gateway.get("/dicom-web/studies?limit=4&offset=4").json()}
    assert not first & second
    assert len((first | second) & held) >= 7


def test_a_walk_whose_places_are_lost_says_that_rows_may_repeat(nodes: CatalogueNodes) -> None:
    with Gateway(nodes.tables(), cache=False) as gateway, Gateway(nodes.tables(), cache=False) as other:
        gateway.get("/dicom-web/studies?limit=10")
        kept = gateway.get("/dicom-web/studies?limit=10&offset=10")
        lost = other.get("/dicom-web/studies?limit=10&offset=10")
    assert "may repeat" not in kept.headers["warning"]
    assert "rows may repeat" in lost.headers["warning"]
    assert lost.json() != []
