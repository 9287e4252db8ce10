"""A day of very many studies without a time is told node by node: every study once, in order, and with all its holders."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.federation.node import Node
from gateway.federation.turns import Turns
from gateway.model.query import Query
from gateway.model.vocabulary import STUDY_DATE
from tests.catalogue import CatalogueNodes, catalogue_nodes
from tests.federation.flaky import Flaky
from tests.federation.test_paging import DECLARED, bundles, diagnostics, lies_in, uids
from tests.running import Gateway
from tests.specimens import uid

DAY, NODES = "20000101", 4
Study = dict[str, Any]


@dataclass(frozen=True)
class Archives:
    """The rows of each node, and what is true of their union."""

    rows: list[list[Study]]

    @property
    def holders(self) -> dict[str, list[int]]:
        held: dict[str, list[int]] = {}
        for number, rows in enumerate(self.rows):
            for row in rows:
                held.setdefault(row["StudyInstanceUID"], []).append(number)
        return held

    def modalities(self, study: str) -> list[str]:
        return sorted({m for rows in self.rows for row in rows if row["StudyInstanceUID"] == study
                       for m in row["ModalitiesInStudy"]})  # fmt: skip

    def in_order(self, sort: str, modality: str = "") -> list[str]:
        holders = self.holders
        moments = {row["StudyInstanceUID"]: row["StudyDate"] + (row["StudyTime"] or "000000")
                   for rows in self.rows for row in rows}  # fmt: skip
        first = {
            one: min(n for n in held if not modality or self.answers(n, one, modality))
            for one, held in holders.items()
            if not modality or modality in self.modalities(one)
        }
        placed = sorted(first, key=lambda one: (first[one], one))
        return sorted(placed, key=moments.__getitem__, reverse=sort == "-started")

    def answers(self, node: int, study: str, modality: str) -> bool:
        return any(row["StudyInstanceUID"] == study and modality in row["ModalitiesInStudy"] for row in self.rows[node])


def archives(seed: int, *, shared: float = 0.25, timed: float = 0.0) -> Archives:
    """Most studies lie on one day, mostly without a time; a shared one has another modality at its second holder."""
    chance = random.Random(seed)
    rows: list[list[Study]] = [[] for _ in range(NODES)]
    for number in range(600):
        date = DAY if chance.random() < 0.6 else f"{chance.randint(1996, 2003)}{chance.randint(1, 12):02}15"
        row = {
            "StudyDate": date,
            "StudyTime": f"{chance.randint(1, 23):02}3000" if chance.random() < timed else "",
            "StudyInstanceUID": uid("in turn", seed, number),
            "PatientID": f"P{number % 97}",
            "IssuerOfPatientID": "MADE-UP",
            "ModalitiesInStudy": ["MR"] if chance.random() < 0.5 else ["CT"],
        }
        home = chance.randrange(NODES)
        rows[home].append(row)
        if chance.random() < shared:
            rows[chance.choice([n for n in range(NODES) if n != home])].append(row | {"ModalitiesInStudy": ["SEG"]})
    for each in rows:
        chance.shuffle(each)
    return Archives(rows)


@pytest.fixture(autouse=True)
def few_are_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.federation.horizon._HUGE", 20)
    monkeypatch.setattr("gateway.federation.horizon._CROWDED", 10)
    monkeypatch.setattr("gateway.federation.paging._CROWDED", 30)
    monkeypatch.setattr("gateway.federation.paging._SMALLEST_CEILING", 8)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many nodes each turn was."""
    taken: list[int] = []
    choose = Turns._next

    def counted(turns: Turns, in_turn: Any, missing: int) -> Any:
        chosen = choose(turns, in_turn, missing)
        taken.append(len(chosen))
        return chosen

    monkeypatch.setattr(Turns, "_next", counted)
    return taken


def gateway_of(nodes: CatalogueNodes, **more: Any) -> Gateway:
    return Gateway(nodes.tables(quirks=[]), **more)


def limited(nodes: CatalogueNodes, **more: Any) -> Gateway:
    """Over nodes that stop at 60."""
    return Gateway(nodes.tables(quirks=[], node_maximum=60), **more)


