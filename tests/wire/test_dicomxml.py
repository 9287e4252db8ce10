"""The Native DICOM Model: what is written is read by readers that nobody here wrote, and nothing is lost on the way."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom.data import get_charset_files, get_testdata_file

from gateway.model.dataset import NUMERIC_VRS, PN_GROUPS, Dataset
from gateway.wire import dicomxml
from gateway.wire.dicomjson import to_json

COMPONENTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")


def read(document: bytes) -> Dataset:
    """A reader of the schema of PS3.19 A.1.6, which knows nothing of the writer."""
    root = ElementTree.fromstring(document)
    assert root.tag == "NativeDicomModel"
    assert root.get("{http://www.w3.org/XML/1998/namespace}space") == "preserve"
    return read_attributes(root)


def read_attributes(parent: ElementTree.Element) -> Dataset:
    found: Dataset = {}
    for element in parent:
        assert element.tag == "DicomAttribute"
        tag, creator = element.attrib["tag"], element.get("privateCreator")
        if creator is not None:
            assert tag[4:6] == "00"
            (block,) = [t[6:] for t, a in found.items() if t[:6] == tag[:4] + "00" and a.get("Value") == [creator]]
            tag = tag[:4] + block + tag[6:]
        assert tag not in found
        found[tag] = read_content(element)
    return found


def read_content(element: ElementTree.Element) -> dict[str, Any]:
    vr, values = element.attrib["vr"], []
    for number, child in enumerate(element, 1):
        if child.tag == "BulkData":
            return {"vr": vr, "BulkDataURI": child.get("uri") or child.attrib["uuid"]}
        if child.tag == "InlineBinary":
            return {"vr": vr, "InlineBinary": child.text or ""}
        assert child.attrib["number"] == str(number)
        values.append(READERS[child.tag](child, vr))
    return {"vr": vr, "Value": values} if values else {"vr": vr}


def read_value(element: ElementTree.Element, vr: str) -> Any:
    text = element.text or ""
    if vr in NUMERIC_VRS and re.fullmatch(r"-?\d+", text):
        return int(text)
    return float(text) if vr in NUMERIC_VRS and text else text or None


def read_name(element: ElementTree.Element, _: str) -> Any:
    groups = {}
    for group in element:
        parts = {part.tag: part.text or "" for part in group}
        last = max(COMPONENTS.index(name) for name in parts)
        groups[group.tag] = "^".join(parts.get(name, "") for name in COMPONENTS[: last + 1])
    return groups or None


READERS = {"Value": read_value, "PersonName": read_name, "Item": lambda element, _: read_attributes(element)}

_texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.sampled_from("\t\n\r&<>\"'"), min_size=1
)
_possible = _texts.filter(lambda text: not re.search("[\ufffe\uffff]", text))
_group = _possible.filter(lambda text: "=" not in text)
_names = st.dictionaries(st.sampled_from(PN_GROUPS), _group, min_size=1)
_numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)


def _valued(vr: str, value: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    several = st.lists(value | st.none(), min_size=1, max_size=3)
    return st.builds(lambda values: {"vr": vr, "Value": values}, several) | st.just({"vr": vr})


_leaves = st.one_of(
    _valued("LO", _possible),
    _valued("UT", _possible),
    _valued("PN", _names),
    _valued("DS", _numbers),
    _valued("US", st.integers(0, 65535)),
    st.builds(lambda uri: {"vr": "OW", "BulkDataURI": uri}, _possible),
    st.binary(min_size=1).map(lambda data: {"vr": "OB", "InlineBinary": base64.b64encode(data).decode()}),
)
_tags = st.builds("{:04X}{:04X}".format, st.integers(4, 0x7FFF).map(lambda group: group * 2), st.integers(1, 0xFFFF))


def _with_private(dataset: Dataset, creator: str, attribute: dict[str, Any]) -> Dataset:
    return {**dataset, "00090011": {"vr": "LO", "Value": [creator]}, "00091102": attribute}


_creators = st.text("ABC 1", min_size=1).filter(lambda text: text == text.strip())


def _datasets(attributes: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Dataset]:
    plain = st.dictionaries(_tags, attributes, max_size=4)
    return plain | st.builds(_with_private, plain, _creators, attributes)


_trees = st.recursive(
    _leaves,
    lambda inner: st.lists(_datasets(inner), min_size=1, max_size=3).map(lambda i: {"vr": "SQ", "Value": i}),
    max_leaves=12,
)


@given(_datasets(_trees))
@example({"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Novák^Jan^^", "Ideographic": "私^^^^x^y"}]}})
@example({"00204000": {"vr": "LT", "Value": ['a\r\n<b> & "c"\td']}})
@example({"00081140": {"vr": "SQ", "Value": [{}]}, "00200032": {"vr": "DS", "Value": [1, None, 1e-7]}})
def test_what_is_written_is_read_back_the_same(dataset: Dataset) -> None:
    assert read(dicomxml.write(dataset)) == dataset


def test_what_xml_cannot_hold_is_replaced_and_the_document_stays_well_formed() -> None:
    written = dicomxml.write({"00204000": {"vr": "LT", "Value": ["a\x1bb\x0cc\ud800d\ufffe"]}})
    assert read(written)["00204000"]["Value"] == ["a\ufffdb\ufffdc\ufffdd\ufffd"]


def test_group_lengths_are_left_out_and_keywords_are_given() -> None:
    written = dicomxml.write({"00080000": {"vr": "UL", "Value": [8]}, "00100020": {"vr": "LO", "Value": ["1"]}})
    (only,) = ElementTree.fromstring(written)
    assert only.attrib == {"tag": "00100020", "vr": "LO", "keyword": "PatientID"}


FILES = ("CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "reportsi.dcm", "chrRuss.dcm", "chrGreek.dcm")


def located(name: str) -> Path:
    found = get_testdata_file(name) or next(iter(get_charset_files(name)))
    return Path(str(found))


@pytest.mark.parametrize("name", FILES)
def test_it_is_what_dcmtk_makes_of_the_same_file(name: str, tmp_path: Path) -> None:
    """DCMTK writes binary values as bulk data and pads nothing; apart from these, attribute by attribute."""
    tool = shutil.which("dcm2xml")
    if tool is None:
        pytest.skip("dcm2xml (DCMTK) is not installed")
    file = located(name)
    asked = [tool, "--native-format", "--convert-to-utf8", str(file)]
    theirs = read(subprocess.run(asked, check=True, capture_output=True).stdout)
    ours = read(dicomxml.write(to_json(pydicom.dcmread(file))))
    assert comparable(ours) == comparable(theirs)


def comparable(dataset: Dataset) -> Dataset:
    """Without what the two may differ in: the way of binary values, padding, the digits of a float, (0008,0005)."""
    kept: Dataset = {}
    for tag, attribute in dataset.items():
        if tag in ("00080005", "FFFCFFFC"):
            continue
        if attribute["vr"] in ("OB", "OW", "UN", "OF", "OD"):
            kept[tag] = {"vr": "binary"}
        else:
            values = [plain(value) for value in attribute.get("Value", [])]
            kept[tag] = {"vr": attribute["vr"], "Value": [value for value in values if value]}
    return kept


def plain(value: Any) -> Any:
    if isinstance(value, dict) and not set(value) & set(PN_GROUPS):
        return comparable(value)
    if isinstance(value, dict):
        return {group: text.rstrip("^ ") for group, text in value.items() if text.rstrip("^ ")}
    if isinstance(value, float | int):
        return f"{float(value):.5e}"
    return value.strip(" ") or None if isinstance(value, str) else value
