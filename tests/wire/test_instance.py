"""Frames and long values are found where pydicom finds them, without reading the file."""

import contextlib
import io
import struct
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import encaps
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from gateway.wire.dicomjson import to_json
from gateway.wire.filemeta import file_meta
from gateway.wire.frames import frame_media_type
from gateway.wire.instance import Part10Error, iter_chunks, metadata, open_instance

DATA = Path(pydicom.__file__).parent / "data"
FILES = sorted(p for d in ("test_files", "charset_files") for p in (DATA / d).rglob("*") if p.is_file())
NO_DICOM = {
    "FileInfo.txt", "README.txt", "README", "crayons.icc", "no_meta.dcm", "rtplan.dump", "rtstruct.dump", "test1.json",
    "test_PN.json", "zipMR.gz",
}  # fmt: skip
TRUNCATED = {"MR_truncated.dcm", "rtplan_truncated.dcm"}
# Their pixel data is a stub, or they lack Rows and Columns.
WITHOUT_FRAMES = {"meta_missing_tsyntax.dcm", "nested_priv_SQ.dcm"}
warnings.filterwarnings("ignore", module="pydicom")


def file(name):
    return next(p for p in FILES if p.name == name)


def written(dataset, syntax, **elements):
    """A DICOM file of this data set, in memory."""
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return io.BytesIO(out.getvalue())


def image(rows, columns, frames, bits=8, samples=1):
    dataset = Dataset()
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = rows, columns, frames
    dataset.BitsAllocated, dataset.SamplesPerPixel, dataset.PixelRepresentation = bits, samples, 0
    return dataset


def frame(instance, number):
    return b"".join(iter_chunks(instance.source, instance.frames.locate(number)))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_file_of_pydicom_is_described_and_its_frames_are_those_of_pydicom(path):
    if path.name in NO_DICOM:
        with pytest.raises(Part10Error):
            open_instance(path)
        return
    reference = pydicom.dcmread(path, force=True)
    with open_instance(path) as instance:
        assert instance.is_complete() == (path.name not in TRUNCATED)
        assert instance.metadata(str) == to_json(pydicom.dcmread(path, force=True), bulk=str)
        if instance.pixels is None or path.name in TRUNCATED:
            return
        if path.name in WITHOUT_FRAMES:
            with pytest.raises(Part10Error):
                instance.frames  # noqa: B018
            return
        found = [frame(instance, number) for number in range(1, instance.frames.count + 1)]
        sizes = [instance.frames.locate(number).size for number in range(1, instance.frames.count + 1)]
        assert [len(one) for one in found] == sizes
        expected = expected_frames(reference, instance)
        assert expected is None or found == expected


def expected_frames(reference, instance):
    value = reference[int(instance.pixels.tag, 16)].value
    declared = str(reference.get("NumberOfFrames", "") or "1")
    number = int(declared) if declared.isdigit() else 1
    if instance.pixels.is_encapsulated:
        return [encaps.get_frame(value, index, number_of_frames=number) for index in range(number)]
    if reference.original_encoding[1] is False:
        if reference.BitsAllocated == 1 or reference.get("PlanarConfiguration") == 1:
            return None  # pydicom rearranges these pixels
        pixels = reference.pixel_array
        value = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    size = instance.frames.locate(1).size
    return [value[index * size : (index + 1) * size] for index in range(number)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 5),
    st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]), st.binary(min_size=1, max_size=8),
)  # fmt: skip
def test_frames_of_one_bit_per_pixel_are_packed_without_a_gap_and_come_out_aligned(rows, columns, frames, syntax, seed):
    pixels = np.random.default_rng(list(seed)).integers(0, 2, (frames, rows * columns), dtype=np.uint8)
    packed = np.packbits(pixels.ravel(), bitorder="little").tobytes()
    packed += b"\0" * (len(packed) % 2)
    if syntax == ExplicitVRBigEndian:
        packed = np.frombuffer(packed, "<u2").astype(">u2").tobytes()
    dataset = image(rows, columns, frames, bits=1)
    dataset.add_new(0x7FE00010, "OW", packed)
    with open_instance(written(dataset, syntax)) as instance:
        assert instance.frames.count == frames
        for number in range(frames):
            assert frame(instance, number + 1) == np.packbits(pixels[number], bitorder="little").tobytes()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.sampled_from([8, 16, 32]), st.sampled_from([1, 3]))
