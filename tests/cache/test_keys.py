import fnmatch
import random
import re
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache.keys import canonical, federated_key, is_of_node, key, node_digest, node_patterns, query_key
from gateway.model.query import Operator
from gateway.model.seam import NativeMatch, NativeQuery
from gateway.model.vocabulary import Level

text = st.text(max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
native_matches = st.builds(
    NativeMatch,
    text,
    st.sampled_from(Operator),
    st.lists(text, min_size=1, max_size=4).map(tuple),
    st.just(("00100010",)),
)
queries = st.builds(
    NativeQuery,
    st.sampled_from(Level),
    st.lists(native_matches, max_size=5).map(tuple),
    st.none() | text,
    st.none() | text,
    st.lists(text, max_size=5).map(tuple),
    st.booleans(),
    text,
    st.booleans(),
    st.none() | st.integers(0, 10_000),
)


def shuffled(value, chance):
    """The same JSON value with its objects built in another order."""
    if isinstance(value, dict):
        names = list(value)
        chance.shuffle(names)
        return {name: shuffled(value[name], chance) for name in names}
    return [shuffled(each, chance) for each in value] if isinstance(value, list) else value


def meaning(query: NativeQuery):
    """What a query asks, written down in another way than the key does it."""
    matches = frozenset(
        (m.path, m.operator, frozenset(m.values) if m.operator is Operator.LIST else m.values, m.of)
        for m in query.match
    )
    return replace(query, match=(), return_=()), matches, frozenset(query.return_)


@given(json_values, st.randoms(use_true_random=False))
def test_the_order_of_an_objects_members_does_not_matter(value, chance):
    assert key("find", "de-1", value) == key("find", "de-1", shuffled(value, chance))


@given(queries, st.randoms(use_true_random=False))
def test_the_order_of_matches_listed_values_and_return_paths_does_not_matter(query, chance):
    def mixed(values):
        return tuple(chance.sample(values, len(values)))

    matches = [replace(m, values=mixed(m.values)) if m.operator is Operator.LIST else m for m in query.match]
    other = replace(query, match=mixed(matches), return_=mixed(query.return_))
    assert query_key("find", "de-1", query) == query_key("find", "de-1", other)


@given(queries, queries)
def test_queries_share_a_key_only_if_they_ask_the_same(one, other):
    assert (query_key("find", "n", one) == query_key("find", "n", other)) == (meaning(one) == meaning(other))


@given(queries, st.data())
def test_a_change_of_any_field_is_another_key(query, data):
    name = data.draw(st.sampled_from([field.name for field in fields(NativeQuery)]))
    changed = replace(query, **{name: getattr(data.draw(queries), name)})
    assert (query_key("find", "n", query) == query_key("find", "n", changed)) == (meaning(query) == meaning(changed))


@given(st.lists(text, max_size=4), st.lists(text, max_size=4))
def test_where_one_part_ends_and_the_next_begins_matters(one, other):
    assert (key("find", "n", *one) == key("find", "n", *other)) == (one == other)


def test_kind_node_and_view_are_part_of_the_key():
    query = NativeQuery(Level.STUDY)
    keys = {
        query_key("find", "a", query),
        query_key("probe", "a", query),
        query_key("find", "b", query),
        query_key("find", "a", query, "view"),
    }
    assert len(keys) == 4
    assert all(re.fullmatch(r"gw:1:(find|probe):[ab]:[0-9a-f]{64}", k) for k in keys)


def test_a_range_and_its_reverse_are_different_questions():
    low_high, high_low = (
        NativeQuery(Level.STUDY, (NativeMatch("StudyDate", Operator.RANGE, v),)) for v in [("1", "2"), ("2", "1")]
    )
    assert query_key("find", "n", low_high) != query_key("find", "n", high_low)


@given(st.frozensets(text, max_size=5), st.integers(), st.binary(max_size=8))
def test_sets_bytes_and_huge_integers_have_a_place_in_a_key(members, number, raw):
    order = list(members)
    random.shuffle(order)
    assert canonical([members, number, raw]) == canonical([set(order), number, raw])
    assert canonical(2**80 + number) != canonical(2**80 + number + 1)


def test_what_has_no_json_form_is_refused():
    with pytest.raises(TypeError):
        key("find", "n", object())


@given(st.text(max_size=20))
def test_no_node_id_can_break_out_of_its_place_in_the_key(node):
    assert re.fullmatch(r"gw:1:find:[A-Za-z0-9._@-]+:[0-9a-f]{64}", key("find", node, 1))


nodes = st.sampled_from(["de-1", "de-11", "de", "fr*", "fr?", "fr1", "a:b", "a", "b", "é", "[ab]", "Ω" * 80])


@given(nodes, nodes, st.booleans())
def test_a_purge_of_a_node_finds_its_keys_under_any_configuration_and_no_others(node, other, configured):
    entry = key("find", node_digest(node, {"url": "x"}) if configured else node, "question")
    hit = any(fnmatch.fnmatchcase(entry, pattern) for pattern in node_patterns(other))
    assert hit == (node == other) == is_of_node(entry, other)


def test_a_changed_configuration_is_a_new_start():
    assert node_digest("de-1", {"url": "x"}) != node_digest("de-1", {"url": "y"})
    assert node_digest("de-1", {"a": 1, "b": 2}) == node_digest("de-1", {"b": 2, "a": 1})


def test_two_views_never_share_a_federated_answer():
    one, two = (federated_key("search", view, {"PatientID": "1"}) for view in ("plain", "counts"))
    assert one != two
    assert one == federated_key("search", "plain", {"PatientID": "1"})
    assert is_of_node(one, "any-node")
