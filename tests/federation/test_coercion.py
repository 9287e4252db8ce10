"""What is changed on the way in is recorded, and every other byte stays, in whatever way the instance is written."""

from __future__ import annotations

from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from gateway.federation.coercion import as_it_is, unchanged, with_issuer
from gateway.wire.part10 import AFTER_UIDS, identify, open_part10
from tests.sending import encoded, instance

SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


async def chunks(content: bytes, size: int = 700):
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def coerced(content: bytes, coerce) -> bytes | None:
    stream = await open_part10(chunks(content), until=AFTER_UIDS)
    changed = coerce(stream, identify(stream))
    return None if changed is None else b"".join([chunk async for chunk in changed])


def earlier() -> dict[str, object]:
    """A change that somebody made before."""
    item = Dataset()
    item.ModifyingSystem, item.ReasonForTheAttributeModification = "PACS", "CORRECT"
    return {"OriginalAttributesSequence": [item]}


@pytest.mark.parametrize("syntax", SYNTAXES)
async def test_the_issuer_is_set_and_everything_else_stays(syntax: str) -> None:
    raw = encoded(instance(syntax=syntax))
    original, changed = dcmread(BytesIO(raw)), dcmread(BytesIO(await coerced(raw, with_issuer("HOSPITAL"))))
    assert changed.file_meta == original.file_meta
    assert changed.IssuerOfPatientID == "HOSPITAL"
    [item] = changed.OriginalAttributesSequence
    assert (item.ModifyingSystem, item.ReasonForTheAttributeModification) == ("IMAGING-GATEWAY", "COERCE")
    del changed.IssuerOfPatientID, changed.OriginalAttributesSequence
    assert list(changed) == list(original)


async def test_the_bytes_before_between_and_behind_are_the_same() -> None:
    raw = encoded(instance())
    changed = await coerced(raw, with_issuer("HOSPITAL"))
    issuer = changed.index(b"\x10\0\x21\0LO")
    assert changed[:issuer] == raw[:issuer]
    record = changed.index(b"\0\4\x61\5SQ")
    assert changed[issuer + 16 : record] == raw[issuer : issuer + record - issuer - 16]
    assert changed[-44:] == raw[-44:]


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
async def test_earlier_changes_stay_on_record(syntax: str, undefined: bool) -> None:
    made = instance(syntax=syntax, **earlier())
    made["OriginalAttributesSequence"].is_undefined_length = undefined
    changed = dcmread(BytesIO(await coerced(encoded(made), with_issuer("HOSPITAL"))))
    assert [item.ModifyingSystem for item in changed.OriginalAttributesSequence] == ["PACS", "IMAGING-GATEWAY"]
    assert changed.PixelData == dcmread(BytesIO(encoded(made))).PixelData


async def test_an_issuer_that_is_there_but_empty_is_filled() -> None:
    made = instance()
    made.IssuerOfPatientID = ""
    changed = dcmread(BytesIO(await coerced(encoded(made), with_issuer("HOSPITAL"))))
    assert changed.IssuerOfPatientID == "HOSPITAL"
    assert [element.tag for element in changed].count(0x00100021) == 1


async def test_who_names_an_issuer_in_any_way_is_left_alone() -> None:
    qualifiers = Dataset()
    qualifiers.UniversalEntityID, qualifiers.UniversalEntityIDType = "1.2.246", "ISO"
    for made in (instance(issuer="OTHER"), instance(IssuerOfPatientIDQualifiersSequence=[qualifiers])):
        assert await coerced(encoded(made), with_issuer("HOSPITAL")) is None
    assert await coerced(encoded(instance()), as_it_is) is None


@pytest.mark.parametrize("syntax", SYNTAXES)
async def test_a_file_without_preamble_keeps_its_data_set(syntax: str) -> None:
    raw = encoded(instance(syntax=syntax))
    stream = await open_part10(chunks(raw[132:]), until=AFTER_UIDS)
    whole = b"".join([chunk async for chunk in unchanged(stream, identify(stream))])
    read, original = dcmread(BytesIO(whole)), dcmread(BytesIO(raw))
    assert read.file_meta.TransferSyntaxUID == syntax
    assert list(read) == list(original)
    if syntax != DeflatedExplicitVRLittleEndian:
        at = raw.index(b"\x08\0\x16\0") if syntax != ExplicitVRBigEndian else raw.index(b"\0\x08\0\x16")
        assert whole.endswith(raw[at:])
