"""Whether a caller may."""

import pytest

from gateway.errors import Forbidden
from gateway.security.caller import OPEN_CALLER, Caller
from gateway.security.policy import Policy

POLICY = Policy()


def caller(*scopes, **more):
    return Caller("dr-a", "viewer", frozenset(scopes), **more)


def test_a_missing_scope_is_named():
    with pytest.raises(Forbidden) as caught:
        POLICY.require(caller("system/Patient.rs"), "ImagingStudy", "s")
    assert "system/ImagingStudy.s" in caught.value.detail
    assert "dr-a" not in caught.value.detail


def test_a_scope_that_fits_and_the_open_caller_pass():
    POLICY.require(caller("system/ImagingStudy.read"), "ImagingStudy", "s")
    POLICY.require(OPEN_CALLER, "ImagingStudy", "r")


def test_a_caller_of_an_open_path_has_no_rights_elsewhere():
    with pytest.raises(Forbidden):
        POLICY.require(Caller(), "ImagingStudy", "r")


@pytest.mark.parametrize(
    ("purpose", "accepted", "may"),
    [
        ("", (), True),
        ("TREAT", (), True),
        ("TREAT", ("TREAT", "HRESCH"), True),
        ("", ("TREAT",), False),
        ("HRESCH", ("TREAT",), False),
        ("treat", ("TREAT",), False),
        ("TREA", ("TREAT",), False),
    ],
)
def test_a_node_that_lists_purposes_is_asked_for_these_only(purpose, accepted, may):
    assert POLICY.may_use(caller(purpose=purpose), "berlin", accepted) is may


def test_a_hospitals_condition_holds_for_the_open_caller_too():
    assert not POLICY.may_use(OPEN_CALLER, "berlin", ("TREAT",))
    assert POLICY.may_use(OPEN_CALLER, "berlin", ())


def test_a_token_can_narrow_the_nodes_and_an_empty_list_leaves_none():
    assert POLICY.may_use(caller(nodes=frozenset({"berlin"})), "berlin", ())
    assert not POLICY.may_use(caller(nodes=frozenset({"berlin"})), "paris", ())
    assert not POLICY.may_use(caller(nodes=frozenset()), "berlin", ())
    assert not POLICY.may_use(caller(nodes=frozenset({"berlin"})), "berlin", ("TREAT",))


def test_no_node_left_is_forbidden_with_the_general_reason():
    POLICY.require_nodes(caller(), ["berlin"])
    with pytest.raises(Forbidden, match="no single purpose of use is stated"):
        POLICY.require_nodes(caller(), [])
    with pytest.raises(Forbidden, match="may not accept its purpose"):
        POLICY.require_nodes(caller(purpose="TREAT"), [])
    with pytest.raises(Forbidden, match="some nodes only"):
        POLICY.require_nodes(caller(nodes=frozenset({"x"})), [])


def test_a_node_that_is_named_and_not_left_is_forbidden_and_not_told_by_name():
    POLICY.require_nodes(caller(), ["berlin", "paris"], ["paris"])
    with pytest.raises(Forbidden, match="a node is named that this caller may not ask") as caught:
        POLICY.require_nodes(caller(), ["berlin"], ["berlin", "paris"])
    assert "paris" not in caught.value.detail