@pytest.mark.parametrize("sort", ["-started", "started"])
@pytest.mark.parametrize(
    ("seed", "count", "timed"), [(1, 7, 0.0), (2, 20, 0.0), (3, 45, 0.03), (4, 100, 0.5), (5, 20, 0.0)]
)
def test_a_walk_tells_every_study_once_in_order_and_with_all_its_holders(
    seed: int, count: int, timed: float, sort: str, turns: list[int]
) -> None:
    known = archives(seed, timed=timed)
    with catalogue_nodes(known.rows) as nodes, gateway_of(nodes) as gateway:
        pages = list(bundles(gateway.client, f"/fhir/ImagingStudy?_sort={sort}&_count={count}"))
    found = [study for page in pages for study in uids(page)]
    assert found == known.in_order(sort)
    shown = {entry["resource"]["id"]: sorted(one["code"] for one in entry["resource"]["modality"])
             for page in pages for entry in page["entry"] if entry["search"]["mode"] == "match"}  # fmt: skip
    assert shown == {study: known.modalities(study) for study in found}
    assert turns or timed
    assert all(len(page["entry"]) >= count for page in pages[:-1])


@pytest.mark.parametrize("modality", ["SEG", "MR"])
def test_a_search_by_a_key_that_holders_answer_differently_takes_no_turns(modality: str, turns: list[int]) -> None:
    known = archives(6, shared=0.5)
    with catalogue_nodes(known.rows) as nodes, gateway_of(nodes) as gateway:
        pages = list(bundles(gateway.client, f"/fhir/ImagingStudy?modality={modality}&_count=15"))
    assert [study for page in pages for study in uids(page)] == known.in_order("-started", modality)
    assert not turns


@pytest.mark.parametrize("days", ["", "20000101-", "-20000101", "20000101"])
def test_offsets_walk_it_too(days: str, turns: list[int]) -> None:
    known, found = archives(7), list[str]()
    asked = f"/dicom-web/studies?limit=31&{f'StudyDate={days}&' if days else ''}offset="
    with catalogue_nodes(known.rows) as nodes, gateway_of(nodes) as gateway:
        while True:
            answer = gateway.get(f"{asked}{len(found)}")
            rows = answer.json() if answer.content else []
            found += [row["0020000D"]["Value"][0] for row in rows]
            if len(rows) < 31:
                break
    low, _, high = days.partition("-")
    high = high or ("99999999" if days.endswith("-") or not days else low)
    dates = {row["StudyInstanceUID"]: row["StudyDate"] for rows in known.rows for row in rows}
    assert found == [study for study in known.in_order("-started") if low <= dates[study] <= high]
    assert turns or "-" not in days


def test_archives_that_are_copies_of_each_other_are_told_once() -> None:
    one = archives(8, shared=0.0).rows
    known = Archives([sorted((row for rows in one for row in rows), key=lambda row: row["PatientID"])] * NODES)
    with catalogue_nodes(known.rows) as nodes, gateway_of(nodes) as gateway:
        pages = list(bundles(gateway.client, "/fhir/ImagingStudy?_count=50"))
    assert [study for page in pages for study in uids(page)] == known.in_order("-started")


def test_the_first_page_opens_the_day_at_the_first_node_alone_and_asks_the_others_for_its_studies() -> None:
    known = archives(9)
    in_a_day = [sum(row["StudyDate"] == DAY for row in rows) for rows in known.rows]
    with catalogue_nodes(known.rows) as nodes, gateway_of(nodes, cache=False) as gateway:
        gateway.get("/dicom-web/studies?limit=1")
        nodes.reset()
        page = gateway.get("/dicom-web/studies?StudyDate=-20000101&limit=20").json()
        given = [count.rows for count in nodes.counts()]
    assert [row["0020000D"]["Value"][0] for row in page] == [
        study for study in known.in_order("-started") if study in set(of_the_day(known))
    ][:20]
    assert given[0] >= in_a_day[0]
    assert all(rows < day for rows, day in zip(given[1:], in_a_day[1:], strict=True)), (given, in_a_day)


