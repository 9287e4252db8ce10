"""The purpose of use as tokens state it."""

import pytest

from gateway.security.purpose import purpose_of

ACT_REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"


def iua(*purposes):
    return {"extensions": {"ihe_iua": {"purpose_of_use": list(purposes)}}}


@pytest.mark.parametrize(
    "claims",
    [
        {"purpose_of_use": "TREAT"},
        {"purpose_of_use": ["TREAT"]},
        {"purpose_of_use": {"system": ACT_REASON, "code": "TREAT"}},
        iua({"system": "urn:oid:2.16.840.1.113883.5.8", "code": "TREAT"}),
        iua({"code": " TREAT "}) | {"purpose_of_use": "TREAT"},
    ],
)
def test_one_purpose_is_found_wherever_it_is_stated(claims):
    assert purpose_of(claims) == "TREAT"


@pytest.mark.parametrize("claims", [{}, {"extensions": None}, {"extensions": {"ihe_iua": 7}}, {"purpose_of_use": []}])
def test_no_purpose_is_none(claims):
    assert purpose_of(claims) == ""


def test_several_purposes_are_none_as_nobody_says_which_this_request_serves():
    assert purpose_of({"purpose_of_use": ["TREAT", "HRESCH"]}) == ""
    assert purpose_of({"purpose_of_use": "TREAT"} | iua({"code": "HRESCH"})) == ""


def test_a_code_of_another_system_is_not_taken_for_the_same_word_of_this_one():
    assert purpose_of(iua({"system": "urn:oid:1.2.3", "code": "TREAT"})) == "urn:oid:1.2.3|TREAT"


@pytest.mark.parametrize(
    "claim", [7, [None], [{"system": "x"}], "", " ", [{"code": ""}], {"system": 7, "code": "TREAT"}]
)
def test_a_purpose_that_cannot_be_read_is_not_passed_over(claim):
    with pytest.raises(ValueError):
        purpose_of({"purpose_of_use": claim})
