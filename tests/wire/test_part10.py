import asyncio
import functools
import itertools
import threading
import time
import tracemalloc
import zlib
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from struct import pack

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import data_element_generator
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.sequence import Sequence

from gateway.model.patient import PatientKey, patient_of
from gateway.wire import part10
from gateway.wire.elements import Part10TooLarge
from gateway.wire.filemeta import IMPLEMENTATION_CLASS_UID
from gateway.wire.instance import metadata
from gateway.wire.part10 import AFTER_UIDS, PIXEL_DATA, Part10Error, file_meta, identify, open_part10
from gateway.wire.transfer import explicit_little_endian, must_become_explicit, rewrite

DATA = Path(pydicom.__file__).parent / "data"
# What is not DICOM at all, what begins with a stray byte, and the two that were cut off on purpose.
NO_DICOM = {"no_meta.dcm", "README"}
TRUNCATED = {"MR_truncated.dcm", "rtplan_truncated.dcm"}
FILES = sorted(
    path
    for folder in ("test_files", "charset_files")
    for path in (DATA / folder).rglob("*")
    if path.is_file() and path.suffix not in {".txt", ".json", ".dump", ".gz", ".icc"} and path.name not in NO_DICOM
)
WHOLE = [path for path in FILES if path.name not in TRUNCATED]
named = functools.partial(pytest.mark.parametrize, argnames="path", ids=lambda path: path.name)
FORBIDDEN = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.2"}
EXPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"


def test_file(name):
    return (DATA / "test_files" / name).read_bytes()


test_file.__test__ = False


async def chunked(data, *sizes):
    position, turn = 0, 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        yield data[position : position + size]
        position, turn = position + size, turn + 1


async def opened(data, *sizes, **options):
    return await open_part10(chunked(data, *(sizes or (4096,))), **options)


async def joined(chunks):
    return b"".join([chunk async for chunk in chunks])


def read(data):
    return pydicom.dcmread(BytesIO(data), force=True)


def settled(dataset):
    """A data set as pydicom would write it: group lengths gone, ambiguous VRs decided."""
    group_lengths = [tag for tag in dataset.keys() if tag.element == 0 or tag.group == 0]  # noqa: SIM118
    for tag in group_lengths:
        del dataset[tag]
    if dataset.is_implicit_VR:
        correct_ambiguous_vr(dataset, is_little_endian=True)
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                for tag in [tag for tag in item.keys() if tag.element == 0]:  # noqa: SIM118
                    del item[tag]
    return dataset


def elements(dataset):
    """Tag, VR and value of everything, nested, in order; floats by their text so that NaN equals itself."""
    for element in dataset:
        if element.VR == "SQ":
            yield element.tag, "SQ", [list(elements(item)) for item in element.value]
        else:
            yield element.tag, element.VR, repr(element.value)


@named(argvalues=WHOLE)
@pytest.mark.parametrize("sizes", [(1 << 20,), (7,), (1, 300, 13)])
async def test_raw_gives_every_file_back_byte_for_byte(path, sizes):
    data = path.read_bytes()
    if len(data) > 100_000 and sizes == (7,):
        sizes = (1021,)
    assert await joined((await opened(data, *sizes)).raw()) == data
    assert await joined((await opened(data, *sizes, until=AFTER_UIDS)).raw()) == data


@named(argvalues=WHOLE)
async def test_head_and_tail_are_the_data_set_and_part_at_the_pixel_data(path):
    data = path.read_bytes()
    stream = await opened(data, 1000)
    head, tail = stream.head, await joined(stream.tail)
    if stream.transfer_syntax == DEFLATED:
        meta_length = read(data).file_meta.FileMetaInformationGroupLength
        assert head + tail == zlib.decompressobj(-15).decompress(data[144 + meta_length :])
    else:
        assert data.endswith(head + tail)
    expected = read(data)
    pixel = [tag for tag in expected.keys() if tag >= PIXEL_DATA]  # noqa: SIM118
    assert list(stream.dataset.keys()) == [tag for tag in expected.keys() if tag < PIXEL_DATA]  # noqa: SIM118
    assert bool(tail.strip(b"\0")) == bool(pixel)


