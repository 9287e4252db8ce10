"""FHIR XML: the committed table is the specification's order, and what fhir.resources reads from our XML is the JSON it was."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from gateway.wire import fhirxml

PACKAGES = {"R4": "fhir.resources.R4B", "R5": "fhir.resources"}
TABLE: dict[str, dict[str, str]] = json.loads(Path(fhirxml.__file__).with_name("fhirelements.json").read_text())
# The value[x] of an extension that the table carries; no extension of ours has another.
VALUES = {"Coding", "CodeableConcept", "Reference", "Identifier", "Period", "Quantity"}


def model(version: str, kind: str) -> Any:
    return import_module(PACKAGES[version]).get_fhir_model_class(kind)


def specified(version: str, kind: str) -> str:
    """A type's elements in order, each with its type, by fhir.resources."""
    class_ = model(version, kind)
    fields = {field.alias or name: field for name, field in class_.model_fields.items()}
    listed = []
    for element in class_.elements_sequence():
        found = re.search(r"abc\.(\w+)Type\b", str(fields[element].annotation))
        type_ = found[1] if found else ""
        if (
            kind in ("Extension", "ParametersParameter")
            and element.startswith("value")
            and type_
            and type_ not in VALUES
        ):
            continue
        if type_ not in ("", "Resource"):
            try:
                model(version, type_)
            except (KeyError, LookupError):
                type_ = ""
        listed.append(f"{element}:{type_}" if type_ else element)
    return " ".join(listed)


@pytest.mark.parametrize("version", PACKAGES)
def test_the_table_has_every_element_in_the_order_of_the_specification(version: str) -> None:
    table = TABLE[version]
    for kind, elements in table.items():
        assert elements == specified(version, kind), kind
        types = {each.partition(":")[2] for each in elements.split()} - {"", "Resource"}
        assert types <= set(table), kind


texts = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="".join(map(chr, [*range(32), 0xFFFE, 0xFFFF, 0x7F]))),
    min_size=1,
    max_size=20,
).map(str.strip).filter(bool)  # fmt: skip
codes = st.sampled_from(["CT", "MR", "a-b", "a<b", "x&y", 'q"'])
uris = st.sampled_from(["http://a.example/x?y=1&z=2", "urn:oid:1.2.3", "urn:dicom:uid"])
ids = st.text("ABCabc019-.", min_size=1, max_size=12)
codings = st.fixed_dictionaries(
    {"system": uris, "code": codes}, optional={"display": texts, "userSelected": st.booleans()}
)
concepts = st.fixed_dictionaries({"coding": st.lists(codings, min_size=1, max_size=2)}, optional={"text": texts})
extensions = st.one_of(
    st.fixed_dictionaries({"url": uris, "valueString": texts}),
    st.fixed_dictionaries({"url": uris, "valueBoolean": st.booleans()}),
    st.fixed_dictionaries({"url": uris, "valueCoding": codings}),
    st.fixed_dictionaries({"url": uris, "extension": st.lists(st.fixed_dictionaries({"url": uris, "valueCode": codes}), min_size=1, max_size=2)}),
)  # fmt: skip
extended = st.lists(extensions, min_size=1, max_size=2)
identifiers = st.fixed_dictionaries(
    {"value": texts}, optional={"system": uris, "type": concepts, "extension": extended}
)
references = st.fixed_dictionaries(
    {"display": texts}, optional={"identifier": identifiers, "reference": st.just("Patient/1")}
)
names = st.fixed_dictionaries(
    {"family": texts},
    optional={
        "given": st.lists(texts, min_size=1, max_size=3),
        "_family": st.fixed_dictionaries({"extension": extended}),
    },
)


def study(version: str) -> st.SearchStrategy[dict[str, Any]]:
    coded = concepts if version == "R5" else codings
    instances = st.fixed_dictionaries(
        {"uid": st.just("1.2.3"), "sopClass": codings}, optional={"number": st.integers(0, 9), "title": texts}
    )
    series = st.fixed_dictionaries(
        {"uid": st.just("1.2"), "modality": coded},
        optional={
            "description": texts,
            "instance": st.lists(instances, min_size=1, max_size=3),
            "extension": extended,
            "laterality": coded,
        },
    )
    return st.fixed_dictionaries(
        {"resourceType": st.just("ImagingStudy"), "status": st.just("available"), "subject": references},
        optional={
            "id": ids,
            "meta": st.fixed_dictionaries({"tag": st.lists(codings, min_size=1, max_size=2)}),
            "identifier": st.lists(identifiers, min_size=1, max_size=2),
            "extension": extended,
            "started": st.sampled_from(["2025-01-01", "2025-01-01T10:00:00+01:00", "2025-01-01T10:00:00Z"]),
            "numberOfSeries": st.integers(0, 999),
            "description": texts,
            "series": st.lists(series, min_size=1, max_size=2),
            "contained": st.lists(st.fixed_dictionaries({"resourceType": st.just("Patient"), "id": st.just("p")}, optional={"name": st.lists(names, min_size=1, max_size=2), "active": st.booleans()}), min_size=1, max_size=1),
        },
    )  # fmt: skip