def test_big_endian_frames_come_out_little_endian(rows, columns, frames, bits, samples):
    size = rows * columns * samples
    pixels = np.arange(frames * size, dtype=f"u{bits // 8}") * 77
    value = pixels.astype(f">u{bits // 8}").tobytes()
    value += b"\0" * (len(value) % 2)
    if bits == 8:
        value = np.frombuffer(value, "<u2").astype(">u2").tobytes()
    dataset = image(rows, columns, frames, bits, samples)
    dataset.add_new(0x7FE00010, "OW", value)
    with open_instance(written(dataset, ExplicitVRBigEndian)) as instance:
        for number in range(frames):
            assert frame(instance, number + 1) == pixels[number * size : (number + 1) * size].tobytes()


FRAMES = [bytes([n]) * (100 + 2 * n) + b"\xff\xd9" for n in range(1, 6)]


def encapsulated(value, syntax=JPEG2000Lossless, frames=5, **elements):
    dataset = image(1, 1, frames)
    dataset.add_new(0x7FE00010, "OB", value)
    dataset["PixelData"].is_undefined_length = True
    return written(dataset, syntax, **elements)


@pytest.mark.parametrize("has_table", [True, False])
@pytest.mark.parametrize("fragments", [1, 3])
def test_frames_are_found_with_and_without_a_basic_offset_table(has_table, fragments):
    source = encapsulated(encaps.encapsulate(FRAMES, fragments_per_frame=fragments, has_bot=has_table))
    with open_instance(source) as instance:
        assert [frame(instance, number) for number in range(1, 6)] == FRAMES


def test_frames_are_found_by_the_extended_offset_table():
    value, offsets, lengths = encaps.encapsulate_extended(FRAMES)
    with open_instance(
        encapsulated(value, ExtendedOffsetTable=offsets, ExtendedOffsetTableLengths=lengths)
    ) as instance:
        assert [frame(instance, number) for number in range(1, 6)] == FRAMES


def test_a_nonsense_offset_table_is_ignored():
    value = bytearray(encaps.encapsulate(FRAMES))
    value[8 + 4 : 8 + 8] = (7).to_bytes(4, "little")
    with open_instance(encapsulated(bytes(value))) as instance:
        assert [frame(instance, number) for number in range(1, 6)] == FRAMES


def test_compressed_pixels_under_an_uncompressed_syntax_are_never_given_as_cells():
    """Of an archive that took them in the wrong presentation context: what they are compressed by is not known."""
    whole = encapsulated(encaps.encapsulate(FRAMES)).getvalue()
    elements = whole[whole.index(struct.pack("<HH2s", 0x0008, 0x0016, b"UI")) :]
    mislabelled = io.BytesIO(file_meta("1.2.3", "1.2.3", ExplicitVRLittleEndian) + elements)
    with open_instance(mislabelled) as instance:
        with pytest.raises(Part10Error, match="uncompressed"):
            _ = instance.frames
        with pytest.raises(Part10Error, match="uncompressed"):
            instance.bulk_value("7FE00010")


def test_boundaries_that_cannot_be_told_are_refused():
    value = encaps.encapsulate([f[:-2] for f in FRAMES], fragments_per_frame=2, has_bot=False)
    with open_instance(encapsulated(value)) as instance, pytest.raises(Part10Error, match="boundaries"):
        instance.frames  # noqa: B018


@pytest.mark.parametrize("where", ["basic", "extended", "fragments"])
def test_a_file_of_many_offsets_or_fragments_and_few_frames_takes_no_memory_for_them(where, monkeypatch):
    monkeypatch.setattr("gateway.wire.frames.MOST_FRAMES", 10_000)
    many, item = bytes(8_000_000), b"\xfe\xff\x00\xe0"
    table = many if where == "basic" else b""
    value = item + len(table).to_bytes(4, "little") + table + encaps.encapsulate(FRAMES[:1], has_bot=False)[8:]
    if where == "fragments":
        value += (item + bytes(4)) * 1_000_000
    source = encapsulated(value, frames=1, **({"ExtendedOffsetTable": many} if where == "extended" else {}))
    with open_instance(source) as instance:
        tracemalloc.start()
        with pytest.raises(Part10Error) if where == "fragments" else contextlib.nullcontext():
            assert frame(instance, 1) == FRAMES[0]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_video_is_one_stream():
    value = encaps.encapsulate([b"video" * 100], fragments_per_frame=4)
    with open_instance(encapsulated(value, "1.2.840.10008.1.2.4.102", frames=25)) as instance:
        assert (instance.frames.count, instance.frames.media_type) == (1, "video/mp4")
        assert frame(instance, 1) == b"video" * 100


