"""Queries become native queries; what cannot be translated is matched here, never dropped."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mapping.ask import Asker
from gateway.mapping.load import load_all
from gateway.mapping.read import Reader
from gateway.model.dataset import attribute
from gateway.model.matching import decider
from gateway.model.query import Match, Operator, Query, parse_match
from gateway.model.seam import NativeMatch
from gateway.model.study import Row
from gateway.model.vocabulary import ISSUER, Level, path, tag
from gateway.wire.dicomjson import DicomRecord

SHIPPED = load_all()
ENTRIES = """
[codes.modality]
MAMMO = "MG"
TOMO = "MG"
[study.AccessionNumber]
path = "StudyID"
[study.ModalitiesInStudy]
codes = "modality"
[study.PatientSex]
default = "O"
[study.InstitutionName]
fixed = "Clinic"
[study.PatientID]
using = "upper"
"""


@pytest.fixture
def asker(mapping) -> Asker:
    return Asker(mapping(_text(ENTRIES)), "HOSPITAL", character_set="ISO_IR 101")


def _text(entries: str) -> str:
    head = 'format = "x"\ntitle = "X"\nprotocol = "dicom"\n'
    proof = '[[example]]\ngiven = { StudyInstanceUID = "1.2" }\nexpect = { study = { StudyInstanceUID = "1.2" } }\n'
    return head + entries + proof


def query(level: Level = Level.STUDY, **keys: str) -> Query:
    return Query(level, tuple(filter(None, (parse_match(path(k.replace("__", ".")), v) for k, v in keys.items()))))


def sent(asker: Asker, **keys: str) -> dict[str, tuple[Operator, tuple[str, ...]]]:
    native = asker.ask(query(**keys))
    return {match.path: (match.operator, match.values) for match in native.match}


def here(asker: Asker, **keys: str) -> list[str]:
    return [match.name for match in asker.plan(query(**keys)).here]


def test_plain_dicom_is_asked_every_key_by_its_keyword():
    asker = Asker(SHIPPED["dicom"], "H")
    keys = {"PatientName": "Ros*", "RequestAttributesSequence__ScheduledProcedureStepID": "S1"}
    assert asker.ask(query(**keys)).match == (
        NativeMatch("PatientName", Operator.WILDCARD, ("Ros*",), path("PatientName")),
        NativeMatch(
            "RequestAttributesSequence.ScheduledProcedureStepID",
            Operator.EXACT,
            ("S1",),
            path("RequestAttributesSequence.ScheduledProcedureStepID"),
        ),
    )


def test_a_key_follows_its_attribute_and_says_whose_it_is(asker):
    native = asker.ask(query(AccessionNumber="A-7"))
    assert native.match == (NativeMatch("StudyID", Operator.EXACT, ("A-7",), path("AccessionNumber")),)
    assert "StudyID" in native.return_, "the node is to give back what the attribute is read from"


def test_two_keys_on_one_native_path_are_sent_and_matched_here(asker):
    assert sent(asker, AccessionNumber="A-7", StudyID="A-8") == {"StudyID": (Operator.EXACT, ("A-7",))}
    assert here(asker, AccessionNumber="A-7", StudyID="A-8") == ["StudyID"]


def test_a_coded_key_asks_for_every_local_code_and_for_the_term_itself(asker):
    assert sent(asker, ModalitiesInStudy="MG") == {"ModalitiesInStudy": (Operator.LIST, ("MAMMO", "TOMO", "MG"))}
    assert sent(asker, ModalitiesInStudy="CT") == {"ModalitiesInStudy": (Operator.EXACT, ("CT",))}


def test_a_local_code_is_no_term_so_nothing_is_asked_for_it(asker):
    assert here(asker, ModalitiesInStudy="MAMMO") == ["ModalitiesInStudy"]


def test_a_wildcard_cannot_go_through_a_table_nor_a_key_through_a_one_way_transform(asker):
    assert here(asker, ModalitiesInStudy="M*", PatientID="ab") == ["ModalitiesInStudy", "PatientID"]
    assert "PatientID" in asker.ask(query(PatientID="ab")).return_


def test_what_a_table_puts_into_a_sequence_is_not_looked_for_in_the_nodes_own(mapping):
    table = '[codes.parts]\nMAMMA = { system = "SCT", code = "76752008" }\n'
    entry = '[series.AnatomicRegionSequence]\npath = "BodyPartExamined"\ncodes = "parts"\n'
    asker = Asker(mapping(_text(table + entry)), "HOSPITAL")
    keys = {"AnatomicRegionSequence__CodeValue": "76752008"}
    assert sent(asker, **keys) == {}
    assert here(asker, **keys) == ["AnatomicRegionSequence.CodeValue"]
    assert "BodyPartExamined" in asker.ask(query(Level.SERIES, **keys)).return_


def test_a_key_that_a_default_answers_is_not_sent(asker):
    assert here(asker, PatientSex="O") == ["PatientSex"]
    assert sent(asker, PatientSex="F") == {"PatientSex": (Operator.EXACT, ("F",))}


def test_a_fixed_value_is_decided_without_asking(asker):
    assert asker.ask(query(InstitutionName="Other")) is None
    assert sent(asker, InstitutionName="Cli*") == {}
    assert here(asker, InstitutionName="Clinic") == []


def test_the_issuer_is_decided_on_the_rows_of_dicom_nodes():
    asker = Asker(SHIPPED["dicom"], "HOSPITAL")
    assert here(asker, IssuerOfPatientID="OTHER", PatientID="7") == ["IssuerOfPatientID"]
    assert "IssuerOfPatientID" in asker.ask(query(IssuerOfPatientID="OTHER")).return_


def test_nodes_that_are_asked_alike_share_what_was_worked_out_and_others_do_not():
    one, other = (Asker(SHIPPED["mii-bildgebung"], issuer) for issuer in ("KLINIK", "1.2.3"))
    assert one.plan(query(PatientID="7")) is other.plan(query(PatientID="7"))
    assert here(one, IssuerOfPatientID="1.2.3") == []
    assert here(other, IssuerOfPatientID="1.2.3") == ["IssuerOfPatientID"]  # its own is decided on the rows
    assert one.plan(query(PatientID="7"), 5).native.limit == 5
    assert one.ask(query(PatientID="7"), 5, samples=True).samples
    latin = Asker(SHIPPED["mii-bildgebung"], "KLINIK", character_set="ISO_IR 100")
    assert latin.ask(query(PatientID="7")).character_set == "ISO_IR 100" != one.ask(query(PatientID="7")).character_set


def test_fhir_nodes_are_asked_for_the_systems_of_an_issuer_but_not_for_their_own():
    asker = Asker(SHIPPED["mii-bildgebung"], "KLINIK")
    (match,) = asker.ask(query(IssuerOfPatientID="KVNR")).match
    assert match.values == ("http://fhir.de/sid/gkv/kvid-10", "urn:oid:1.2.276.0.76.4.8")
    assert match.of == (ISSUER,)
    assert here(asker, IssuerOfPatientID="KLINIK") == ["IssuerOfPatientID"]
    (other,) = asker.ask(query(IssuerOfPatientID="1.2.3")).match
    assert other.values == ("urn:oid:1.2.3",)


@pytest.mark.parametrize(
    "name", ["KVNR", "1.2.276.0.76.4.8", "urn:oid:1.2.276.0.76.4.8", "http://fhir.de/sid/gkv/kvid-10"]
)
def test_every_name_of_an_issuer_is_asked_for_and_matched_alike(name: str):
    asker = Asker(SHIPPED["mii-bildgebung"], "KLINIK")
    asked = query(IssuerOfPatientID=name)
    assert asker.canonical(asked).matches[0].values == ("KVNR",)
    assert asker.plan(asked) == asker.plan(query(IssuerOfPatientID="KVNR"))


def test_fhir_keys_go_back_through_their_transforms():
    asker = Asker(SHIPPED["fhir-r4"], "H")
    assert sent(asker, StudyInstanceUID="1.2,1.3", StudyDate="20260301-", PatientName="Lind^E*", PatientSex="F") == {
        "identifier.where(system = 'urn:dicom:uid').value": (Operator.LIST, ("urn:oid:1.2", "urn:oid:1.3")),
        "started": (Operator.RANGE, ("2026-03-01", "")),
        "subject.resolve()": (Operator.WILDCARD, ("Lind*",)),
        "subject.resolve().gender": (Operator.EXACT, ("female",)),
    }


def test_fhir_keys_that_the_mapping_does_not_know_are_matched_here():
    assert here(Asker(SHIPPED["fhir-r4"], "H"), StudyID="1", StudyTime="10", PatientName="*ind") == [
        "StudyID", "StudyTime", "PatientName"
    ]  # fmt: skip


def test_the_rest_of_the_query_goes_along(asker):
    asked = Query(
        Level.SERIES, study="1.2", series="1.2.3", return_=(path("StationName"),), all_attributes=True, fuzzy=True
    )
    native = asker.ask(asked, limit=200)
    assert (native.level, native.study, native.series, native.limit) == (Level.SERIES, "1.2", "1.2.3", 200)
    assert (native.all_attributes, native.fuzzy, native.character_set) == (True, True, "ISO_IR 101")
    assert "StationName" in native.return_


def test_a_source_of_a_lower_level_is_not_asked_back_at_a_higher_one(mapping):
    text = _text('[study.AccessionNumber]\npath = "RequestAttributesSequence.AccessionNumber"\n')
    asker = Asker(mapping(text), "H")
    wanted = "RequestAttributesSequence.AccessionNumber"
    assert wanted not in asker.ask(Query(Level.STUDY)).return_
    assert wanted in asker.ask(Query(Level.SERIES, study="1.2")).return_


def test_what_the_mapping_reads_is_known(asker):
    assert asker.reads(path("AccessionNumber"))
    assert not asker.reads(path("StudyDescription"))
    assert Asker(SHIPPED["fhir-r4"], "H").reads(path("AnatomicRegionSequence.CodeValue"))


VALUES = st.sampled_from(["MG", "MAMMO", "TOMO", "CT", "A-7", "O", "F", "Clinic", "ab", "AB", ""])
ATTRIBUTES = ["ModalitiesInStudy", "AccessionNumber", "StudyID", "PatientSex", "InstitutionName", "PatientID"]
PATTERNS = VALUES.filter(bool) | st.sampled_from(["M*", "*A*", "?", "A-?"])


@settings(max_examples=500)
@given(
    st.dictionaries(st.sampled_from(ATTRIBUTES), VALUES),
    st.dictionaries(st.sampled_from(ATTRIBUTES), PATTERNS, max_size=3),
)
def test_a_node_that_matches_what_it_is_asked_never_withholds_a_row_that_answers(tmp_path_factory, values, keys):
    """The node is played by matching its raw data set with the native keys: whatever it drops must be no answer."""
    asker, reader = _pair(tmp_path_factory)
    raw = {tag(k): attribute(tag(k), [v] if v else []) for k, v in {"StudyInstanceUID": "1.2", **values}.items()}
    row = reader.row(DicomRecord(raw), Level.STUDY)
    asked = query(**keys)
    native = asker.ask(asked)
    verdict = decider(asker.canonical(asked))(row)[0]
    if native is None:
        assert verdict is False
        return
    native_keys = tuple(Match(path(match.path), match.operator, match.values) for match in native.match)
    as_held = Row(Level.STUDY, "n", row.patient, "1.2", attributes=raw)
    played = decider(Query(Level.STUDY, native_keys))(as_held)[0]
    if played is False:
        assert verdict is not True


_PAIR: list[tuple[Asker, Reader]] = []


def _pair(tmp_path_factory) -> tuple[Asker, Reader]:
    if not _PAIR:
        from gateway.mapping.load import load

        file = tmp_path_factory.mktemp("m") / "x.toml"
        file.write_text(_text(ENTRIES))
        mapping = load(file)
        _PAIR.append((Asker(mapping, "H"), Reader(mapping, "n", "H")))
    return _PAIR[0]


def test_times_that_end_a_span_begun_on_another_day_are_matched_here():
    """A node that takes them for times of every day would lose what lies between."""
    keys = (parse_match((tag("StudyDate"),), "20260301-20260305"), parse_match((tag("StudyTime"),), "1000-0900"))
    asker = Asker(SHIPPED["dicom"], "HOSPITAL")
    plan = asker.plan(Query(Level.STUDY, keys, combined_datetime=True))
    assert [match.path for match in plan.native.match] == ["StudyDate"]
    assert plan.here == (keys[1],)
    assert "StudyTime" in plan.native.return_
    apart = asker.plan(Query(Level.STUDY, keys))
    assert [match.path for match in apart.native.match] == ["StudyDate", "StudyTime"]


@pytest.mark.parametrize("format_", ["dicom", "fhir-r4"])
def test_that_there_is_no_value_is_asked_of_no_node(format_):
    key = Match((tag("AccessionNumber"),), Operator.EMPTY, ("",))
    plan = Asker(SHIPPED[format_], "HOSPITAL").plan(Query(Level.STUDY, (key,)))
    assert plan.native.match == ()
    assert plan.here == (key,)


def test_words_of_a_name_are_looked_for_only_where_a_name_is_what_dicom_says():
    key = Match((tag("PatientName"),), Operator.FUZZY, ("muller hans",))
    sent = Asker(SHIPPED["dicom"], "HOSPITAL").plan(Query(Level.STUDY, (key,)))
    assert [(one.path, one.operator) for one in sent.native.match] == [("PatientName", Operator.FUZZY)]
    here = Asker(SHIPPED["fhir-r4"], "HOSPITAL").plan(Query(Level.STUDY, (key,)))
    assert (here.native.match, here.here) == ((), (key,))
