"""QIDO-RS line by line: each key finds, each attribute is returned, each kind of matching does what it says, at every protocol."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from national_nodes import Demo
from small_hospital import CT, LOPEZ, MR, MULLER, NODES, YAMADA, Small, small

from gateway.model.vocabulary import tag
from tests.specimens import uid

SERIES, INSTANCE = uid(MULLER, "1"), uid(MULLER, "1", 1)
KEYS = [
    ("studies", "StudyDate", "20260301"), ("studies", "StudyDate", "20260201-20260301"), ("studies", "StudyDate", "-20260301"),
    ("studies", "StudyTime", "101500"), ("studies", "StudyTime", "1000-1100"), ("studies", "AccessionNumber", "ACC-1"),
    ("studies", "AccessionNumber", "*-1"), ("studies", "ReferringPhysicianName", "Weiß^Jörg"),
    ("studies", "ReferringPhysicianName", "weiss*"), ("studies", "PatientName", "Müller^Hans"),
    ("studies", "PatientName", "MULLER*"), ("studies", "PatientName", "M?ller^H*"), ("studies", "PatientID", "P1"),
    ("studies", "StudyInstanceUID", uid(MULLER)), ("studies", "StudyID", "S1"), ("studies", "PatientSex", "M"),
    ("studies", "PatientBirthDate", "19600229"), ("studies", "StudyDescription", "Tho*"),
    ("series", "Modality", "CT"), ("series", "SeriesInstanceUID", SERIES), ("series", "SeriesNumber", "7"),
    ("series", "PerformedProcedureStepStartDate", "20260301"), ("series", "PerformedProcedureStepStartTime", "1014"),
    ("series", "RequestAttributesSequence.ScheduledProcedureStepID", "SPS-1"),
    ("series", "RequestAttributesSequence.RequestedProcedureID", "RP-1"), ("series", "00400275.00400009", "SPS-1"),
    ("series", "00400275.00401001", "RP-1"),
    ("instances", "SOPClassUID", CT), ("instances", "SOPInstanceUID", INSTANCE), ("instances", "InstanceNumber", "2"),
]  # fmt: skip
LESS_SPECIFIC = {("series", "Modality"), ("instances", "SOPClassUID")}  # López has a CT too


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize(("resource", "name", "value"), KEYS)
def test_every_match_key_finds_by_keyword_and_by_tag(
    hospital: Small, node: str, resource: str, name: str, value: str
) -> None:
    if name.startswith("StudyTime") or name == "InstanceNumber":
        value = f"{value}"
    wanted = {MULLER, LOPEZ} if (resource, name) in LESS_SPECIFIC else {MULLER}
    hexadecimal = ".".join(tag(step) for step in name.split("."))
    for spelled in {name, hexadecimal}:
        path = f"{resource}?{spelled}={quote(value)}&PatientID=P*"
        path = f"{resource}?{spelled}={quote(value)}" if name == "PatientID" else path
        assert hospital.found(path, node) == wanted, path


RETURNED = {
    "studies": {
        "StudyDate": "20260301", "StudyTime": "101500", "AccessionNumber": "ACC-1", "ModalitiesInStudy": "CT",
        "ReferringPhysicianName": {"Alphabetic": "Weiß^Jörg"}, "TimezoneOffsetFromUTC": "+0100",
        "PatientName": {"Alphabetic": "Müller^Hans"}, "PatientID": "P1", "PatientBirthDate": "19600229", "PatientSex": "M",
        "StudyInstanceUID": uid(MULLER), "StudyID": "S1", "NumberOfStudyRelatedSeries": 1,
        "NumberOfStudyRelatedInstances": 2, "InstanceAvailability": "ONLINE",
    },
    "series": {
        "Modality": "CT", "TimezoneOffsetFromUTC": "+0100", "SeriesDescription": "Lung", "SeriesInstanceUID": SERIES,
        "SeriesNumber": 7, "NumberOfSeriesRelatedInstances": 2, "PerformedProcedureStepStartDate": "20260301",
        "PerformedProcedureStepStartTime": "101400",
    },
    "instances": {
        "SOPClassUID": CT, "SOPInstanceUID": INSTANCE, "InstanceNumber": 1, "Rows": 4, "Columns": 4, "BitsAllocated": 8,
        "NumberOfFrames": 1,
    },
}  # fmt: skip
WHERE = {
    "studies": f"studies/{uid(MULLER)}",
    "series": f"studies/{uid(MULLER)}/series/{SERIES}",
    "instances": f"studies/{uid(MULLER)}/series/{SERIES}/instances/{INSTANCE}",
}
OPTIONAL_OF_A_PACS = {"InstanceAvailability"}  # C-FIND may leave it out: it is a conditional attribute


@pytest.mark.parametrize("node", NODES)
def test_every_attribute_of_the_tables_is_returned_with_its_value(hospital: Small, node: str) -> None:
    resources = {
        "studies": (f"studies?StudyInstanceUID={uid(MULLER)}", ("studies",)),
        f"studies/{uid(MULLER)}/series": (f"studies/{uid(MULLER)}/series", ("series",)),
        "series": (f"series?StudyInstanceUID={uid(MULLER)}", ("studies", "series")),
        "instances": (f"instances?SOPInstanceUID={INSTANCE}&PatientID=P1", ("studies", "series", "instances")),
        "of a study": (f"studies/{uid(MULLER)}/instances?InstanceNumber=1", ("series", "instances")),
        "of a series": (f"studies/{uid(MULLER)}/series/{SERIES}/instances?InstanceNumber=1", ("instances",)),
    }
    for path, tables in resources.values():
        (row,) = hospital.rows(path, node)
        for name, value in (pair for table in tables for pair in RETURNED[table].items()):
            if name in OPTIONAL_OF_A_PACS and node == "pacs":
                continue
            assert row.get(tag(name), {}).get("Value") == [value], (path, name, row.get(tag(name)))
        (address,) = row[tag("RetrieveURL")]["Value"]
        assert address.endswith(f"/nodes/{node}/dicom-web/{WHERE[tables[-1]]}")
        if "series" in tables:
            (item,) = row[tag("RequestAttributesSequence")]["Value"]
            assert item[tag("ScheduledProcedureStepID")]["Value"] == ["SPS-1"]
            assert item[tag("RequestedProcedureID")]["Value"] == ["RP-1"]


@pytest.mark.parametrize("node", NODES)
def test_includefield_takes_lists_repetition_and_all(hospital: Small, node: str) -> None:
    asked = f"studies?StudyInstanceUID={uid(MULLER)}"
    one, described = tag("PatientComments"), tag("StudyDescription")
    for more in ("&includefield=StudyDescription,00104000", "&includefield=00081030&includefield=PatientComments"):
        (row,) = hospital.rows(asked + more, node)
        assert row[described]["Value"] == ["Thorax"]
        assert one not in row  # it has no value
    (row,) = hospital.rows(asked + "&includefield=all", node)
    assert row[described]["Value"] == ["Thorax"]


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("value", ["", "*", '""'])
def test_a_key_that_matches_everything_is_returned(hospital: Small, node: str, value: str) -> None:
    """PS3.4 C.2.2.2.3: universal matching asks for the attribute and nothing else."""
    (row,) = hospital.rows(f"studies?StudyInstanceUID={uid(MULLER)}&StudyDescription={value}&PatientAge={value}", node)
    assert row[tag("StudyDescription")]["Value"] == ["Thorax"]
    assert tag("PatientAge") not in row  # it has no value
    (row,) = hospital.rows(f"studies/{uid(MULLER)}/series?StudyDescription={value}&Rows={value}", node)
    assert row[tag("StudyDescription")]["Value"] == ["Thorax"]
    assert tag("Rows") not in row  # it is one of instances
    assert len(hospital.rows(f"studies?StudyDescription={value}", node)) == 3


@pytest.mark.parametrize("value", ["", "*"])
def test_an_offset_that_matches_everything_is_returned(hospital: Small, value: str) -> None:
    (row,) = hospital.rows(f"studies?StudyInstanceUID={uid(MULLER)}&TimezoneOffsetFromUTC={value}")
    assert row[tag("TimezoneOffsetFromUTC")]["Value"] == ["+0100"]


def test_private_attributes_come_with_their_creator(hospital: Small) -> None:
    """Also where the request does not name the creator (PS3.18 10.6.3.3)."""
    (row,) = hospital.rows(f"studies/{uid(MULLER)}/instances?InstanceNumber=1&includefield=00091001")
    assert row["00091001"]["Value"] == ["secret of the maker"]
    assert row["00090010"] == {"vr": "LO", "Value": ["MAKER 1.0"]}


@pytest.mark.parametrize("node", NODES)
def test_an_attribute_of_a_lower_level_is_never_returned_above(hospital: Small, node: str) -> None:
    for more in ("includefield=Modality,Rows,SeriesDescription", "includefield=all"):
        (row,) = hospital.rows(f"studies?StudyInstanceUID={uid(MULLER)}&{more}", node)
        assert not {tag("Modality"), tag("Rows"), tag("SeriesDescription")} & set(row), more
        (row,) = hospital.rows(f"studies/{uid(MULLER)}/series?{more}", node)
        assert tag("Rows") not in row
        assert tag("Modality") in row


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("muller", {MULLER}), ("hans mül", {MULLER}), ("lopez maria", {LOPEZ}), ("太郎", {YAMADA}), ("taro yam", {YAMADA}),
        ("GARCÍA", {LOPEZ}), ("uller", set()), ("hans lopez", set()), ("Müller^Hans", {MULLER}), ("*ller^H*", {MULLER}),
    ],
)  # fmt: skip
def test_fuzzy_matching_finds_names_by_the_beginnings_of_their_words(
    hospital: Small, node: str, key: str, found: set[str]
) -> None:
    path = f"studies?PatientName={quote(key)}&fuzzymatching="
    assert hospital.found(path + "true", node) == found
    assert hospital.found(path + "false", node) <= found
    assert "warning" not in hospital.get(path + "true", node).headers


def test_fuzzy_matching_is_for_every_person_named(hospital: Small) -> None:
    for node in NODES:
        assert hospital.found("studies?ReferringPhysicianName=j%C3%B6rg&fuzzymatching=true", node) == {MULLER}


@pytest.mark.parametrize("node", NODES)
def test_an_empty_value_is_found_where_that_is_asked_for(hospital: Small, node: str) -> None:
    def found(key: str, more: str = "&emptyvaluematching=true") -> set[str]:
        return hospital.found(f"studies?{key}=%22%22{more}", node)

    assert found("AccessionNumber") == {YAMADA}
    assert found("StudyID") == {YAMADA}
    assert found("AccessionNumber", "") == {MULLER, LOPEZ, YAMADA}  # universal matching
    assert hospital.found("studies?PatientID=P*&StudyTime=%22%22&emptyvaluematching=true", node) == {YAMADA}


def test_what_a_node_does_not_tell_is_not_taken_for_empty(hospital: Small) -> None:
    answer = hospital.get("studies?StudyDescription=%22%22&emptyvaluematching=true", "web")
    shown = {row["0020000D"]["Value"][0] for row in answer.json()}
    assert uid(MULLER) not in shown
    assert shown == {uid(LOPEZ), uid(YAMADA)} or "StudyDescription" in answer.headers["warning"]


@pytest.mark.parametrize("node", NODES)
def test_several_values_are_found_together_where_that_is_asked_for(hospital: Small, node: str) -> None:
    asked = "studies?ModalitiesInStudy="
    more = "&multiplevaluematching=true"
    assert hospital.found(f"{asked}CT%5CMR{more}", node) == {LOPEZ}
    assert hospital.found(f"{asked}MR%5CCT{more}", node) == {LOPEZ}
    assert hospital.found(f"{asked}CT{more}", node) == {MULLER, LOPEZ}
    assert hospital.found(f"{asked}CT%5CUS{more}", node) == set()


@pytest.mark.parametrize("node", NODES)
def test_dates_and_times_are_those_of_the_offset_that_the_request_names(hospital: Small, node: str) -> None:
    """López was examined on 2 March at 00:30 +01:00: on 1 March at 23:30 UTC."""
    at = "&TimezoneOffsetFromUTC="
    for day, offset, found in (
        ("20260302", "%2B0100", {LOPEZ}), ("20260302", "%2B0000", set()), ("20260301", "%2B0000", {MULLER, LOPEZ}),
        ("20260301", "+0000", {MULLER, LOPEZ}), ("20260301", "-0500", {MULLER, LOPEZ}), ("20260302", "%2B0900", {LOPEZ}),
        ("20260301", "%2B1400", {MULLER}),
    ):  # fmt: skip
        assert hospital.found(f"studies?StudyDate={day}{at}{offset}", node) - {YAMADA} == found, (day, offset)
    both = "studies?StudyDate=20260301-20260302&StudyTime=2300-0015"
    assert hospital.found(f"{both}{at}%2B0000", node) == {LOPEZ}
    assert hospital.found(f"{both}{at}%2B0200", node) == set()
    assert hospital.found(f"studies?PatientID=P*&StudyTime=0915{at}%2B0000", node) - {YAMADA} == {MULLER}


@pytest.mark.parametrize("node", NODES)
def test_a_range_of_dates_and_one_of_times_mean_one_span(hospital: Small, node: str) -> None:
    assert hospital.found("studies?StudyDate=20260301-20260302&StudyTime=1000-0100", node) == {MULLER, LOPEZ}
    assert hospital.found("studies?StudyDate=20260301-20260302&StudyTime=1100-0020", node) == set()


@pytest.mark.parametrize("node", NODES)
def test_wildcards_mind_the_case_but_not_in_names(hospital: Small, node: str) -> None:
    assert hospital.found("studies?PatientID=P*&StudyDescription=tho*", node) == set()
    assert hospital.found("studies?PatientName=mULLER*", node) == {MULLER}


def test_uids_are_listed_with_commas_or_backslashes(hospital: Small) -> None:
    for node in NODES:
        for between in (",", "%5C"):
            path = f"studies?StudyInstanceUID={uid(MULLER)}{between}{uid(YAMADA)}"
            assert hospital.found(path, node) == {MULLER, YAMADA}


def test_sop_classes_of_one_node_are_told_apart(hospital: Small) -> None:
    for node in NODES:
        rows = hospital.rows(f"instances?SOPClassUID={MR}&PatientID=P2", node)
        assert [row["00080060"]["Value"] for row in rows] == [["MR"]]


def test_nothing_found_is_an_empty_list(hospital: Small) -> None:
    for resource in ("studies", "series", "instances"):
        answer = hospital.get(f"{resource}?PatientID=nobody")
        assert (answer.status_code, answer.json()) == (200, [])


def test_pages_are_stable_and_say_what_is_left(hospital: Small) -> None:
    whole = [row["0020000D"]["Value"][0] for row in hospital.rows("studies")]
    for offset in range(3):
        answer = hospital.get(f"studies?limit=1&offset={offset}")
        assert [row["0020000D"]["Value"][0] for row in answer.json()] == whole[offset : offset + 1]
        left = 2 - offset
        assert ("warning" in answer.headers) == bool(left)
        assert not left or f"There are {left} additional results that can be requested" in answer.headers["warning"]


def test_a_search_that_would_look_through_too_much_is_413_and_says_what_to_add(tmp_path: Path) -> None:
    with small(tmp_path, pacs={"descent_parents": 1}) as hospital:
        for path in ("/nodes/pacs/dicom-web/instances", "/dicom-web/instances?node=pacs,twin"):
            answer = hospital.gateway.get(path)
            assert answer.status_code == 413
            assert "add StudyDate, PatientID, AccessionNumber or StudyInstanceUID" in answer.json()["detail"]


def test_names_are_found_by_their_words_at_every_node_of_a_federation(demo: Demo) -> None:
    """DIMSE nodes of three character sets, DICOMweb, FHIR and files; a letter without its accent, words the other way round."""
    for node in ("fr-lyon", "pl-krakow", "gr-athens", "es-madrid", "de-berlin", "ee-tartu"):
        rows = demo.get(f"/nodes/{node}/dicom-web/studies").json()
        names = {row["00100010"]["Value"][0]["Alphabetic"]: row for row in rows if "00100010" in row}
        family, given = next(name for name in sorted(names) if "^" in name).split("^")[:2]
        key = quote(f"{given[:3].upper()} {family[:4].lower()}")
        found = demo.get(f"/nodes/{node}/dicom-web/studies?PatientName={key}&fuzzymatching=true")
        assert found.status_code == 200
        shown = {row["00100010"]["Value"][0]["Alphabetic"] for row in found.json()}
        assert f"{family}^{given}" in {"^".join(name.split("^")[:2]) for name in shown}, node
        literal = demo.get(f"/nodes/{node}/dicom-web/studies?PatientName={key}").json()
        assert literal == []