class CountingFile(io.FileIO):
    read_bytes = 0

    def readinto(self, buffer):
        count = super().readinto(buffer)
        self.read_bytes += count
        return count


def large_file(path, frames=400):
    """A sparse file of 400 frames of 0.5 MB; in the last one every byte is 7."""
    dataset = image(512, 512, frames, bits=16)
    dataset.add_new(0x7FE00010, "OW", b"")
    head = written(dataset, ExplicitVRLittleEndian).getvalue()
    length = frames * 512 * 512 * 2
    with path.open("wb") as out:
        out.write(head[:-4] + length.to_bytes(4, "little"))
        out.truncate(len(head) + length)
        out.seek(len(head) + length - 512 * 512 * 2)
        out.write(b"\7" * 512 * 512 * 2)
    return path


def test_one_frame_of_a_large_file_is_read_by_a_seek(tmp_path):
    counting = CountingFile(large_file(tmp_path / "large.dcm"))
    stream = io.BufferedReader(counting)
    with open_instance(stream) as instance:
        assert instance.is_complete()
        assert frame(instance, 400) == b"\7" * 512 * 512 * 2
        assert 512 * 1024 <= counting.read_bytes < 1 << 20
        assert {len(chunk) for chunk in iter_chunks(instance.source, instance.bulk_value("7FE00010")[0].extent)} == {
            1 << 20
        }
        assert counting.read_bytes > 200 << 20, "the bulk data is the whole value"


def test_metadata_leaves_long_values_in_the_file_and_hands_out_their_paths():
    addresses = {}
    found = metadata(file("waveform_ecg.dcm"), lambda path: addresses.setdefault(path, f"x/{path}"))
    assert found["54000100"]["Value"][0]["54001010"] == {"vr": "OW", "BulkDataURI": "x/54000100.1.54001010"}
    reference = pydicom.dcmread(file("waveform_ecg.dcm"))
    with open_instance(file("waveform_ecg.dcm")) as instance:
        for number, item in enumerate(reference.WaveformSequence, 1):
            (part,) = instance.bulk_value(f"54000100.{number}.54001010")
            assert b"".join(iter_chunks(instance.source, part.extent)) == item.WaveformData


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if p.suffix == ".dcm" and p.name not in NO_DICOM | TRUNCATED | WITHOUT_FRAMES],
    ids=lambda p: p.name,
)
def test_every_address_that_metadata_hands_out_can_be_read(path):
    paths = []
    metadata(path, lambda path: paths.append(path) or path)
    with open_instance(path) as instance:
        for one in paths:
            for part in instance.bulk_value(one):
                assert sum(map(len, iter_chunks(instance.source, part.extent))) == part.extent.size > 0


@pytest.mark.parametrize("path", ["00100010.x", "", "99990000", "54000100.9.54001010", "7FE00010.1"])
def test_an_address_that_was_never_handed_out_is_a_lookup_error(path):
    with open_instance(file("rtplan.dcm")) as instance, pytest.raises(LookupError):
        instance.bulk_value(path)


def test_encapsulated_pixel_data_as_bulk_data_is_one_part_per_frame():
    with open_instance(file("SC_rgb_rle_2frame.dcm")) as instance:
        parts = instance.bulk_value("7FE00010")
        assert [(part.media_type, part.transfer_syntax) for part in parts] == [("image/dicom-rle", RLELossless)] * 2


def test_a_long_text_and_a_long_sequence_are_not_lost():
    item = Dataset()
    item.CodeMeaning = "m"
    dataset = image(1, 1, 1)
    dataset.add_new(0x00081032, "SQ", [item] * 20000)
    dataset.add_new(0x40000010, "LT", "t" * 70000)
    dataset.add_new(0x7FE00010, "OW", b"\0\0")
    source = written(dataset, ImplicitVRLittleEndian)
    with open_instance(source) as instance:
        found = instance.metadata(str)
        assert len(found["00081032"]["Value"]) == 20000
        assert found["40000010"] == {"vr": "LT", "BulkDataURI": "40000010"}
        (part,) = instance.bulk_value("40000010")
        assert b"".join(iter_chunks(source, part.extent)) == b"t" * 70000