@named(argvalues=WHOLE)
async def test_a_forbidden_syntax_becomes_explicit_little_endian_with_equal_values_and_pixels(path):
    data = path.read_bytes()
    stream = await opened(data, 1013)
    forbidden = stream.transfer_syntax in FORBIDDEN
    changes = must_become_explicit(stream)
    converted = await joined(explicit_little_endian(stream))
    if not changes:
        assert converted == data
        assert not forbidden
        return
    before, after = read(data), read(converted)
    assert after.file_meta.TransferSyntaxUID == (EXPLICIT if forbidden else stream.transfer_syntax)
    assert (after.is_implicit_VR, after.is_little_endian) == (False, True)
    assert after.file_meta.MediaStorageSOPInstanceUID == before.get(
        "SOPInstanceUID", before.file_meta.get("MediaStorageSOPInstanceUID", "")
    )
    if forbidden and "PixelData" in before and "PhotometricInterpretation" in before:
        before.file_meta.TransferSyntaxUID = stream.transfer_syntax
        assert (before.pixel_array == after.pixel_array).all()
    if "PixelData" in before and before.is_little_endian:
        assert before.PixelData == after.PixelData
    for dataset in (before, after):
        dataset.pop("PixelData", None)
    assert list(elements(settled(after))) == list(elements(settled(before)))


@named(argvalues=WHOLE)
async def test_a_file_rewritten_without_a_change_keeps_every_value(path):
    data = path.read_bytes()
    syntax = (await opened(data)).transfer_syntax
    written = await joined(rewrite(await opened(data, 999), lambda dataset: dataset))
    before, after = read(data), read(written)
    assert after.file_meta.TransferSyntaxUID == (EXPLICIT if syntax in {*FORBIDDEN, DEFLATED} else syntax)
    if before.get_item("PixelData") is not None and before.is_little_endian:
        assert after.PixelData == before.PixelData
    for dataset in (before, after):
        dataset.pop("PixelData", None)
    assert list(elements(settled(after))) == list(elements(settled(before)))


@named(argvalues=[path for path in FILES if path.name in TRUNCATED])
async def test_a_file_that_is_cut_off_raises_at_the_end_unless_it_is_wanted_as_it_is(path):
    data = path.read_bytes()
    with pytest.raises(Part10Error):
        await joined((await opened(data, until=AFTER_UIDS)).raw())
    assert await joined((await opened(data, until=AFTER_UIDS)).raw(checked=False)) == data


def boundaries(data):
    """The places between two top-level elements, where a truncation cannot be seen."""
    found, places = BytesIO(data), set()
    dataset = pydicom.dcmread(found, force=True)
    encoding = dataset.is_implicit_VR, dataset.is_little_endian
    buffer = BytesIO(data)
    buffer.seek(144 + dataset.file_meta.FileMetaInformationGroupLength)
    for _ in data_element_generator(buffer, *encoding):
        places.add(buffer.tell())
    return places


@pytest.mark.parametrize(
    "name",
    [
        "reportsi.dcm",
        "MR_small_implicit.dcm",
        "MR_small_RLE.dcm",
        "nested_priv_SQ.dcm",
        "SC_rgb_small_odd_big_endian.dcm",
        "rtplan.dcm",
    ],
)
async def test_every_truncation_raises_but_those_between_two_elements(name):
    data = test_file(name)
    hidden = boundaries(data)
    assert len(hidden) > 1
    for length in [
        *range(0, min(len(data), 4000), 3),
        *sorted(hidden)[:-1],
        *range(max(0, len(data) - 500), len(data)),
    ]:
        try:
            out = await joined((await opened(data[:length], 512, until=AFTER_UIDS)).raw())
        except Part10Error:
            assert length not in hidden
        else:
            assert length in hidden
            assert out == data[:length]


