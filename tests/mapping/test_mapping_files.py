"""Mapping files are refused unless every key is known and every example holds; the shipped ones are proved here."""

import re
import tomllib
from pathlib import Path

import pytest

from gateway.errors import InvalidMapping
from gateway.mapping.load import check, load, load_all, shipped
from gateway.mapping.transforms import TRANSFORMS

README = shipped() / "README.md"
FORMATS = ["dicom", "dicom-greek", "dicom-latin2-pl", "fhir-r4", "fhir-r5", "fhir-stu3", "mii-bildgebung"]

PLAIN = """
format = "x"
title = "X"
protocol = "dicom"
[[example]]
given = { StudyInstanceUID = "1.2", StudyID = "A-7" }
expect = { study = { StudyID = "A-7" } }
"""
FHIR = """
format = "x"
title = "X"
protocol = "fhir"
versions = ["R4"]
[study]
StudyInstanceUID = { path = "identifier.value" }
[[example]]
given = '{"resourceType": "ImagingStudy", "identifier": [{"value": "1.2"}]}'
expect = { study = { StudyInstanceUID = "1.2" } }
"""


@pytest.mark.parametrize("file", sorted(shipped().glob("*.toml")), ids=lambda file: file.stem)
def test_every_shipped_mapping_proves_itself_and_bears_its_files_name(file: Path):
    assert check(file) == []
    assert load(file).format == file.stem


