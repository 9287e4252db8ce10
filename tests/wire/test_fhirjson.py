"""FHIRPath over one resource, with references followed."""

import pytest
from fhirpathpy import evaluate
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidMapping, Unmappable
from gateway.wire.fhirjson import FhirRecord, compiled
from gateway.wire.fhirpath import compile_subset

PATIENT = {"resourceType": "Patient", "id": "p", "identifier": [{"system": "a", "value": "1"}, {"value": "2"}]}
STUDY = {
    "resourceType": "ImagingStudy",
    "contained": [PATIENT],
    "subject": {"reference": "#p"},
    "basedOn": [{"reference": "ServiceRequest/9"}, {"display": "no reference"}],
    "modality": [{"code": "CT"}, {"code": "SR"}],
    "series": [{"uid": "1.1", "number": 1}, {"uid": "1.2", "bodySite": {"code": "b"}}],
}


def test_one_value_comes_alone_several_as_a_list_and_none_as_none():
    record = FhirRecord(STUDY)
    assert record.value("resourceType") == "ImagingStudy"
    assert record.value("modality.code") == ["CT", "SR"]
    assert record.value("description") is None
    assert record.value("subject") is None, "a complex value is no value"


def test_children_keep_what_belongs_together():
    series = list(FhirRecord(STUDY).children("series"))
    assert [(one.value("uid"), one.value("bodySite.code")) for one in series] == [("1.1", None), ("1.2", "b")]


def test_contained_resources_are_followed_from_the_elements_below_too():
    record = FhirRecord(STUDY)
    assert record.value("subject.resolve().identifier.where(system = 'a').value") == "1"
    (subject,) = record.children("subject")
    assert subject.value("resolve().id") == "p"


def test_other_references_are_followed_by_the_callers_function_and_else_left_out():
    asked = []

    def resolve(reference: str):
        asked.append(reference)
        return {"identifier": [{"value": "A-1"}]}

    assert FhirRecord(STUDY, resolve).value("basedOn.resolve().identifier.value") == "A-1"
    assert asked == ["ServiceRequest/9"]
    assert FhirRecord(STUDY).value("basedOn.resolve().identifier.value") is None


def test_a_primitive_child_is_read_by_this():
    assert [child.value("$this") for child in FhirRecord(STUDY).children("modality.code")] == ["CT", "SR"]


@pytest.mark.parametrize("path", ["a..b", "where(", "a.where(x='1'", "identifier.where(system=)", "a b", ""])
def test_what_is_no_fhirpath_is_refused_rather_than_repaired(path: str):
    with pytest.raises(InvalidMapping):
        compiled(path)


def test_a_resource_of_another_shape_is_unmappable_and_does_not_show_its_content():
    with pytest.raises(Unmappable) as caught:
        FhirRecord({"a": "secret", "b": "x"}).value("b.substring(a.first())")
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


NAMES = st.sampled_from(["a", "b", "c"])
LEAVES = st.sampled_from(["x", "y"]) | st.integers(0, 2)
ELEMENTS = st.recursive(
    st.dictionaries(NAMES, LEAVES | st.lists(LEAVES, max_size=3), max_size=3),
    lambda below: st.dictionaries(NAMES, below | st.lists(below, max_size=3) | LEAVES, max_size=3),
    max_leaves=8,
)
PATHS = st.recursive(
    NAMES,
    lambda path: st.one_of(
        st.builds("{}.{}".format, path, NAMES),
        st.builds("{}.first()".format, path),
        st.builds("{}.where({} = 'x')".format, path, path),
        st.builds("{}.where({}.exists())".format, path, path),
        st.builds("({} | {})".format, path, path),
    ),
    max_leaves=4,
)


@settings(max_examples=400)
@given(ELEMENTS, PATHS)
def test_the_fast_part_of_fhirpath_reads_as_the_interpreter_reads(resource, path: str):
    function = compile_subset(path)
    assert function is not None
    oracle = [item for item in evaluate(resource, path) if item is not None]
    assert function([resource], lambda items: []) == oracle


@pytest.mark.parametrize(
    "path",
    ["a.iif(b, c)", "a.where(b = 1)", "a.count()", "a.b != 'x'", "Patient.name", "a.first(b)", "a.where(b = 'it\\'s')"],
)
def test_more_of_fhirpath_is_left_to_the_interpreter(path: str):
    assert compile_subset(path) is None


def test_the_interpreters_part_is_there():
    assert FhirRecord({"a": [{"b": 1, "c": "x"}, {"b": 2, "c": "y"}]}).value("a.where(b > 1).c") == "y"