async def test_every_truncation_of_a_deflated_file_raises():
    data = test_file("image_dfl.dcm")
    for length in [*range(400, len(data), 997), len(data) - 9]:
        with pytest.raises(Part10Error):
            await joined((await opened(data[:length], 4096, until=AFTER_UIDS)).raw())


@pytest.mark.parametrize(
    "data", [b"", b"<html>" + b"x" * 1000, bytes(132), bytes(128) + b"DICM", bytes(128) + b"DICM" + b"\2\0", bytes(500)]
)
async def test_what_is_no_dicom_file_is_refused(data):
    with pytest.raises(Part10Error):
        await opened(data, 50)


@settings(max_examples=300, deadline=None)
@given(st.data())
async def test_damaged_bytes_never_raise_anything_but_a_part10_error(data):
    original = bytearray(
        test_file(
            data.draw(
                st.sampled_from(
                    [
                        "reportsi.dcm",
                        "MR_small_implicit.dcm",
                        "MR_small_RLE.dcm",
                        "nested_priv_SQ.dcm",
                        "SC_rgb_small_odd_big_endian.dcm",
                    ]
                )
            )
        )
    )
    for _ in range(data.draw(st.integers(1, 5))):
        original[data.draw(st.integers(132, len(original) - 1))] = data.draw(st.integers(0, 255))
    for use in (
        lambda stream: stream.raw(),
        explicit_little_endian,
        lambda stream: rewrite(stream, lambda dataset: dataset),
    ):
        try:
            stream = await opened(bytes(original), 4096)
            identify(stream)
            await joined(use(stream))
        except Part10Error:
            pass


def test_the_file_meta_is_what_pydicom_reads_and_has_the_right_group_length():
    written = file_meta("1.2.840.10008.5.1.4.1.1.2", "1.2.3", EXPLICIT)
    meta = read(written).file_meta
    assert written[:132] == bytes(128) + b"DICM"
    assert meta.FileMetaInformationGroupLength == len(written) - 144
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID) == (
        "1.2.840.10008.5.1.4.1.1.2",
        "1.2.3",
        EXPLICIT,
    )
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert len(IMPLEMENTATION_CLASS_UID) <= 64
    assert len(meta.ImplementationVersionName) <= 16


def written(dataset, syntax=EXPLICIT):
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    out = BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def sample(**attributes):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


async def test_identify_names_the_patient_and_the_instance_from_the_first_bytes():
    qualifiers = Dataset()
    qualifiers.UniversalEntityID, qualifiers.UniversalEntityIDType = "1.2.276.99", "ISO"
    dataset = sample(
        SpecificCharacterSet="ISO_IR 101", PatientID="Ž7", IssuerOfPatientIDQualifiersSequence=Sequence([qualifiers])
    )
    stream = await opened(written(dataset), 64, until=AFTER_UIDS)
    found = identify(stream)
    assert patient_of(found, "node") == PatientKey("1.2.276.99", "Ž7")
    assert {tag: found[tag]["Value"] for tag in ("00080016", "00080018", "0020000D", "0020000E")} == {
        "00080016": ["1.2.840.10008.5.1.4.1.1.7"],
        "00080018": ["1.2.3.4"],
        "0020000D": ["1.2.3"],
        "0020000E": ["1.2.3.1"],
    }


def decoded_identity(stream):
    """What pydicom finds, value by value."""
    with part10.guarded():
        found = part10.decode(stream.head, stream.encoding)
        return part10._in_json(found, frozenset(part10._IDENTIFYING))


@named(argvalues=WHOLE)
async def test_identify_finds_what_a_full_decoding_finds(path):
    stream = await opened(path.read_bytes(), until=AFTER_UIDS)
    assert identify(stream) == decoded_identity(stream)
    meta = pydicom.dcmread(path, force=True, stop_before_pixels=True).file_meta
    assert stream.has_file_meta == ("TransferSyntaxUID" in meta)
    if stream.has_file_meta:
        assert stream.transfer_syntax == meta.TransferSyntaxUID