@pytest.mark.parametrize("name", ["CT_small.dcm", "JPEG2000.dcm", "reportsi.dcm", "rtdose.dcm"])
def test_a_file_that_is_cut_off_is_noticed(name):
    whole = file(name).read_bytes().rstrip(b"\0")
    for kept in (len(whole) - 1, len(whole) - 7, len(whole) * 3 // 4 | 1, 397, 131):
        try:
            with open_instance(io.BytesIO(whole[:kept])) as instance:
                assert not instance.is_complete(), kept
        except Part10Error:
            continue


def test_a_frame_that_the_file_no_longer_holds_raises_instead_of_ending_neatly():
    with open_instance(file("MR_truncated.dcm")) as instance, pytest.raises(Part10Error, match="ends in the middle"):
        frame(instance, 1)


def test_a_deflated_file_that_is_cut_off_is_refused():
    with pytest.raises(Part10Error, match="truncated"):
        open_instance(io.BytesIO(file("image_dfl.dcm").read_bytes()[:-20]))


def test_a_deflated_file_is_read_to_its_end_also_where_a_piece_ends_just_before_it():
    """Of zeros, as segmentations mostly are, the last input may stand for some hundred bytes more than a piece holds."""
    for size in range((1 << 20) - 60, (1 << 20) + 240, 2):
        dataset = Dataset()
        dataset.add_new(0x7FE00010, "OB", bytes(size))
        with open_instance(written(dataset, DeflatedExplicitVRLittleEndian)) as instance:
            assert instance.is_complete(), size


def test_a_deflated_file_that_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr("gateway.wire.instance.MAX_INFLATED", 100)
    with pytest.raises(Part10Error, match="too long"):
        open_instance(file("image_dfl.dcm"))


def test_media_types_are_those_of_the_standard():
    assert frame_media_type(JPEGBaseline8Bit) == "image/jpeg"
    assert frame_media_type("1.2.840.10008.1.2.4.80") == "image/jls"
    assert frame_media_type("1.2.840.10008.1.2.4.201") == "image/jphc"
    assert frame_media_type(RLELossless) == "image/dicom-rle"
    assert frame_media_type("1.2.840.10008.1.2.4.100") == "video/mpeg"
    assert frame_media_type(ExplicitVRLittleEndian) == "application/octet-stream"
    assert frame_media_type("1.2.3") == "application/octet-stream"


@settings(deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["CT_small.dcm", "rtplan.dcm", "JPEG2000.dcm", "SC_rgb_rle_2frame.dcm"]))
def test_a_damaged_file_is_read_or_refused_but_never_anything_else(seed, name):
    random = np.random.default_rng(seed)
    damaged = bytearray(file(name).read_bytes())
    for _ in range(5):
        damaged[random.integers(len(damaged))] = random.integers(256)
    try:
        with open_instance(io.BytesIO(bytes(damaged))) as instance:
            instance.metadata(str)
            instance.is_complete()
            for number in range(1, min(instance.frames.count, 3) + 1):
                frame(instance, number)
    except Part10Error:
        return


def test_a_character_set_that_is_no_text_breaks_its_file_or_its_sequence_and_nothing_else():
    """pydicom looks at (0008,0005) while it reads, and has an exception of its own for a length that does not fit."""
    no_text = b"\x08\0\x05\0FD\x06\0ISO_IR"
    with pytest.raises(Part10Error):
        open_instance(io.BytesIO(bytes(128) + b"DICM" + no_text))
    item = b"\xfe\xff\0\xe0\x0e\0\0\0" + no_text
    sequence = b"\x08\0\x15\x11SQ\0\0" + len(item).to_bytes(4, "little") + item
    study = b"\x20\0\x0d\0UI\x04\0" + b"1.2\0"
    with open_instance(io.BytesIO(bytes(128) + b"DICM" + sequence + study)) as instance:
        assert instance.metadata(str)["0020000D"]["Value"] == ["1.2"]
