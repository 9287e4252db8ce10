"""Merging never mixes two patients: held over thousands of random node answers, and shown to notice planted faults."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

from gateway.federation import merge as merging
from gateway.federation.merge import Domains, merge
from gateway.model.answer import Found
from gateway.model.dataset import attribute, text, texts
from gateway.model.patient import PatientKey
from gateway.model.study import Row, row_of
from gateway.model.vocabulary import (
    ISSUER,
    MODALITIES_IN_STUDY,
    PATIENT_ID,
    STUDY_INSTANCE_COUNT,
    STUDY_SERIES_COUNT,
    STUDY_UID,
    Level,
    tag,
)

ANSWERS = int(os.environ.get("MERGE_ANSWERS", "10000"))
NODES = ("alpha", "beta", "gamma", "delta")
FOLLOWS_UNION = {MODALITIES_IN_STUDY, STUDY_SERIES_COUNT, STUDY_INSTANCE_COUNT}
DESCRIPTIVE = [
    tag(k) for k in ("PatientName", "StudyDescription", "AccessionNumber", "ReferringPhysicianName", "StudyID")
]
PRIORITY = {"alpha": 1, "beta": 2, "gamma": 2, "delta": 3}


@dataclass
class World:
    """One random federated answer: rows of several nodes, and who each row is truly about."""

    rows: list[Row] = field(default_factory=list)
    person: dict[int, int] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(
        self, node: str, issuer: str, patient: str, uid: str, person: int, *, linked: PatientKey | None = None
    ) -> None:
        """A row whose every value names its own node and person, so that a stray value is seen wherever it lands."""
        mark = f"{node}/{person}/{len(self.rows)}"
        attributes = {t: attribute(t, [mark]) for t in DESCRIPTIVE}
        attributes[PATIENT_ID] = attribute(PATIENT_ID, [patient])
        attributes[ISSUER] = attribute(ISSUER, [issuer])
        attributes[STUDY_UID] = attribute(STUDY_UID, [uid])
        attributes[MODALITIES_IN_STUDY] = attribute(MODALITIES_IN_STUDY, [random.choice(("CT", "MR", "MG"))])
        attributes[STUDY_INSTANCE_COUNT] = attribute(STUDY_INSTANCE_COUNT, [random.randint(1, 400)])
        # A node leaves attributes out at will: the temptation to fill a gap from elsewhere.
        for t in DESCRIPTIVE:
            if random.random() < 0.3:
                del attributes[t]
        if linked:
            item = {PATIENT_ID: attribute(PATIENT_ID, [linked.id]), ISSUER: attribute(ISSUER, [linked.issuer])}
            attributes[tag("OtherPatientIDsSequence")] = {"vr": "SQ", "Value": [item]}
        row = row_of(Level.STUDY, node, attributes, issuer)
        self.person[id(row.attributes)] = person
        self.rows.append(row)


def random_world(seed: int) -> World:
    """30 % plant one UID on two people, 30 % split a study of one person over nodes, some have empty ids or are linked."""
    random.seed(seed)
    world, person = World(), 0
    for number in range(random.randint(1, 4)):
        person += 1
        uid, patient = f"1.2.{seed}.{number}", str(random.randint(1, 3) * 111)
        first, second, *_ = random.sample(NODES, 4)
        kind = random.random()
        if kind < 0.155:
            world.kinds["shared UID, same issuer"] += 1
            world.add(first, "NATIONAL", patient, uid, person)
            person += 1
            world.add(second, "NATIONAL", patient + "9", uid, person)
        elif kind < 0.32:
            world.kinds["shared UID, other issuer, same id"] += 1
            world.add(first, f"HOSPITAL-{first}", patient, uid, person)
            person += 1
            world.add(random.choice((first, second)), f"HOSPITAL-{second}", patient, uid, person)
        elif kind < 0.63:
            world.kinds["split study"] += 1
            for node in random.sample(NODES, random.randint(2, 4)):
                world.add(node, "NATIONAL", patient, uid, person)
        elif kind < 0.73:
            world.kinds["empty id beside a filled one"] += 1
            world.add(first, "NATIONAL", patient, uid, person)
            person += 1
            world.add(random.choice((first, second)), "NATIONAL", "", uid, person)
        elif kind < 0.83:
            world.kinds["linked by (0010,1002)"] += 1
            world.add(first, "NATIONAL", patient, uid, person)
            world.add(second, f"HOSPITAL-{second}", "77", uid, person, linked=PatientKey("NATIONAL", patient))
        else:
            world.kinds["one node, perhaps repeated rows"] += 1
            for _ in range(random.randint(1, 3)):
                world.add(first, f"HOSPITAL-{first}", patient, uid, person)
    random.shuffle(world.rows)
    return world


Merge = Callable[[Iterable[Row], Domains, dict[str, int]], list[Found]]


def check(world: World, found: list[Found]) -> None:
    """What must hold of every federated answer, whatever the nodes said."""
    for one in found:
        people = {world.person[id(row.attributes)] for row in one.rows}
        assert len(people) == 1, "one result holds rows of two people"
        winner = one.rows[0]
        for t, value in one.attributes.items():
            if t not in FOLLOWS_UNION:
                assert winner.attributes.get(t) == value, "a value does not come from the result's origin"
        assert set(one.attributes) - FOLLOWS_UNION == set(winner.attributes) - FOLLOWS_UNION, (
            "a value was lost or invented"
        )
        assert text(one.attributes, ISSUER) == one.patient.issuer
        assert len(set(one.holders)) == len(one.holders), "a node holds it twice"
        held = {modality for row in one.rows for modality in texts(row.attributes, MODALITIES_IN_STUDY)}
        assert set(texts(one.attributes, MODALITIES_IN_STUDY)) == held, "modalities are not those of the holders"
    told = Counter((one.study, world.person[id(one.rows[0].attributes)]) for one in found)
    truth = {(row.study, world.person[id(row.attributes)]) for row in world.rows}
    assert set(told) == truth, "a study of a person was lost or invented"
    assert max(told.values()) == 1, "one study of one person was told twice"
    for uid in {uid for uid, _ in truth}:
        several = len([1 for study, _ in truth if study == uid]) > 1
        assert all(bool(one.ambiguous) is several for one in found if one.study == uid), "a clash was not marked as one"


def violations(merge_: Merge, count: int) -> tuple[int, Counter[str]]:
    """How many of `count` random answers break a rule, and what the answers held."""
    broken, kinds = 0, Counter[str]()
    for seed in range(count):
        world = random_world(seed)
        kinds += world.kinds
        try:
            check(world, merge_(world.rows, Domains(), PRIORITY))
        except AssertionError:
            broken += 1
    return broken, kinds


def test_no_result_ever_mixes_two_patients_and_every_value_carries_its_origin(
    record_property: Callable[[str, object], None],
) -> None:
    broken, kinds = violations(merge, ANSWERS)
    total = sum(kinds.values())
    lines = [f"  {ANSWERS} random node answers, {total} studies, {broken} of them broken"]
    lines += [f"  {number:6} ({100 * number / total:2.0f} %) {kind}" for kind, number in kinds.most_common()]
    record_property("figures", "\n".join(lines))
    assert broken == 0


def merge_by_position(rows: Iterable[Row], domains: Domains, priority: dict[str, int]) -> list[Found]:
    """Planted fault: the nth row of one node is merged with the nth of another, as the open fan-out proxy does."""
    by_node: dict[str, list[Row]] = {}
    for row in rows:
        by_node.setdefault(row.node, []).append(row)
    columns = [[rows[i] for rows in by_node.values() if i < len(rows)] for i in range(max(map(len, by_node.values())))]
    return [merging._found(column, "", False, priority) for column in columns]


def merge_first_non_empty(rows: Iterable[Row], domains: Domains, priority: dict[str, int]) -> list[Found]:
    """Planted fault: a gap in the winner's attributes is filled from another holder."""
    found = merge(rows, domains, priority)
    for one in found:
        for row in one.rows[1:]:
            for t, value in row.attributes.items():
                one.attributes.setdefault(t, value)
    return found