@settings(max_examples=300)
@given(
    st.binary(max_size=12) | st.text("A1 ~\\^\0é", max_size=8).map(lambda text: text.encode("latin-1")),
    st.sampled_from([b"LO", b"UI", b"UN", b"SH", b""]),
    st.sampled_from(["", "ISO_IR 100", "ISO_IR 13", "ISO_IR 192", "\\ISO 2022 IR 87"]),
)
async def test_identify_finds_what_a_full_decoding_finds_however_odd_the_patient_id_is(value, vr, character_set):
    charset = character_set.encode() + b" " * (len(character_set) % 2)
    data = pack("<HH2sH", 8, 5, b"CS", len(charset)) + charset
    if vr == b"UN":
        data += pack("<HH2sHL", 0x10, 0x20, vr, 0, len(value)) + value
    else:
        data += (
            pack("<HH2sH", 0x10, 0x20, vr, len(value)) + value if vr else pack("<HHL", 0x10, 0x20, len(value)) + value
        )
    data += pack("<HH2sH", 0x20, 0x0D, b"UI", 4) + b"1.2\0" + pack("<HH2sH", 0x20, 0x10, b"SH", 0)
    whole = file_meta("1.2", "1.2.3", EXPLICIT) + data
    try:
        stream = await opened(whole, until=AFTER_UIDS)
        expected = decoded_identity(stream)
    except Part10Error:
        return
    assert identify(stream) == expected


