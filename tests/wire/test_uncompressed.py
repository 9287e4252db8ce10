"""Uncompressed files written in Implicit or Explicit VR Little Endian say what they said before."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_files
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from gateway.wire.elements import Part10Error
from gateway.wire.part10 import open_part10
from gateway.wire.uncompressed import TARGETS, UNCOMPRESSED, implicit_little_endian, written_as
from tests.sending import encoded, instance

BROKEN = ("MR_truncated.dcm", "rtplan_truncated.dcm", "badVR.dcm")


def plain_files() -> list[Path]:
    found = []
    for name in sorted(get_testdata_files("*.dcm")):
        try:
            read = dcmread(name)
            list(read.iterall())
        except Exception:  # noqa: BLE001 - files that pydicom keeps to be broken
            continue
        if (
            Path(name).name not in BROKEN
            and read.file_meta.get("TransferSyntaxUID") in UNCOMPRESSED
            and "SOPInstanceUID" in read
        ):
            found.append(Path(name))
    return found


FILES = plain_files()


async def chunks(content: bytes, size: int = 5000):
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def written(content: bytes, syntax: str) -> bytes:
    return b"".join([chunk async for chunk in written_as(await open_part10(chunks(content)), syntax)])


def described(dataset: Dataset) -> list[object]:
    """Every element's tag and value; VRs of private elements are lost in Implicit VR."""
    return [
        (element.tag, described_items(element) if element.VR == "SQ" else text_of(element))
        for element in dataset
        if element.tag.element
    ]


def described_items(element) -> list[object]:
    return [described(item) for item in element.value]


def text_of(element) -> object:
    value = element.value
    return bytes(value) if isinstance(value, bytes) else str(value)


def test_there_are_files_of_every_uncompressed_syntax():
    assert {str(dcmread(path).file_meta.TransferSyntaxUID) for path in FILES} == UNCOMPRESSED
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
async def test_a_file_says_the_same_in_either_syntax(path: Path):
    original = dcmread(path)
    for syntax in TARGETS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            changed = dcmread(BytesIO(await written(path.read_bytes(), syntax)))
        assert changed.file_meta.TransferSyntaxUID == syntax
        assert [tag for tag, _ in described(changed)] == [tag for tag, _ in described(original)]
        if "PixelData" in original and "Rows" in original and original.get("BitsAllocated", 1) >= 8:
            assert (changed.pixel_array == original.pixel_array).all()
        for (tag, value), (_, wanted) in zip(described(changed), described(original), strict=True):
            is_public = not tag.is_private and tag.group != 0x7FE0
            assert value == wanted or not is_public or isinstance(value, bytes) or isinstance(wanted, bytes), tag


async def test_there_and_back_is_the_same_file():
    one = encoded(instance())
    implicit = await written(one, ImplicitVRLittleEndian)
    back = await written(implicit, ExplicitVRLittleEndian)
    assert back == await written(one, ExplicitVRLittleEndian)
    assert back[-200:] == one[-200:]


def test_nested_sequences_of_both_kinds_of_length():
    inner, outer = Dataset(), Dataset()
    inner.CodeValue = "1"
    outer.PatientID = "P"
    outer.ConceptNameCodeSequence = [inner, Dataset()]
    outer["ConceptNameCodeSequence"].is_undefined_length = True
    made = instance(ReferencedStudySequence=[outer, outer])
    raw = encoded(made)
    head = raw[raw.index(b"\x08\0\x16\0") :]
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    from pydicom.filereader import read_dataset

    again = read_dataset(BytesIO(implicit_little_endian(head)), True, True)
    assert list(again) == list(made)


@pytest.mark.parametrize("cut", [3, 9, 40])
async def test_a_file_that_is_cut_off_is_refused(cut: int):
    with pytest.raises(Part10Error):
        await written(encoded(instance())[:-cut], ImplicitVRLittleEndian)
