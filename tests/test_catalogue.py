"""The catalogue's nodes answer as archives do, so that what is proved on them says something."""

from __future__ import annotations

import httpx
import pytest

from tests.catalogue import CROWDED, catalogue_nodes, made_up
from tests.running import Gateway

ROWS = made_up(1200, nodes=3, shared=0.1, undated=0.02)


@pytest.fixture(scope="module")
def nodes():
    with catalogue_nodes(ROWS) as running:
        yield running


def asked(url, **keys):
    return httpx.get(f"{url}/studies", params=keys, timeout=30).json()


def uids(rows):
    return [row["0020000D"]["Value"][0] for row in rows]


def test_the_same_arguments_make_the_same_catalogue():
    assert made_up(1200, nodes=3, shared=0.1, undated=0.02) == ROWS
    crowded = sum(row["StudyDate"] in CROWDED for rows in ROWS for row in rows)
    assert 0.38 < crowded / sum(map(len, ROWS)) < 0.48


def test_a_question_without_keys_walks_the_archive_in_its_own_order(nodes):
    found = [uid for offset in range(0, 600, 100) for uid in uids(asked(nodes[1], limit=100, offset=offset))]
    assert found == [row["StudyInstanceUID"] for row in ROWS[1]]


@pytest.mark.parametrize(
    ("keys", "fits"),
    [
        ({"StudyDate": "19990102"}, lambda row: row["StudyDate"] == "19990102"),
        ({"StudyDate": "19980101-20001231"}, lambda row: "19980101" <= row["StudyDate"] <= "20001231"),
        ({"StudyDate": "-19980101"}, lambda row: "" < row["StudyDate"] <= "19980101"),
        ({"00080020": "20200101-"}, lambda row: row["StudyDate"] >= "20200101"),
        (
            {"StudyDate": "19990102", "StudyTime": "08-115959"},
            lambda row: row["StudyDate"] == "19990102" and "08" <= row["StudyTime"] <= "115959",
        ),
        (
            {"StudyDate": "19990102-20000102", "StudyTime": "12-13"},
            lambda row: "19990102120000" <= row["StudyDate"] + row["StudyTime"] <= "20000102139999",
        ),
        ({"ModalitiesInStudy": "PT"}, lambda row: "PT" in row["ModalitiesInStudy"]),
        ({"PatientID": "C*"}, lambda row: row["PatientID"].startswith("C")),
        ({"PatientID": "C0010?"}, lambda row: row["PatientID"][:5] == "C0010"),
        ({"PatientID": ROWS[0][7]["PatientID"]}, lambda row: row["PatientID"] == ROWS[0][7]["PatientID"]),
        ({"PatientName": "madeup^b*"}, lambda row: row["PatientName"].startswith("Madeup^B")),
        ({"AccessionNumber": "A00001*"}, lambda row: row["AccessionNumber"].startswith("A00001")),
    ],
)
def test_a_key_finds_exactly_the_studies_that_fit(nodes, keys, fits):
    expected = [row["StudyInstanceUID"] for row in ROWS[0] if fits(row)]
    assert uids(asked(nodes[0], **keys)) == expected


def test_a_list_of_studies_is_answered_with_those_that_are_there(nodes):
    wanted = [row["StudyInstanceUID"] for row in ROWS[2][:3]]
    assert uids(asked(nodes[2], StudyInstanceUID=",".join([*wanted, "1.2.3"]))) == wanted


def test_a_node_with_a_maximum_never_shows_more_and_never_says_so():
    with catalogue_nodes(ROWS, maximum=100) as limited:
        answer = httpx.get(f"{limited[0]}/studies", params={"limit": 300, "offset": 100})
    assert uids(answer.json()) == [row["StudyInstanceUID"] for row in ROWS[0][:100]]
    assert "warning" not in answer.headers


def test_a_node_can_be_given_another_maximum_while_it_runs():
    with catalogue_nodes(ROWS) as changing:
        changing.change(maximum=100, delay=0.01)
        assert len(asked(changing[0])) == 100
        changing.change()
        assert len(asked(changing[0])) == len(ROWS[0])


def test_a_node_counts_what_it_is_asked_and_how_long_it_took():
    with catalogue_nodes(ROWS, delay=0.05, processes=2) as slow:
        asked(slow[0], limit=7)
        asked(slow[0], limit=5)
        first, second, _ = slow.counts()
        assert (first.requests, first.rows, second.requests) == (2, 12, 0)
        assert len(first.seconds) == 2
        assert min(first.seconds) >= 0.05
        slow.reset()
        assert slow.counts()[0].requests == 0


def test_the_gateway_finds_the_studies_of_all_nodes_once(nodes):
    with Gateway(nodes.tables(), probe=True) as served:
        answer = served.get("/dicom-web/studies", params={"StudyDate": CROWDED[0]})
    found = uids(answer.json())
    held = {row["StudyInstanceUID"] for rows in ROWS for row in rows if row["StudyDate"] == CROWDED[0]}
    assert "warning" not in answer.headers
    assert len(found) == len(set(found))
    assert set(found) == held
