"""What a scope grants, in the three dialects that are in use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.security.scopes import allows, grant, supported


@pytest.mark.parametrize(
    ("scope", "granted"),
    [
        ("system/ImagingStudy.read", ("ImagingStudy", "rs")),
        ("user/ImagingStudy.read", ("ImagingStudy", "rs")),
        ("system/ImagingStudy.write", ("ImagingStudy", "cud")),
        ("system/ImagingStudy.*", ("ImagingStudy", "cruds")),
        ("system/*.read", ("*", "rs")),
        ("system/*.*", ("*", "cruds")),
        ("system/ImagingStudy.search", ("ImagingStudy", "s")),
        ("system/ImagingStudy.rs", ("ImagingStudy", "rs")),
        ("system/ImagingStudy.s", ("ImagingStudy", "s")),
        ("system/ImagingStudy.cruds", ("ImagingStudy", "cruds")),
        ("user/*.cd", ("*", "cd")),
    ],
)
def test_a_scope_of_every_dialect_grants_its_permissions(scope, granted):
    assert grant(scope) == granted


@pytest.mark.parametrize(
    "scope",
    [
        "patient/ImagingStudy.read",
        "patient/*.cruds",
        "system/ImagingStudy.rs?modality=MG",
        "system/ImagingStudy.read?",
        "system/ImagingStudy.sr",
        "system/ImagingStudy.rr",
        "system/ImagingStudy.",
        "system/ImagingStudy",
        "system/ImagingStudy.reads",
        "system/imagingstudy.read",
        "System/ImagingStudy.read",
        "ImagingStudy.read",
        "system/.read",
        "system/ImagingStudy.read\n",
        "system/**.read",
        "system/Imaging*.read",
        "openid",
        "launch/patient",
        "",
    ],
)
def test_a_scope_that_means_less_or_nothing_here_grants_nothing(scope):
    assert grant(scope) is None
    assert not allows([scope], "ImagingStudy", "r")
    assert not allows([scope], "ImagingStudy", "s")


def test_reading_and_searching_are_granted_apart():
    assert allows(["system/ImagingStudy.s"], "ImagingStudy", "s")
    assert not allows(["system/ImagingStudy.s"], "ImagingStudy", "r")
    assert allows(["system/ImagingStudy.r"], "ImagingStudy", "r")
    assert not allows(["system/ImagingStudy.r"], "ImagingStudy", "s")
    assert not allows(["system/ImagingStudy.write"], "ImagingStudy", "r")


def test_a_scope_is_for_its_own_resource_or_for_all():
    assert not allows(["system/Patient.rs"], "ImagingStudy", "s")
    assert allows(["openid", "system/Patient.rs", "user/*.s"], "ImagingStudy", "s")
    assert not allows([], "ImagingStudy", "s")


def test_every_scope_that_clients_are_told_of_grants_what_it_says():
    for scope in supported(["ImagingStudy", "Patient"]):
        resource = scope.partition("/")[2].partition(".")[0]
        assert allows([scope], resource, "r")
        assert allows([scope], resource, "s")


@given(st.text(alphabet="systemuserpatient/ImagingStudy.*cruds?=&", max_size=40), st.sampled_from("rs"))
def test_whatever_a_token_holds_only_the_grammar_grants(text, action):
    if allows([text], "ImagingStudy", action):
        who, _, rest = text.partition("/")
        assert who in ("system", "user")
        assert rest.partition(".")[0] in ("ImagingStudy", "*")
        assert "?" not in text
