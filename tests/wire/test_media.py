import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.media import MediaType, parse_accept, parse_media_type, quoted, split_list


def test_the_parameters_of_a_quoted_type_come_out_beside_it():
    parsed = parse_media_type('multipart/related; type="application/dicom; transfer-syntax=*"')
    assert parsed == MediaType("multipart", "related", {"type": "application/dicom", "transfer-syntax": "*"})


def test_an_outer_parameter_wins_over_one_inside_the_quotes():
    parsed = parse_media_type('multipart/related; type="application/dicom; transfer-syntax=1.2"; transfer-syntax=1.3')
    assert parsed.parameters["transfer-syntax"] == "1.3"


def test_an_unquoted_type_keeps_its_slash():
    parsed = parse_media_type("multipart/related; type=application/octet-stream; transfer-syntax=*")
    assert parsed.parameters == {"type": "application/octet-stream", "transfer-syntax": "*"}


def test_names_are_lower_case_and_values_keep_their_case():
    parsed = parse_media_type('Multipart/Related ;Type="Application/DICOM";BOUNDARY=aBc')
    assert parsed.essence == "multipart/related"
    assert parsed.parameters == {"type": "Application/DICOM", "boundary": "aBc"}


def test_escaped_quotes_and_separators_inside_quotes_are_part_of_the_value():
    parsed = parse_media_type(r'a/b; x="one\"; two, three"; y=4')
    assert parsed.parameters == {"x": 'one"; two, three', "y": "4"}


@pytest.mark.parametrize("text", ["", ";", "*", "/", "a", 'a/b; x="', "a/b; =1", "a/b;;", '"', "a/b; q=x"])
def test_nothing_makes_the_parser_raise(text):
    assert isinstance(parse_media_type(text), MediaType)


def test_a_list_is_split_only_outside_quotes():
    assert split_list('a/b; x="1,2", c/d ,, e/f') == ['a/b; x="1,2"', "c/d", "e/f"]


def test_accepted_ranges_come_in_order_of_weight():
    ranges = parse_accept("application/json;q=0.5, */*;q=0.1, application/dicom+json, text/html;q=0")
    assert [range_.essence for range_ in ranges] == ["application/dicom+json", "application/json", "*/*", "text/html"]
    assert ranges[2].accepts("image/jpeg")
    assert ranges[-1].quality == 0


def test_a_weight_that_is_no_number_asks_for_nothing():
    assert parse_media_type("a/b; q=high").quality == 0
    assert parse_media_type("a/b; q=nan").quality == 0


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_a_value_that_is_quoted_reads_back(value):
    parsed = parse_media_type(f"a/b; x={quoted(value)}; y=1")
    assert parsed.parameters == {"x": value, "y": "1"} or value == ""


@given(
    st.dictionaries(
        st.sampled_from(["boundary", "charset", "x"]),
        st.text(st.characters(codec="ascii", min_codepoint=32), min_size=1),
    )
)
def test_a_media_type_reads_back_from_its_text(parameters):
    written = MediaType("multipart", "related", parameters)
    assert parse_media_type(str(written)) == written