async def test_a_head_of_very_many_items_is_identified_without_making_something_of_each():
    items = (b"\xfe\xff\x00\xe0" + bytes(4)) * 200_000
    many = pack("<HH2sHL", 0x08, 0x1140, b"SQ", 0, 0xFFFFFFFF) + items + b"\xfe\xff\xdd\xe0" + bytes(4)
    file = written(sample(PatientID="P"))
    at = file.index(pack("<HH2s", 0x10, 0x20, b"LO"))
    stream = await opened(file[:at] + many + file[at:], 1 << 20, until=AFTER_UIDS)
    tracemalloc.start()
    found = identify(stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert patient_of(found, "node") == PatientKey("node", "P")
    assert peak < 4 << 20


async def test_a_file_of_very_many_items_is_made_explicit_without_making_something_of_each():
    items = (b"\xfe\xff\x00\xe0" + bytes(4)) * 30_000
    many = pack("<HHL", 0x08, 0x1140, 0xFFFFFFFF) + items + b"\xfe\xff\xdd\xe0" + bytes(4)
    file = written(sample(PatientID="P"), "1.2.840.10008.1.2")
    at = file.index(pack("<HHL", 0x10, 0x20, 2))
    stream = await opened(file[:at] + many + file[at:], 1 << 20, until=AFTER_UIDS)
    tracemalloc.start()
    explicit = await joined(explicit_little_endian(stream))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(read(explicit).ReferencedImageSequence) == 30_000
    assert peak < 4 << 20


async def test_a_long_head_is_changed_off_the_event_loop():
    threads = []

    def change(dataset):
        threads.append(threading.current_thread())
        return dataset

    for length, is_here in ((10, True), (1 << 20, False)):
        stream = await opened(written(sample(PatientID="P", TextValue="x" * length)))
        await joined(rewrite(stream, change))
        assert (threads.pop() is threading.main_thread()) == is_here


@contextmanager
def turns_of_others():
    """A counter whose next number is how often something else had its turn on the event loop meanwhile."""
    turns = itertools.count()

    async def others():
        while True:
            next(turns)
            await asyncio.sleep(0)

    waiting = asyncio.create_task(others())
    yield turns
    waiting.cancel()


async def test_others_have_their_turn_while_one_chunk_of_deflated_zeros_is_followed():
    plain = written(sample(PatientID="P"))[132:]
    meta = 12 + int.from_bytes(plain[8:12], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    pixels = pack("<HH2sHL", 0x7FE0, 0x10, b"OB", 0, 64 << 20)
    packed = packer.compress(plain[meta:] + pixels) + packer.compress(bytes(64 << 20)) + packer.flush()
    file = file_meta("1.2", "1.2.3.4", DEFLATED) + packed
    with turns_of_others() as turns:
        assert await joined((await opened(file, len(file), until=AFTER_UIDS)).raw()) == file
    assert next(turns) > 100


async def test_a_head_can_be_extended_after_a_first_look():
    data = test_file("CT_small.dcm")
    stream = await opened(data, 100, until=AFTER_UIDS)
    assert "Rows" not in stream.dataset
    short = stream.head
    assert (await stream.read_head()).startswith(short)
    assert stream.dataset.Rows == 128
    assert await joined(stream.raw()) == data


async def test_a_file_that_was_taken_apart_cannot_be_passed_on_any_more():
    stream = await opened(test_file("CT_small.dcm"))
    await anext(stream.tail)
    with pytest.raises(RuntimeError):
        await anext(stream.raw())


async def test_the_group_length_ends_the_file_meta_even_before_what_looks_like_more_of_it():
    data_set = pack("<HH2sH", 2, 0x16, b"AE", 2) + b"X " + pack("<HH2sH", 8, 0x18, b"UI", 4) + b"1.3\0"
    for size in (1, 64, 4096):
        stream = await opened(file_meta("1.2", "1.3", EXPLICIT) + data_set, size)
        assert stream.head == data_set
        assert stream.transfer_syntax == EXPLICIT


async def test_no_group_length_survives_the_conversion_because_it_would_be_wrong():
    nested = pack("<HHLL", 8, 0, 4, 12) + pack("<HHL", 8, 0x1155, 4) + b"1.3\0"
    item = pack("<HHL", 0xFFFE, 0xE000, len(nested)) + nested
    head = pack("<HHLL", 8, 0, 4, 99) + pack("<HHL", 8, 0x1110, len(item)) + item
    written_ = await joined(explicit_little_endian(await opened(file_meta("1.2", "1.3", "1.2.840.10008.1.2") + head)))
    data_set = written_[len(file_meta("1.2", "1.3", EXPLICIT)) :]
    expected = pack("<HH2sH", 8, 0x1155, b"UI", 4) + b"1.3\0"
    expected = pack("<HHL", 0xFFFE, 0xE000, len(expected)) + expected
    assert data_set == pack("<HH2sHL", 8, 0x1110, b"SQ", 0, len(expected)) + expected


@pytest.mark.parametrize("size", [1 << 20, 333])
async def test_a_deflated_data_set_comes_out_whole_wherever_its_pieces_end(size):
    for extra in range(0, 600, 2):
        data_set = (
            pack("<HH2sH", 8, 0x18, b"UI", 4) + b"1.3\0" + pack("<HH2sHL", 0x7FE0, 0x10, b"OW", 0, (256 << 10) + extra)
        )
        data_set += bytes((256 << 10) + extra)
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        deflated = deflate.compress(data_set) + deflate.flush()
        stream = await opened(file_meta("1.2", "1.3", DEFLATED) + deflated, size)
        assert stream.head + await joined(stream.tail) == data_set


def inflating(size):
    """A deflated file whose pixel data of so many bytes take little."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    data_set = pack("<HH2sH", 8, 0x18, b"UI", 4) + b"1.3\0" + pack("<HH2sHL", 0x7FE0, 0x10, b"OW", 0, size)
    deflated = deflate.compress(data_set) + deflate.compress(bytes(size)) + deflate.flush()
    return file_meta("1.2", "1.3", DEFLATED) + deflated


@pytest.mark.parametrize("use", [lambda stream: stream.raw(), lambda stream: stream.tail])
async def test_others_have_their_turn_while_one_chunk_inflates_to_very_much(use):
    with turns_of_others() as turns:
        stream = await opened(inflating(32 << 20), 1 << 20)
        async for _ in use(stream):
            pass
    assert next(turns) >= 32


async def test_a_data_set_that_inflates_beyond_what_it_may_is_refused():
    data = inflating(1 << 20)
    assert await joined((await opened(data, inflated=2 << 20)).raw()) == data
    stream = await opened(data, inflated=1 << 20)
    with pytest.raises(Part10TooLarge):
        await joined(stream.raw())


async def test_the_first_byte_goes_on_before_the_rest_is_asked_for():
    asked = []

    async def source(data):
        async for chunk in chunked(data, 1000):
            asked.append(len(chunk))
            yield chunk

    stream = await open_part10(source(test_file("CT_small.dcm")), until=AFTER_UIDS)
    await anext(stream.raw())
    assert sum(asked) <= 3000


async def test_a_head_above_its_limit_is_refused():
    data = written(sample(TextValue="x" * 50_000))
    with pytest.raises(Part10Error):
        await opened(data, 1000, limit=20_000)


async def test_the_source_is_closed_whoever_leaves():
    closed = []

    async def source(data):
        try:
            async for chunk in chunked(data, 1000):
                yield chunk
        finally:
            closed.append(True)

    data = test_file("CT_small.dcm")
    for use in (
        lambda stream: stream.raw(),
        explicit_little_endian,
        lambda stream: rewrite(stream, lambda dataset: dataset),
    ):
        output = use(await open_part10(source(data)))
        await anext(output)
        await output.aclose()
        assert closed.pop()
    with pytest.raises(Part10Error):
        await open_part10(source(b"x" * 5000))
    assert closed == [True]


async def test_a_changed_instance_uid_is_in_the_file_meta_and_trailing_elements_are_changed_too():
    dataset = sample(PatientName="Doe^Jane", PixelData=b"\1\2" * 8, BitsAllocated=16, DataSetTrailingPadding=b"secret")
    dataset["PixelData"].VR = "OW"
    seen = []

    def change(part):
        seen.append(list(part.keys()))
        part.SOPInstanceUID, part.PatientName = "9.9", "Anon"
        part.pop("DataSetTrailingPadding", None)
        part.PatientIdentityRemoved = "YES"
        return part

    for syntax in (EXPLICIT, DEFLATED, *FORBIDDEN):
        seen.clear()
        data = written(dataset, syntax)
        out = await joined(rewrite(await opened(data, 77), change))
        after = read(out)
        assert out.count(pack("<HH2sH", 0x0012, 0x0062, b"CS", 4)) == 1
        assert (after.file_meta.MediaStorageSOPInstanceUID, after.SOPInstanceUID, str(after.PatientName)) == (
            "9.9",
            "9.9",
            "Anon",
        )
        assert after.file_meta.TransferSyntaxUID == EXPLICIT
        assert "DataSetTrailingPadding" not in after
        assert len(after.PixelData) == 16
        assert after.is_little_endian
        assert len(seen) == 2
        assert list(after.keys()) == sorted(after.keys())


async def test_signed_values_before_their_pixel_representation_get_their_vr_from_it():
    item = Dataset()
    item.add_new(0x00280106, "SS", -5)
    inner = Dataset()
    inner.add_new(0x00280103, "US", 0)
    inner.add_new(0x00280106, "US", 5)
    dataset = sample(ReferencedImageSequence=Sequence([item, inner]), PixelRepresentation=1)
    dataset.add_new(0x00280106, "SS", -7)
    after = read(await joined(explicit_little_endian(await opened(written(dataset, "1.2.840.10008.1.2")))))
    assert (after[0x00280106].VR, after[0x00280106].value) == ("SS", -7)
    signed, unsigned = after.ReferencedImageSequence
    assert (signed[0x00280106].VR, signed[0x00280106].value) == ("SS", -5)
    assert (unsigned[0x00280106].VR, unsigned[0x00280106].value) == ("US", 5)


values = st.fixed_dictionaries(
    {},
    optional={
        "PatientName": st.sampled_from(["Doe^Jane", "Ångström^Øyvind", ""]),
        "InstanceNumber": st.integers(0, 9999),
        "ImageOrientationPatient": st.lists(st.integers(-9, 9), min_size=6, max_size=6),
        "SelectorUSValue": st.lists(st.integers(0, 65535), max_size=3),
        "SelectorSLValue": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        "SelectorFDValue": st.lists(st.floats(width=64, allow_nan=False), max_size=3),
        "SelectorATValue": st.just([0x00100010, 0x7FE00010]),
        "SelectorSVValue": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2),
        "SmallestImagePixelValue": st.integers(0, 32767),
        "EncapsulatedDocument": st.binary(max_size=9).map(lambda data: data + b"\0" * (len(data) % 2)),
    },
)


@st.composite
def datasets(draw, depth=0):
    dataset = sample(**draw(values)) if depth == 0 else Dataset()
    for keyword, value in draw(values).items() if depth else ():
        setattr(dataset, keyword, value)
    if depth == 0:
        dataset.SpecificCharacterSet = "ISO_IR 100"
    if depth < 3:
        for keyword in ("ReferencedStudySequence", "PerFrameFunctionalGroupsSequence"):
            if draw(st.booleans()):
                items = draw(st.lists(datasets(depth + 1), max_size=2))
                for item in items:
                    item.is_undefined_length_sequence_item = draw(st.booleans())
                setattr(dataset, keyword, Sequence(items))
                dataset[keyword].is_undefined_length = draw(st.booleans())
    if draw(st.booleans()):
        block = dataset.private_block(0x0099, "TEST^PRIVATE", create=True)
        block.add_new(1, "UN", b"\1\2\3\4")
    return dataset


@settings(max_examples=150, deadline=None)
@given(datasets(), st.sampled_from(sorted(FORBIDDEN)), st.integers(1, 700))
async def test_any_data_set_survives_the_conversion(dataset, syntax, size):
    dataset.PixelRepresentation = 0
    data = written(dataset, syntax)
    assert await joined((await opened(data, size)).raw()) == data
    after = read(await joined(explicit_little_endian(await opened(data, size))))
    assert list(elements(settled(after))) == list(elements(settled(read(data))))


async def test_pixel_words_of_every_size_are_turned_round_across_chunks():
    for bits in (8, 16, 32, 64):
        dataset = sample(Rows=3, Columns=8, BitsAllocated=bits, PixelData=bytes(range(24)) * (bits // 8))
        dataset["PixelData"].VR = "OW"
        word = max(bits // 8, 2)
        after = read(await joined(explicit_little_endian(await opened(written(dataset, "1.2.840.10008.1.2.2"), 7))))
        expected = b"".join(dataset.PixelData[at : at + word][::-1] for at in range(0, len(dataset.PixelData), word))
        assert after.PixelData == expected


async def test_an_unknown_element_of_undefined_length_is_followed_as_implicit():
    inner = pack("<HHL", 0x0008, 0x0104, 4) + b"text"
    item = pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner + pack("<HHL", 0xFFFE, 0xE00D, 0)
    unknown = pack("<HH2sHL", 0x0009, 0x1001, b"UN", 0, 0xFFFFFFFF) + item + pack("<HHL", 0xFFFE, 0xE0DD, 0)
    data = file_meta("1.2", "1.3", EXPLICIT) + pack("<HH2sH", 8, 0x18, b"UI", 4) + b"1.3\0" + unknown
    assert await joined((await opened(data, 5)).raw()) == data
    for length in range(len(data) - len(unknown) + 1, len(data)):
        with pytest.raises(Part10Error):
            await joined((await opened(data[:length], 64)).raw())


async def test_a_deep_nesting_is_refused_instead_of_followed_for_ever():
    start = pack("<HH2sHL", 8, 0x1110, b"SQ", 0, 0xFFFFFFFF) + pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(Part10Error):
        await opened(file_meta("1.2", "1.3", EXPLICIT) + start * 10_000, 1 << 16)


async def test_zeros_behind_the_last_element_are_padding():
    data = test_file("CT_small.dcm") + bytes(510)
    assert await joined((await opened(data, 100)).raw()) == data
    assert read(await joined(rewrite(await opened(data, 100), lambda dataset: dataset))).Rows == 128


def large(size, syntax):
    """The beginning of an instance whose pixel data of `size` bytes is to follow."""
    dataset = sample(Rows=1024, Columns=1024, BitsAllocated=16, PixelRepresentation=0)
    data = written(dataset, syntax)
    if syntax == "1.2.840.10008.1.2":
        return data + pack("<HHL", 0x7FE0, 0x0010, size)
    order = ">" if syntax == "1.2.840.10008.1.2.2" else "<"
    return data + pack(f"{order}HH2sHL", 0x7FE0, 0x0010, b"OW", 0, size)


async def pumped(head, chunk, count):
    yield head
    for _ in range(count):
        yield bytes(bytearray(chunk))  # an object of its own, so that holding on to it shows


USES = {
    "raw": lambda s: s.raw(),
    "convert": explicit_little_endian,
    "rewrite": lambda s: rewrite(s, lambda dataset: dataset),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("syntax", [EXPLICIT, *sorted(FORBIDDEN)])
async def test_a_large_instance_passes_in_little_memory(use, syntax):
    chunk, count = bytes(256 << 10), 256
    tracemalloc.start()
    size = 0
    stream = await open_part10(pumped(large(len(chunk) * count, syntax), chunk, count), until=AFTER_UIDS)
    async for piece in USES[use](stream):
        size += len(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > len(chunk) * count
    assert peak < 4 << 20


async def test_passing_a_large_instance_on_costs_next_to_nothing():
    chunk, count = bytes(256 << 10), 4000
    stream = await open_part10(pumped(large(len(chunk) * count, EXPLICIT), chunk, count), until=AFTER_UIDS)
    started = time.process_time()
    async for _ in stream.raw():
        pass
    assert time.process_time() - started < 1.0


async def test_a_deflate_bomb_does_not_fill_the_memory():
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    length = 200 << 20
    data = bomb.compress(pack("<HH2sH", 8, 0x18, b"UI", 4) + b"1.3\0" + pack("<HH2sHL", 8, 0x40, b"UN", 0, length))
    data += b"".join(bomb.compress(bytes(1 << 20)) for _ in range(200)) + bomb.flush()
    tracemalloc.start()
    with pytest.raises(Part10Error):
        await opened(file_meta("1.2", "1.3", DEFLATED) + data, 1 << 16, limit=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


# --- the beginning of a file, for its metadata


@pytest.mark.parametrize("size", [600, 2000, 6000, 100_000])
@pytest.mark.parametrize("has_pixels", [False, True])
async def test_the_beginning_of_a_signed_file_tells_its_metadata_wherever_it_is_cut(size, has_pixels):
    """Without pixels nothing else says where signatures (FFFA,FFFA) and private groups above 7FE0 end."""
    inner, dataset = Dataset(), pydicom.dcmread(BytesIO(test_file("CT_small.dcm")))
    inner.Signature, inner.CertificateOfSigner = b"s" * 3000, b"c" * 5000
    if not has_pixels:
        del dataset.PixelData
        dataset.private_block(0x7FE1, "MAKER", create=True).add_new(1, "SQ", Sequence([inner]))
        dataset[0x7FE11001].is_undefined_length = True
    dataset.DigitalSignaturesSequence = Sequence([inner])
    dataset["DigitalSignaturesSequence"].is_undefined_length = True
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    stream = await opened(file.getvalue(), size)
    beginning = await stream.beginning(1 << 20)
    assert metadata(BytesIO(beginning), str) == metadata(file, str)
    assert await joined(stream.raw()) == file.getvalue()


async def test_a_beginning_beyond_the_limit_is_none():
    data = (DATA / "test_files" / "reportsi.dcm").read_bytes()
    assert await (await opened(data, 300, until=AFTER_UIDS)).beginning(1000) is None
    assert await (await opened(data, 300, until=AFTER_UIDS)).beginning(1 << 20) == data
