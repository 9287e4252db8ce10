"""Whole answers in a process's memory: how long, how much, and what a purge reaches."""

import pytest

from gateway.cache import bodies
from gateway.cache.bodies import Bodies, Grounds, Kept
from gateway.cache.envelope import Entry
from gateway.cache.purges import Purge
from gateway.cache.tags import patient_tag, study_tag


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


GROUNDS = Grounds("ImagingStudy", "s", (), (("berlin", "digest"),), b"{}")
TAGS = frozenset([study_tag("1.2.3"), patient_tag("urn:de", "4711")])


def answer(body=b"[]", *, seconds=30.0, clock=None):
    now = clock() if clock else 1000.0
    keys = frozenset(["gw:1:find:berlin@1:2"])
    return Kept(200, ((b"etag", b'"1"'),), body, b'"1"', None, GROUNDS, keys, TAGS, now, now + seconds)


def keep(kept, key, one):
    kept.keep(key, one, kept.generation)


def test_an_answer_is_given_until_it_is_no_longer_fresh(clock):
    kept = Bodies(100_000, clock)
    keep(kept, "a", answer(seconds=30))
    clock.now += 29.9
    assert kept.get("a").body == b"[]"
    clock.now += 0.1
    assert kept.get("a") is None
    assert (len(kept), kept.bytes) == (0, 0)


def test_what_is_not_fresh_is_not_kept_at_all(clock):
    kept = Bodies(100_000, clock)
    keep(kept, "a", answer(seconds=0))
    assert len(kept) == 0


def test_the_answers_used_last_stay_when_room_runs_out(clock):
    one = answer(b"x" * 5000)
    kept = Bodies(one.size * 10, clock)
    for number in range(10):
        keep(kept, number, one)
    assert kept.get(0) is not None
    keep(kept, "more", one)
    assert kept.get(0) is not None
    assert kept.get(1) is None
    assert kept.bytes == one.size * 10 == one.size * len(kept)


def test_answers_that_are_no_longer_fresh_take_no_room_once_another_comes(clock):
    kept = Bodies(100_000, clock)
    for number in range(10):
        keep(kept, number, answer(seconds=2))
    clock.now += 2
    keep(kept, "new", answer(clock=clock))
    assert (len(kept), kept.bytes) == (1, answer().size)


def test_one_answer_does_not_take_all_the_room(clock):
    kept = Bodies(100_000, clock)
    keep(kept, "large", answer(b"x" * 50_000))
    assert len(kept) == 0


def test_an_answer_in_place_of_another_counts_once(clock):
    kept = Bodies(100_000, clock)
    keep(kept, "a", answer(b"x" * 2000))
    keep(kept, "a", answer(b"y" * 1000))
    assert kept.get("a").body == b"y" * 1000
    assert kept.bytes == kept.get("a").size


def test_without_room_nothing_is_kept(clock):
    kept = Bodies(0, clock)
    assert kept.is_off
    keep(kept, "a", answer())
    assert len(kept) == 0


@pytest.mark.parametrize(
    ("purge", "dropped"),
    [
        (Purge("node", ("berlin",)), True),
        (Purge("node", ("paris",)), False),
        (Purge("study", ("1.2.3",)), True),
        (Purge("study", ("1.2.4", "1.2.3")), True),
        (Purge("study", ("1.2.4",)), False),
        (Purge.of_patient("urn:de", "4711"), True),
        (Purge.of_patient("urn:fr", "4711"), False),
        (Purge("keys", ("gw:1:find:berlin@1:2",)), True),
        (Purge("keys", ("gw:1:find:berlin@1:3",)), False),
        (Purge("all"), True),
    ],
)
def test_a_purge_drops_what_it_concerns(clock, purge, dropped):
    kept = Bodies(100_000, clock)
    keep(kept, "a", answer())
    kept.drop(purge)
    assert (kept.get("a") is None) is dropped
    assert (kept.bytes == 0) is dropped


def test_nothing_is_believed_while_purges_may_be_missed(clock):
    kept = Bodies(100_000, clock)
    keep(kept, "a", answer())
    kept.is_coherent = lambda: False
    assert kept.get("a") is None
    keep(kept, "b", answer())
    kept.is_coherent = lambda: True
    assert kept.get("a") is not None
    assert kept.get("b") is None


def test_an_answer_begun_before_a_purge_is_not_kept_after_it(clock):
    kept = Bodies(100_000, clock)
    for purge in (lambda: kept.drop(Purge("node", ("elsewhere",))), kept.clear):
        before = kept.generation
        purge()
        kept.keep("a", answer(), before)
        assert len(kept) == 0


def test_clearing_leaves_nothing(clock):
    kept = Bodies(100_000, clock)
    keep(kept, "a", answer())
    kept.clear()
    assert (len(kept), kept.bytes) == (0, 0)


def test_an_answer_is_kept_only_when_all_is_known_of_it():
    making = bodies.begin(0)
    assert bodies.current() is making
    assert not making.may_be_kept
    making.give_grounds(GROUNDS)
    assert not making.may_be_kept
    making.whole = (200, (), b"")
    assert making.may_be_kept
    making.give_grounds(GROUNDS)
    assert not making.may_be_kept
    bodies.keep_nothing()
    assert bodies.current() is None


def test_an_answer_that_has_ended_holds_nothing_and_is_not_kept():
    """Whoever opened a connection for it keeps its context: the rows of a large archive must not stay with that."""
    making = bodies.begin(0)
    making.uses("key", Entry(b"[]", 0, 30))
    making.give_grounds(GROUNDS)
    making.whole = (200, (), b"[]")
    assert making.may_be_kept
    making.end()
    making.uses("later", Entry(b"[]", 0, 30))
    assert (making.keys, making.parts, making.whole, making.may_be_kept) == (set(), [], None, False)


def test_an_answer_made_from_very_much_is_not_kept_and_holds_none_of_it():
    making = bodies.begin(0)
    making.give_grounds(GROUNDS)
    making.whole = (200, (), b"[]")
    for number in range(5):
        making.uses(f"key {number}", Entry(bytes(4 * 1024**2), 0, 30))
        assert sum(len(part.body) for part in making.parts) <= 16 * 1024**2
    assert (making.parts, making.may_be_kept) == ([], False)