def test_the_shipped_formats_are_all_found_and_all_listed_in_the_readme():
    assert sorted(load_all()) == FORMATS
    listed = re.findall(r"^\| `([a-z0-9-]+)\.toml`", README.read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == FORMATS


def test_every_transform_is_documented_and_no_other():
    section = README.read_text("utf-8").split("## Transforms")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(TRANSFORMS)


def test_every_transform_without_a_way_back_says_so_in_the_readme():
    section = README.read_text("utf-8").split("## Transforms")[1].split("\n## ")[0]
    one_way = set(re.findall(r"^\| `(\w+)` \|.*\| no \|$", section, re.MULTILINE))
    assert one_way == {name for name, transform in TRANSFORMS.items() if transform.ask is None}


def test_the_whole_file_in_the_readme_is_a_good_mapping(mapping):
    text = re.search(r"```toml\n(.*?)```", README.read_text("utf-8"), re.DOTALL).group(1)
    assert mapping(text).format == "clinic-example"


@pytest.mark.parametrize("text", [PLAIN, FHIR])
def test_the_smallest_files_are_good(mapping, text: str):
    assert mapping(text).format == "x"


@pytest.mark.parametrize(
    ("text", "change", "to", "key"),
    [
        (PLAIN, 'title = "X"', 'title = "X"\ncountry = "NO"', "country: unknown key"),
        (PLAIN, 'protocol = "dicom"', 'protocol = "dicom"\n[study.StudyID]\npth = "StudyID"', "study.StudyID.pth: unknown key"),
        (PLAIN, 'protocol = "dicom"', 'protocol = "dicom"\n[[issuers]]\nissuer = "A"\nurl = ""', "issuers.0.url: unknown key"),
        (PLAIN, 'title = "X"\n', "", "title: is missing"),
        (PLAIN, 'format = "x"', 'format = "X Y"', "format: "),
        (PLAIN, '"dicom"', '"hl7v2"', "protocol: "),
        (PLAIN, 'title = "X"', 'title = "X"\ntime_zone = "Europe/Nowhere"', "time_zone: "),
        (PLAIN, 'title = "X"', 'title = "X"\ncharacter_set = "KLINGON"', "character_set: "),
        (PLAIN, 'title = "X"', 'title = "X"\nversions = ["R4"]', "versions"),
        (PLAIN, 'protocol = "dicom"', 'protocol = "dicom"\n[study.StudyNumber]\nfixed = "1"', "'StudyNumber' is not a DICOM keyword"),
        (PLAIN, 'protocol = "dicom"', 'protocol = "dicom"\n[study.StudyID]\npath = "Nothing"', "study.StudyID.path"),
        (PLAIN, 'protocol = "dicom"', 'protocol = "dicom"\n[study.StudyID]\ncodes = "none"', "study.StudyID.codes"),
        (PLAIN, 'protocol = "dicom"', 'protocol = "dicom"\n[study.StudyID]\nusing = "magic"', "study.StudyID.using"),
        (PLAIN, 'protocol = "dicom"', 'protocol = "dicom"\n[study.StudyID]\nfixed = "1"\npath = "StudyID"', "study.StudyID: 'fixed' stands alone"),
        (PLAIN, 'protocol = "dicom"', 'protocol = "dicom"\n[study.StudyID]\nitem = {}', "study.StudyID: 'item' is for sequences"),
        (PLAIN, '"A-7" } }', '"A-8" } }', "example.0.expect.study.StudyID: expected 'A-8', got 'A-7'"),
        (PLAIN, 'study = { StudyID = "A-7" }', 'study = { StudyNo = "A-7" }', "StudyNo"),
        (PLAIN, 'StudyInstanceUID = "1.2", ', "", "example.0: a STUDY record has no StudyInstanceUID"),
        (PLAIN, 'given = { StudyInstanceUID = "1.2", StudyID = "A-7" }', 'given = "[1]"', "example.0: "),
        (FHIR, 'versions = ["R4"]\n', "", "versions"),
        (FHIR, "identifier.value", "identifier.where(", "study.StudyInstanceUID.path"),
        (FHIR, "identifier.value", "identifier.foo()", "example.0"),
        (FHIR, '{ path = "identifier.value" }', "{}", "study.StudyInstanceUID: needs"),
        (FHIR, '"1.2" } }', '"1.3" } }', "expected '1.3', got '1.2'"),
        (FHIR, 'expect = { study = { StudyInstanceUID = "1.2" } }', "expect = { series = [{}] }", "expected 1"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_file_and_key(tmp_path: Path, text: str, change: str, to: str, key: str):
    assert change in text
    file = tmp_path / "wrong.toml"
    file.write_text(text.replace(change, to))
    with pytest.raises(InvalidMapping) as caught:
        load(file)
    assert str(file) in caught.value.detail
    assert key in caught.value.detail
    assert any(key in problem for problem in check(file))


def test_a_mapping_without_an_example_is_refused(tmp_path: Path):
    file = tmp_path / "x.toml"
    file.write_text(PLAIN.split("[[example]]")[0])
    assert check(file) == ["example: is missing"]


def test_a_wrong_search_in_an_example_shows_what_came_instead(tmp_path: Path):
    file = tmp_path / "x.toml"
    file.write_text(PLAIN + '[[example.ask]]\nquery = { StudyID = "1" }\nexpect = { AccessionNumber = "1" }\n')
    assert check(file) == ["example.0.ask.0.expect: expected {'AccessionNumber': '1'}, got {'StudyID': '1'}"]


@pytest.mark.parametrize("content", [b"format = ", b"\xff\xfe", b""])
def test_what_is_no_toml_is_refused(tmp_path: Path, content: bytes):
    file = tmp_path / "x.toml"
    file.write_bytes(content)
    assert check(file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    assert check(tmp_path / "none.toml") == ["cannot be read"]


def test_a_directory_of_ones_own_adds_formats_but_may_not_give_one_twice(tmp_path: Path):
    (tmp_path / "x.toml").write_text(PLAIN)
    assert sorted(load_all([tmp_path])) == sorted([*FORMATS, "x"])
    (tmp_path / "y.toml").write_text(PLAIN)
    with pytest.raises(InvalidMapping, match=r"y\.toml.*x\.toml"):
        load_all([tmp_path])


def test_a_changed_file_has_another_digest(mapping):
    assert mapping(PLAIN).digest != mapping(PLAIN + "\n# changed\n").digest


def test_no_shipped_example_has_uids_of_a_real_organisation():
    for file in shipped().glob("*.toml"):
        text = str(tomllib.loads(file.read_text("utf-8"))["example"])
        uids = set(re.findall(r"\b(?:\d+\.){2,}\d+\b", text)) - set(re.findall(r"1\.2\.840\.10008[\d.]*", text))
        assert all(
            uid.startswith(("2.25.", "2.999.")) or uid in file.read_text("utf-8").split("[[example]]")[0]
            for uid in uids
        )