@pytest.mark.parametrize("shared", [0.0, 0.4])
def test_what_limited_nodes_keep_back_lies_in_parts_declared_incomplete(shared: float, turns: list[int]) -> None:
    known = archives(10, shared=shared)
    with catalogue_nodes(known.rows, maximum=60) as nodes, limited(nodes) as gateway:
        pages = list(bundles(gateway.client, "/fhir/ImagingStudy?_count=25"))
    found = Counter(study for page in pages for study in uids(page))
    declared = {(text.split()[1].rstrip(":"), DECLARED.search(text)[1]) for page in pages for text in diagnostics(page)}
    assert set(found.values()) == {1}
    missing = set(known.holders) - set(found)
    for number, rows in enumerate(known.rows):
        parts = [part for node, part in declared if node == f"n{number:02d}"]
        for row in rows:
            assert row["StudyInstanceUID"] not in missing or any(lies_in(row, part) for part in parts), row
    assert turns


def test_of_patients_whose_ids_all_begin_alike_none_is_missing_from_a_day_at_limited_nodes() -> None:
    """As collections have them: LIDC-IDRI-0001. The letters that tell nothing apart take none of the walk's questions."""
    known = archives(12, shared=0.0)
    rows = [
        [row | {"ModalitiesInStudy": ["CT"], "PatientID": f"LIDC-IDRI-{row['PatientID'][1:]:>04}"} for row in each]
        for each in known.rows
    ]
    with catalogue_nodes(rows, maximum=60) as nodes, limited(nodes) as gateway:
        pages = list(bundles(gateway.client, "/fhir/ImagingStudy?_count=60"))
    assert [study for page in pages for study in uids(page)] == known.in_order("-started")
    said = {text for page in pages for text in diagnostics(page)}
    assert any("PatientID L*" in text for text in said), "those that begin otherwise behind it were not asked for"
    assert not any("narrow the search" in text for text in said)


def test_of_a_day_with_parts_declared_incomplete_the_nodes_that_were_told_are_not_asked_again() -> None:
    """All are of one modality, so that PatientIDs tell the day apart: of those that begin otherwise nothing is known."""
    rows = [[row | {"ModalitiesInStudy": ["CT"]} for row in each] for each in archives(10, shared=0.0).rows]
    asked: list[list[int]] = []
    with catalogue_nodes(rows, maximum=60) as nodes, limited(nodes, cache=False) as gateway:
        for page in bundles(gateway.client, "/fhir/ImagingStudy?_count=25"):
            if any(DAY in text for text in diagnostics(page)):
                asked.append([count.requests for count in nodes.counts()])
            nodes.reset()
    first, *others = asked
    assert len(others) > 5
    assert all(max(each) <= max(first) for each in others)
    assert all(sum(requests > 10 for requests in each) <= 2 for each in others), others


def test_a_node_that_breaks_off_between_two_pages_costs_what_it_has_and_repeats_nothing(turns: list[int]) -> None:
    known, found, gaps = archives(11, shared=0.5), list[str](), 0
    with catalogue_nodes(known.rows) as nodes, Flaky(int(nodes[0].rpartition(":")[2])) as flaky:
        tables = nodes.tables(quirks=[], retries=0, breaker={"failures": 0})
        tables[0]["connection"] = {"url": f"http://127.0.0.1:{flaky.port}"}
        with Gateway(tables, cache=False) as gateway:
            for number, page in enumerate(bundles(gateway.client, "/fhir/ImagingStudy?_count=12")):
                found += uids(page)
                gaps += bool(diagnostics(page))
                flaky.hang_up("GET", 10_000 if 6 <= number < 9 else 0)
    missing = set(known.holders) - set(found)
    assert 0 < gaps < 8
    assert all(known.holders[study][0] == 0 for study in missing)
    assert {study for study, times in Counter(found).items() if times > 1} <= {
        study for study, held in known.holders.items() if held[0] == 0
    }
    assert turns


def of_the_day(known: Archives) -> list[str]:
    return [row["StudyInstanceUID"] for rows in known.rows for row in rows if row["StudyDate"] == DAY]


def study(number: int | str, **more: Any) -> Study:
    own = {"StudyDate": DAY, "StudyTime": "", "StudyInstanceUID": uid("one", number), "ModalitiesInStudy": ["CT"]}
    return own | {"PatientID": f"P{number}", "IssuerOfPatientID": "MADE-UP"} | more