def merge_without_issuer(rows: Iterable[Row], domains: Domains, priority: dict[str, int]) -> list[Found]:
    """Planted fault: the id alone decides who the patient is."""
    original = merging.same_patient
    merging.same_patient = lambda a, b, _: a.patient.id == b.patient.id
    try:
        return merge(rows, domains, priority)
    finally:
        merging.same_patient = original


@pytest.mark.parametrize("faulty", [merge_by_position, merge_first_non_empty, merge_without_issuer])
def test_the_property_notices_a_planted_fault(faulty: Merge) -> None:
    assert violations(faulty, 300)[0] > 20


def test_two_hospitals_with_a_patient_of_the_same_id_stay_two_patients() -> None:
    world = World()
    world.add("alpha", "HOSPITAL-A", "12345", "1.2.3", 1)
    world.add("beta", "HOSPITAL-B", "12345", "1.2.3", 2)
    found = merge(world.rows, Domains(), PRIORITY)
    assert [one.ambiguous for one in found] == ["unlinked", "unlinked"]


def test_a_same_patient_domain_makes_equal_ids_of_its_issuers_one_patient() -> None:
    world = World()
    world.add("alpha", "HOSPITAL-A", "12345", "1.2.3", 1)
    world.add("beta", "HOSPITAL-B", "12345", "1.2.3", 1)
    (one,) = merge(world.rows, Domains((frozenset({"HOSPITAL-A", "HOSPITAL-B"}),)), PRIORITY)
    assert one.holders == ("alpha", "beta") or one.holders == ("beta", "alpha")


def test_a_chain_of_links_never_joins_two_ids_of_one_issuer() -> None:
    world = World()
    world.add("alpha", "NATIONAL", "1", "1.2.3", 1, linked=PatientKey("HOSPITAL-B", "77"))
    world.add("beta", "HOSPITAL-B", "77", "1.2.3", 1, linked=PatientKey("NATIONAL", "2"))
    world.add("gamma", "NATIONAL", "2", "1.2.3", 2)
    found = merge(world.rows, Domains(), PRIORITY)
    assert len(found) == 3
    assert all(one.ambiguous for one in found)


def test_two_unidentified_patients_of_two_nodes_are_never_one() -> None:
    world = World()
    world.add("alpha", "NATIONAL", "", "1.2.3", 1)
    world.add("beta", "NATIONAL", "", "1.2.3", 2)
    assert len(merge(world.rows, Domains(), PRIORITY)) == 2


def test_the_order_in_which_nodes_answer_changes_nothing() -> None:
    for seed in range(200):
        world = random_world(seed)
        forward = {(one.study, one.origin, one.holders) for one in merge(world.rows, Domains(), PRIORITY)}
        backward = {(one.study, one.origin, one.holders) for one in merge(world.rows[::-1], Domains(), PRIORITY)}
        assert forward == backward
