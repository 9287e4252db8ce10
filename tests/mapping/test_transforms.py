"""Each named transform, and that reading takes back what asking makes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mapping.transforms import TRANSFORMS, read_all
from gateway.model.query import Operator
from gateway.wire.fhirjson import FhirRecord

EXACT, LIST, RANGE, WILDCARD = Operator.EXACT, Operator.LIST, Operator.RANGE, Operator.WILDCARD


@pytest.mark.parametrize(
    ("name", "native", "expected"),
    [
        ("strip_urn_oid", "urn:oid:1.2.3", "1.2.3"),
        ("strip_urn_oid", "1.2.3", "1.2.3"),
        ("dicom_date", "2026-07-19T12:03:30+02:00", "20260719"),
        ("dicom_date", "1961-05-04", "19610504"),
        ("dicom_date", "1961-05", None),
        ("dicom_date", "rubbish", None),
        ("dicom_time", "2026-07-19T12:03:30+02:00", "120330"),
        ("dicom_time", "2026-07-19T12:03:30.1234567Z", "120330.123456"),
        ("dicom_time", "2026-07-19T12:03:30.000Z", "120330"),
        ("dicom_time", "2026-07-19", None),
        ("timezone_offset", "2026-07-19T12:03:30+02:00", "+0200"),
        ("timezone_offset", "2026-07-19T12:03:30-03:30", "-0330"),
        ("timezone_offset", "2026-07-19T12:03:30Z", "+0000"),
        ("timezone_offset", "2026-07-19", None),
        ("fhir_gender", "female", "F"),
        ("fhir_gender", "unknown", None),
        ("sct_body_part", "76752008", "BREAST"),
        ("sct_body_part", "71252005", "CERVIX"),
        ("sct_body_part", "0", None),
        ("sct_laterality", "7771000", "L"),
        ("upper", "mg", "MG"),
        ("strip_leading_zeros", "000120", "120"),
        ("strip_leading_zeros", "000", "0"),
    ],
)
def test_a_native_value_is_read_as_dicom_or_says_nothing(name: str, native: str, expected: str | None):
    assert read_all(name, [native]) == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("human_name", "expected"),
    [
        ({"family": "Lind", "given": ["Eva", "Maria", "Ann"], "prefix": ["Dr."]}, "Lind^Eva^Maria Ann^Dr."),
        ({"family": "Lind", "suffix": ["Jr."]}, "Lind^^^^Jr."),
        ({"given": ["Eva"]}, "^Eva"),
        ({"family": "A^B=C"}, "A B C"),
        ({"text": "Eva Lind"}, "Eva Lind"),
        ({"use": "official"}, None),
        ("Dr. Nora Lind", "Dr. Nora Lind"),
    ],
)
def test_a_human_name_is_read_as_a_person_name(human_name, expected: str | None):
    assert TRANSFORMS["fhir_human_name"].read_record(FhirRecord(human_name)) == expected


REPRESENTATION = "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"


def written(family: str, code: str) -> dict:
    return {"family": family, "extension": [{"url": REPRESENTATION, "valueCode": code}]}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([{"family": "Old"}, {"use": "official", "family": "New"}], "New"),
        ([{"family": "First"}, {"family": "Second"}], "First"),
        (
            [{"use": "maiden", "family": "Born"}, {"use": "old", "family": "Old"}, {"use": "usual", "family": "New"}],
            "New",
        ),
        ([{"use": "old", "family": "Old"}], "Old"),
        ([written("Yamada", "ABC"), written("山田", "IDE"), written("やまだ", "SYL")], "Yamada=山田=やまだ"),
        ([written("山田", "IDE")], "=山田"),
        ([], None),
    ],
)
def test_a_patients_name_is_the_official_one_in_all_its_groups(names, expected: str | None):
    assert TRANSFORMS["fhir_patient_name"].read_record(FhirRecord({"name": names})) == expected


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("strip_urn_oid", (LIST, ("1.2", "1.3")), (LIST, ("urn:oid:1.2", "urn:oid:1.3"))),
        ("dicom_date", (RANGE, ("", "20260131")), (RANGE, ("", "2026-01-31"))),
        ("dicom_date", (EXACT, ("2026",)), None),
        ("fhir_gender", (EXACT, ("F",)), (EXACT, ("female",))),
        ("fhir_gender", (EXACT, ("X",)), None),
        ("fhir_gender", (WILDCARD, ("*",)), None),
        ("sct_body_part", (EXACT, ("CHEST",)), (LIST, ("51185008", "816094009", "43799004"))),
        ("fhir_human_name", (EXACT, ("Müller^Jörg",)), (WILDCARD, ("Müller*",))),
        ("fhir_human_name", (WILDCARD, ("M?ller*",)), (WILDCARD, ("M*",))),
        ("fhir_human_name", (WILDCARD, ("*ller",)), None),
        ("fhir_human_name", (EXACT, ("=山田",)), None),
    ],
)
def test_a_key_goes_back_as_the_native_key_or_not_at_all(name: str, asked, expected):
    assert TRANSFORMS[name].ask(*asked) == expected


@given(st.dates().map(lambda day: day.strftime("%4Y%m%d")))
def test_a_date_comes_back_from_fhir_as_it_went(day: str):
    operator, values = TRANSFORMS["dicom_date"].ask(EXACT, (day,))
    assert operator is EXACT
    assert read_all("dicom_date", values) == [day]


@pytest.mark.parametrize("name", ["fhir_gender", "sct_body_part", "sct_laterality"])
def test_every_term_of_a_table_is_found_under_each_of_its_concepts(name: str):
    transform = TRANSFORMS[name]
    for term in ("M", "F", "O", "BREAST", "COLON", "CERVIX", "CHEST", "L", "R", "B", "U"):
        asked = transform.ask(EXACT, (term,))
        if asked:
            assert read_all(name, asked[1]) == [term] * len(asked[1])


@given(st.text(max_size=30))
def test_no_text_makes_a_transform_fail(text: str):
    for name, transform in TRANSFORMS.items():
        if transform.read:
            assert all(isinstance(made, str) for made in read_all(name, [text]))
        if transform.ask:
            transform.ask(EXACT, (text,))
