"""A row carries its patient, its issuer and its UIDs, and survives the cache."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Unmappable
from gateway.model.dataset import Dataset, attribute, text
from gateway.model.patient import PatientKey
from gateway.model.study import Row, from_plain, row_of, to_plain
from gateway.model.vocabulary import ISSUER, SERIES_UID, STUDY_UID, Level, tag

OTHER_IDS, QUALIFIERS = tag("OtherPatientIDsSequence"), tag("IssuerOfPatientIDQualifiersSequence")


def dataset(**values: object) -> Dataset:
    return {tag(k): attribute(tag(k), [v]) for k, v in values.items()}


def test_a_row_without_an_issuer_of_its_own_has_the_nodes():
    data = dataset(StudyInstanceUID="1.2", PatientID=" 7 ")
    row = row_of(Level.STUDY, "n", data, "HOSPITAL")
    assert row.patient == PatientKey("HOSPITAL", "7")
    assert text(row.attributes, ISSUER) == "HOSPITAL"
    assert ISSUER not in data, "the node's data set is left as it was"


def test_the_issuer_in_the_data_set_wins_and_then_its_qualifiers():
    own = row_of(Level.STUDY, "n", dataset(StudyInstanceUID="1.2", IssuerOfPatientID="OTHER"), "HOSPITAL")
    assert own.patient == PatientKey("OTHER", "")
    qualified = dataset(StudyInstanceUID="1.2") | {
        QUALIFIERS: {"vr": "SQ", "Value": [dataset(UniversalEntityID="1.2.276")]}
    }
    row = row_of(Level.STUDY, "n", qualified, "HOSPITAL")
    assert row.patient.issuer == text(row.attributes, ISSUER) == "1.2.276"


def test_other_identifiers_link_only_with_an_issuer_and_never_to_the_patient_itself():
    items = [dataset(PatientID=i, **({"IssuerOfPatientID": issuer} if issuer else {})) for i, issuer in
             (("N1", "NATIONAL"), ("X", ""), ("7", "HOSPITAL"))]  # fmt: skip
    data = dataset(StudyInstanceUID="1.2", PatientID="7") | {OTHER_IDS: {"vr": "SQ", "Value": items}}
    assert row_of(Level.STUDY, "n", data, "HOSPITAL").linked == {PatientKey("NATIONAL", "N1")}


def test_the_uids_asked_under_stand_in_for_those_left_out():
    row = row_of(Level.IMAGE, "n", dataset(SOPInstanceUID="1.2.3.4"), "A", study="1.2", series="1.2.3")
    assert row.uids == ("1.2", "1.2.3", "1.2.3.4")
    assert row.uid == "1.2.3.4"
    assert (text(row.attributes, STUDY_UID), text(row.attributes, SERIES_UID)) == ("1.2", "1.2.3")


def test_what_the_node_says_is_kept_even_where_another_study_was_asked():
    assert row_of(Level.STUDY, "n", dataset(StudyInstanceUID="1.9"), "A", study="1.2").study == "1.9"


@pytest.mark.parametrize(("level", "missing"), [(Level.STUDY, "Study"), (Level.SERIES, "Series"), (Level.IMAGE, "SOP")])
def test_a_row_without_its_uid_cannot_be_read(level: Level, missing: str):
    uids = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.3", "SOPInstanceUID": "1.2.3.4"}
    kept = {k: v for k, v in uids.items() if not k.startswith(missing)}
    with pytest.raises(Unmappable, match=f"{missing}InstanceUID"):
        row_of(level, "n", dataset(PatientID="secret", **kept), "A")


@pytest.mark.parametrize("uid", ["../metadata", "1.2/3", "a.b", "1" * 65, " 1.2"])
def test_what_is_no_uid_does_not_become_one(uid: str):
    with pytest.raises(Unmappable, match="that is a UID"):
        row_of(Level.STUDY, "n", dataset(StudyInstanceUID=uid), "A")


def test_a_uid_is_kept_without_its_padding_and_with_its_odd_zeros():
    row = row_of(Level.STUDY, "n", dataset(StudyInstanceUID="1.02\0"), "A")
    assert row.study == text(row.attributes, STUDY_UID) == "1.02"


TEXT = st.text(max_size=12)
KEYS = st.builds(PatientKey, TEXT.filter(bool), TEXT)
VALUES = st.lists(TEXT | st.integers(-(2**53), 2**53) | st.none(), max_size=3)
DATASETS = st.dictionaries(
    st.from_regex(r"[0-9A-F]{8}", fullmatch=True),
    st.fixed_dictionaries({"vr": st.just("LO"), "Value": VALUES}),
    max_size=4,
)


def rows(children: st.SearchStrategy[tuple[Row, ...]]) -> st.SearchStrategy[Row]:
    return st.builds(
        Row, st.sampled_from(Level), TEXT, KEYS, TEXT, TEXT, TEXT, DATASETS, st.frozensets(KEYS, max_size=3), children
    )


@given(rows(st.lists(rows(st.just(())), max_size=2).map(tuple)))
def test_a_row_comes_back_from_the_cache_as_it_was(row: Row):
    assert from_plain(json.loads(json.dumps(to_plain(row)))) == row