def check(version: str, resource: dict[str, Any]) -> None:
    xml = fhirxml.encode(resource, is_r5=version == "R5")
    class_ = model(version, resource["resourceType"])
    read = json.loads(class_.model_validate_xml(xml).model_dump_json())
    assert read == json.loads(class_.model_validate(resource).model_dump_json())  # +00:00 is dumped as Z
    assert f'value="{resource["started"]}"' in xml.decode() if "started" in resource else True
    check_order(version, etree.fromstring(xml), resource["resourceType"])


def check_order(version: str, element: Any, kind: str) -> None:
    """Every element stands in the order of its type, and those of one name together."""
    listed = [each.partition(":") for each in specified(version, kind).split()]
    places = {name: place for place, (name, _, _) in enumerate(listed)}
    types = {name: type_ for name, _, type_ in listed}
    children = [etree.QName(child).localname for child in element]
    assert children == sorted(children, key=lambda name: places[name])
    for child, name in zip(element, children, strict=True):
        if types[name] == "Resource":
            (inner,) = child
            check_order(version, inner, etree.QName(inner).localname)
        elif types[name]:
            check_order(version, child, types[name])


@settings(max_examples=150, deadline=None)
@given(study("R4"))
def test_an_r4_study_comes_back_from_xml_as_it_was(resource: dict[str, Any]) -> None:
    check("R4", resource)


@settings(max_examples=150, deadline=None)
@given(study("R5"))
def test_an_r5_study_comes_back_from_xml_as_it_was(resource: dict[str, Any]) -> None:
    check("R5", resource)


@pytest.mark.parametrize("version", PACKAGES)
def test_ids_and_extensions_of_primitives_stay_with_them(version: str) -> None:
    extension = [{"url": "http://a.example", "valueString": "y"}]
    check(version, {
        "resourceType": "Patient", "id": "p", "active": False, "birthDate": "1970-01-01", "_birthDate": {"extension": extension},
        "name": [{"given": ["a", "b"], "_given": [None, {"extension": extension}]}],
    })  # fmt: skip
    xml = fhirxml.encode(
        {"resourceType": "Patient", "_birthDate": {"id": "x", "extension": extension}}, is_r5=False
    ).decode()
    assert '<birthDate id="x"><extension url="http://a.example">' in xml


def test_the_id_of_an_element_is_an_attribute_and_that_of_a_resource_is_not() -> None:
    """FHIR R4 2.6.1.1; fhir.resources does not read the attribute."""
    resource = {"resourceType": "Patient", "id": "p", "identifier": [{"id": "i", "value": "1"}]}
    wanted = '<Patient xmlns="http://hl7.org/fhir"><id value="p"/><identifier id="i"><value value="1"/></identifier></Patient>'
    assert fhirxml.encode(resource, is_r5=False).decode().partition("?>")[2] == wanted


def test_what_the_version_does_not_know_is_refused() -> None:
    for unknown in (
        {"resourceType": "Basket"},
        {"resourceType": "Patient", "shoe": 1},
        {"resourceType": "ImagingStudy", "interpreter": []},
    ):
        with pytest.raises(KeyError):
            fhirxml.encode(unknown, is_r5=True)
    assert b"<interpreter>" in fhirxml.encode(
        {"resourceType": "ImagingStudy", "interpreter": [{"display": "x"}]}, is_r5=False
    )


def test_characters_that_xml_cannot_carry_are_replaced_and_white_space_stays() -> None:
    text = 'a\x00b\x0bc\td\ne\rf\ufffeg\ud800h<&>"'
    xml = fhirxml.encode({"resourceType": "Patient", "language": text}, is_r5=False)
    (language,) = etree.fromstring(xml)
    assert language.get("value") == 'a\ufffdb\ufffdc\td\ne\rf\ufffdg\ufffdh<&>"'
