"""Person names found by the beginnings of their words: never narrower than literally, and no node keeps a hit back."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.adapters.dicomweb import qido
from gateway.adapters.dimse.identifiers import TextMatching
from gateway.model.dataset import attribute
from gateway.model.matching import matches
from gateway.model.query import Match, Matching, Operator, parse_match
from gateway.model.seam import NativeMatch, NativeQuery
from gateway.model.vocabulary import PATIENT_NAME, Level

PATH = (PATIENT_NAME,)
LETTERS = "aAeElLsSzZoOuUnÄäéÉłŁßøŒœžŞşγΓά中山ヤmMrR"
WORDS = st.text(LETTERS, min_size=1, max_size=6)
NAMES = st.lists(WORDS, min_size=1, max_size=5).flatmap(
    lambda words: st.lists(st.sampled_from("^ -'="), min_size=len(words), max_size=len(words)).map(
        lambda between: "".join(map("".join, zip(words, between, strict=True))).rstrip("^ -'=")
    )
)


def dataset(name: str) -> dict[str, Any]:
    return {PATIENT_NAME: attribute(PATIENT_NAME, [name])}


def fuzzy(key: str) -> Match:
    (match,) = Matching(fuzzy=True).parse(PATH, key)
    return match


FOUND = [
    ("muller", "Müller^Hans"), ("hans mull", "Müller^Hans"), ("HANS^MÜLLER", "Müller^Hans"), ("Mü", "Müller^Hans"),
    ("lopez maria", "García-López^María José"), ("jose,garcia", "García-López^María José"), ("d'an", "D’Angelo^Ida"),
    ("zolk an", "Żółkiewska^Anna"), ("γιωρ παπ", "Παπαδόπουλος^Γιώργος"), ("weiss", "Weiß^Jörg"), ("strass", "Straße^X"),
    ("yamada", "Yamada^Tarou=山田^太郎=やまだ^たろう"), ("太郎", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ("taro やまだ", "Yamada^Tarou=山田^太郎=やまだ^たろう"), ("*ller^h*", "Müller^Hans"), ("h?ns m*r", "Müller^Hans"),
    ("van berg", "van der Berg^Jan"), ("oege", "Œgerli^A"),
]  # fmt: skip
NOT_FOUND = [
    ("uller", "Müller^Hans"), ("muller peter", "Müller^Hans"), ("ans", "Müller^Hans"), ("müllerr", "Müller^Hans"),
    ("田", "Yamada^Tarou=山田^太郎"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "name"), FOUND)
def test_words_in_any_order_find_a_name(key: str, name: str) -> None:
    assert matches(fuzzy(key), dataset(name)) is True


@pytest.mark.parametrize(("key", "name"), NOT_FOUND)
def test_other_words_do_not(key: str, name: str) -> None:
    assert matches(fuzzy(key), dataset(name)) is False


@given(NAMES, NAMES | st.builds("{}*{}".format, WORDS, WORDS) | st.builds("*{}?".format, WORDS))
@example("Müller^Hans", "*er^H*")
def test_it_is_never_narrower_than_literal_matching(name: str, key: str) -> None:
    literal = parse_match(PATH, key)
    if literal and matches(literal, dataset(name)):
        for match in Matching(fuzzy=True).parse(PATH, key):
            assert matches(match, dataset(name)) is True


def as_node(pattern: str, name: str, *, ignores_case: bool, folds: bool = False) -> bool:
    """How a node that looks at letters compares: wildcards, and no diacritics folded unless it does that."""
    if folds:
        return matches(Match(PATH, Operator.WILDCARD, (pattern,)), dataset(name)) is True
    pieces = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return bool(re.fullmatch("".join(pieces), name, re.DOTALL | (re.IGNORECASE if ignores_case else 0)))


def keys_for(name: str) -> st.SearchStrategy[str]:
    words = [word for word in re.split(r"[\^ \-'=]", name) if word]
    some = st.lists(st.sampled_from(words), min_size=1, max_size=3)
    altered = st.sampled_from([str.upper, str.lower, lambda word: word[:2], lambda word: word.replace("ä", "a"), str])
    return st.builds(lambda chosen, change: " ".join(map(change, chosen)), some, altered)


HITS = NAMES.flatmap(lambda name: st.tuples(st.just(name), keys_for(name) | NAMES))


@given(HITS, st.booleans(), st.sampled_from(["", "ISO_IR 100", "ISO_IR 101", "ISO_IR 192"]))
def test_what_a_dimse_node_is_asked_loses_no_hit(hit: tuple[str, str], ignores_case: bool, character_set: str) -> None:
    name, key = hit
    if not matches(fuzzy(key), dataset(name)):
        return
    pushed, is_same = TextMatching(False, ignores_case, character_set).words(key)
    assert not is_same
    assert not pushed or as_node(pushed, name, ignores_case=ignores_case)


@given(HITS, st.sets(st.sampled_from([qido.CASE_SENSITIVE_NAMES, qido.FOLDS_NAMES, qido.NO_PERCENT_DECODING])))
def test_what_a_dicomweb_node_is_asked_loses_no_hit(hit: tuple[str, str], quirks: set[str]) -> None:
    from urllib.parse import unquote

    name, key = hit
    if not matches(fuzzy(key), dataset(name)):
        return
    asked = qido.build(
        NativeQuery(Level.STUDY, (NativeMatch("PatientName", Operator.FUZZY, (key,)),)), frozenset(quirks)
    )
    assert asked.matched == frozenset()
    assert "fuzzymatching" not in asked.query
    folds = qido.FOLDS_NAMES in quirks
    for pair in filter(None, asked.query.split("&")):
        pattern = unquote(pair.removeprefix("PatientName="))
        ignores_case = qido.CASE_SENSITIVE_NAMES not in quirks or folds
        assert as_node(pattern, name, ignores_case=ignores_case, folds=folds)


def test_a_node_that_is_said_to_do_the_same_is_asked_the_same() -> None:
    query = NativeQuery(Level.STUDY, (NativeMatch("PatientName", Operator.FUZZY, ("müller h",)),))
    asked = qido.build(query, frozenset({qido.FUZZY_NAMES}))
    assert asked.query == "PatientName=m%C3%BCller%20h&fuzzymatching=true"
    assert asked.matched == {"PatientName"}


def test_the_word_that_says_most_is_asked() -> None:
    query = NativeQuery(Level.STUDY, (NativeMatch("PatientName", Operator.FUZZY, ("an Bombova",)),))
    assert qido.build(query, frozenset()).query == "PatientName=*B*mb*v*"
    assert TextMatching(True).words("an bombova") == ("*bombova*", False)
    assert TextMatching(False).words("an bombova") == ("", False)