def walked(rows: list[list[Study]], query: str) -> list[str]:
    """The studies of all pages, none of which says that something is missing."""
    with catalogue_nodes(rows) as nodes, gateway_of(nodes) as gateway:
        pages = list(bundles(gateway.client, f"/fhir/ImagingStudy?{query}"))
    assert not any(map(diagnostics, pages))
    return [study for page in pages for study in uids(page)]


@pytest.mark.parametrize("sort", ["-started", "started"])
@pytest.mark.parametrize("timed_at", [0, 3])
def test_a_study_that_has_a_time_at_one_holder_and_none_at_another_is_told_once(sort: str, timed_at: int) -> None:
    known = archives(2, shared=0.0)
    for number in range(10):
        known.rows[3 - timed_at].append(study(number))
        known.rows[timed_at].append(study(number, StudyTime="103000"))
    assert sorted(walked(known.rows, f"_sort={sort}&_count=20")) == sorted(known.holders)


@pytest.mark.parametrize("count", [5, 40])
def test_a_later_node_that_is_a_copy_of_an_earlier_one_tells_nothing_again(count: int) -> None:
    known = archives(8, shared=0.0)
    known.rows[2:] = [list(known.rows[0]), known.rows[3][:40]]
    assert sorted(walked(known.rows, f"_count={count}")) == sorted(known.holders)


def linked(number: int) -> tuple[Study, Study, Study]:
    """One study at three holders: patient A of X, patient B of Y, and who knows that they are one."""
    here = study(number, PatientID=f"A{number}", IssuerOfPatientID="X")
    other = {"00100020": {"vr": "LO", "Value": [f"B{number}"]}, "00100021": {"vr": "LO", "Value": ["Y"]}}
    return (
        here,
        here | {"PatientID": f"B{number}", "IssuerOfPatientID": "Y"},
        here | {"OtherPatientIDsSequence": [other]},
    )


@pytest.mark.parametrize("count", [6, 20])
def test_patients_whom_only_a_node_links_that_was_not_opened_are_told_once(count: int) -> None:
    rows: list[list[Study]] = [[study(f"{node} {number}") for number in range(60)] for node in range(6)]
    for number in range(6):
        for node, one in zip((1, 2, 5) if number % 2 else (0, 1, 2), linked(number), strict=True):
            rows[node].append(one)
    for each in rows:
        random.Random(4).shuffle(each)
    assert sorted(walked(rows, f"_count={count}")) == sorted(Archives(rows).holders)


def test_conditions_are_put_to_what_all_holders_say() -> None:
    rows = [[study(f"{node} {number}") for number in range(count)] for node, count in enumerate((10, 30, 300))]
    rows[2] += [study(f"later {number}", StudyDate="20010101") for number in range(40)] + rows[0][:5]
    random.Random(1).shuffle(rows[2])
    found = walked(rows, "_sort=started&_count=20&endpoint=Endpoint/n01,Endpoint/n02")
    assert sorted(found) == sorted({row["StudyInstanceUID"] for held in rows[1:] for row in held})


def test_a_study_whose_holders_differ_in_time_keeps_nothing_else_from_being_told() -> None:
    day = [study(number, StudyTime="120000") for number in range(120)]
    rows = [day, [row | {"StudyTime": "180000"} for row in day[::10]]]
    assert sorted(walked(rows, "_count=10")) == sorted(Archives(rows).holders)


@pytest.mark.parametrize("sort", ["-started", "started"])
def test_no_node_is_asked_for_a_day_that_is_none(sort: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ask = list[str](), Node.ask

    async def noted(node: Node, query: Query, *more: Any, **named: Any) -> Any:
        asked.extend(value for match in query.matches for value in match.values if match.path == (STUDY_DATE,))
        return await ask(node, query, *more, **named)

    monkeypatch.setattr(Node, "ask", noted)
    rows = [
        [study(f"{node} {number}", StudyDate="") for number in range(count)] for node, count in enumerate((5, 25, 90))
    ]
    rows[2] += [study(f"dated {number}", StudyDate=f"2001011{number}") for number in range(5)]
    assert sorted(walked(rows, f"_sort={sort}&_count=20")) == sorted(Archives(rows).holders)
    assert all(value == "" or value.isdigit() for value in asked), set(asked)
