"""Samples are read from where the attributes say that they are, and not at all where the frame itself says something else."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from gateway.imaging.frame import CannotDecode, decode, encode
from gateway.imaging.tones import shown

NATIVE = str(ExplicitVRLittleEndian)
SIDE = 64
NUMBERS = {
    "samples": "00280002", "rows": "00280010", "columns": "00280011", "allocated": "00280100", "stored": "00280101",
    "high": "00280102", "sign": "00280103", "planar": "00280006",
}  # fmt: skip


def attributes(kind: str = "MONOCHROME2", **changes: int) -> dict[str, Any]:
    bits = {"allocated": 8, "stored": 8, "high": 7} if "stored" not in changes else {}
    numbers = {"samples": 1, "rows": SIDE, "columns": SIDE, "sign": 0, **bits, **changes}
    if numbers["samples"] > 1:
        numbers.setdefault("planar", 0)
    found: dict[str, Any] = {NUMBERS[name]: {"vr": "US", "Value": [number]} for name, number in numbers.items()}
    return found | {"00280004": {"vr": "CS", "Value": [kind]}}


GREY = attributes()
COLOUR = attributes("RGB", samples=3)


def compressed(told: dict[str, Any], syntax: str) -> bytes:
    samples = told[NUMBERS["samples"]]["Value"][0]
    pixels = bytes(at % 251 for at in range(SIDE * SIDE * samples))
    return encode(decode(told, NATIVE, pixels, as_rgb=False), syntax)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGBaseline8Bit], ids=lambda uid: uid.name)
@pytest.mark.parametrize(
    ("own", "told"),
    [
        (GREY, attributes(rows=SIDE // 2, columns=SIDE // 2)),
        (GREY, attributes(rows=SIDE // 2, columns=SIDE * 2)),
        (GREY, attributes(rows=SIDE // 2, allocated=16, stored=16, high=15)),
        (COLOUR, GREY),
    ],
    ids=["smaller", "of another shape", "of more bits", "without colour"],
)
def test_a_frame_of_another_size_than_its_attributes_say_is_refused(
    syntax: str, own: dict[str, Any], told: dict[str, Any]
) -> None:
    frame = compressed(own, syntax)
    assert decode(own, syntax, frame).pixels.shape[:2] == (SIDE, SIDE)
    with pytest.raises(CannotDecode):
        decode(told, syntax, frame)


@pytest.mark.parametrize("sign", [0, 1])
def test_samples_in_the_high_bits_of_their_words_are_read_from_there(sign: int) -> None:
    told = attributes(rows=2, columns=2, allocated=16, stored=12, high=15, sign=sign)
    words = numpy.array([0, 0x0010, 0x7FF0, 0xFFF3], "<u2").tobytes()
    assert decode(told, NATIVE, words).pixels.ravel().tolist() == [0, 1, 0x7FF, -1 if sign else 0xFFF]


def test_samples_in_the_high_bits_of_compressed_words_are_refused() -> None:
    words = attributes(allocated=16, stored=16, high=15)
    frame = encode(decode(words, NATIVE, bytes(SIDE * SIDE * 2), as_rgb=False), RLELossless)
    with pytest.raises(CannotDecode):
        decode(attributes(allocated=16, stored=12, high=15), RLELossless, frame)


@pytest.mark.parametrize(("byte", "grey"), [(0x00, 0), (0xFF, 255)])
def test_a_frame_of_single_bits_that_are_all_alike_is_black_or_white(byte: int, grey: int) -> None:
    told = attributes(rows=4, columns=4, allocated=1, stored=1, high=0)
    assert set(shown(decode(told, NATIVE, bytes([byte]) * 2), None).ravel().tolist()) == {grey}


@pytest.mark.parametrize("kind", ["RGB", "YBR_FULL"])
def test_a_frame_made_into_jpeg_has_the_colours_that_it_had(kind: str) -> None:
    told = attributes(kind, samples=3)
    pixels = bytes([100, 90, 200]) * (SIDE * SIDE)
    wanted = decode(told, NATIVE, pixels).pixels
    frame = encode(decode(told, NATIVE, pixels, as_rgb=False), JPEGBaseline8Bit)
    seen = numpy.asarray(Image.open(BytesIO(frame)))
    assert numpy.abs(seen.astype(int) - wanted).max() <= 3


def test_a_frame_of_single_bits_is_not_made_into_jpeg() -> None:
    told = attributes(allocated=1, stored=1, high=0)
    with pytest.raises(CannotDecode):
        encode(decode(told, NATIVE, bytes(SIDE * SIDE // 8), as_rgb=False), JPEGBaseline8Bit)


@pytest.mark.parametrize(("kind", "padding"), [("SS", -2000), ("US", 63536)])
def test_padding_is_no_value_to_be_shown_though_it_is_told_without_its_sign(kind: str, padding: int) -> None:
    told = attributes(rows=1, columns=4, allocated=16, stored=16, high=15, sign=1)
    told["00280120"] = {"vr": kind, "Value": [padding]}
    samples = numpy.array([-2000, 0, 100, 200], "<i2").tobytes()
    assert shown(decode(told, NATIVE, samples), None).ravel().tolist() == [0, 0, 128, 255]


@pytest.mark.parametrize(("kind", "first"), [("SS", -2), ("US", 65534)])
def test_a_voi_table_that_begins_below_zero_does_so_though_it_is_told_without_its_sign(kind: str, first: int) -> None:
    table = {
        "00283002": {"vr": kind, "Value": [4, first, 8]},
        "00283006": {"vr": "US", "Value": [10, 100, 200, 250]},
    }
    told = attributes(rows=1, columns=4, allocated=16, stored=16, high=15)
    told |= {"00281052": {"vr": "DS", "Value": [-2]}, "00281053": {"vr": "DS", "Value": [1]}}
    told["00283010"] = {"vr": "SQ", "Value": [table]}
    samples = numpy.arange(4, dtype="<u2").tobytes()
    assert shown(decode(told, NATIVE, samples), None).ravel().tolist() == [10, 100, 200, 250]
