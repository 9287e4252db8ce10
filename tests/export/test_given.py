"""Which studies of a page an export has given already, whoever describes them by then."""

from __future__ import annotations

from gateway.edge.export.given import left, marks_of
from gateway.federation.merge import Domains, merge
from gateway.model.answer import Found
from gateway.model.patient import PatientKey
from gateway.model.study import Row
from gateway.model.vocabulary import Level

NORTH, SOUTH, OTHER = PatientKey("NORTH", "1"), PatientKey("SOUTH", "5"), PatientKey("NORTH", "2")
ALONE = Domains()


def study(*patients: PatientKey, node: str = "n00", linked: frozenset[PatientKey] = frozenset()) -> Found:
    rows = [Row(Level.STUDY, node, key, "2.25.1", linked=linked) for key in patients]
    (found,) = merge(rows, ALONE, {})
    return found


def is_left(found: Found, *before: Found, domains: Domains = ALONE) -> bool:
    return bool(left([found], [mark for one in before for mark in marks_of(one)], domains))


def test_a_study_of_the_same_patient_is_given_once() -> None:
    assert not is_left(study(NORTH, node="n01"), study(NORTH))
    assert not is_left(study(SOUTH, linked=frozenset({NORTH})), study(NORTH))
    assert not is_left(study(PatientKey("SOUTH", "1")), study(NORTH), domains=Domains((frozenset({"NORTH", "SOUTH"}),)))


def test_another_patient_s_study_of_the_same_uid_is_given_too() -> None:
    assert is_left(study(OTHER), study(NORTH))
    assert is_left(study(SOUTH), study(NORTH))
    assert is_left(study(OTHER, linked=frozenset({SOUTH})), study(NORTH), study(SOUTH))


def test_a_patient_whom_nobody_named_is_his_node_s() -> None:
    nobody = PatientKey("NORTH", "")
    assert not is_left(study(nobody), study(nobody))
    assert is_left(study(nobody, node="n01"), study(nobody))
