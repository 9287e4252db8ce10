"""Every frame decodes to the samples that pydicom reads, whatever its transfer syntax; what does not is refused in time."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gdcm
import numpy
import pydicom
import pytest
import pytest_asyncio
from pydicom.pixels import convert_color_space
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from gateway.errors import ImagingBusy, NotAcceptable, TooLarge
from gateway.imaging.attributes import elsewhere, frame_attributes
from gateway.imaging.options import PNG, Rendering
from gateway.imaging.processes import EncodedFrame, Imaging
from gateway.wire.instance import iter_chunks, open_instance
from tests.imaging.pixel_files import BROKEN, KNOWN, TWELVE_BITS, files, named, samples

pytestmark = pytest.mark.asyncio(loop_scope="module")
ALL = files()
SYNTAXES = {
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.5",
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def imaging() -> AsyncIterator[Imaging]:
    made = Imaging(1, 60.0, 64 << 20)
    await made.open()
    yield made
    await made.close()


def encoded(path: Path, number: int = 1) -> EncodedFrame:
    """One frame as it is stored, with its tables in place."""
    with open_instance(path) as instance:
        attributes = frame_attributes(instance.metadata(lambda address: address), number)
        for holder, tag, address in list(elsewhere(attributes)):
            value = b"".join(
                b for one in instance.bulk_value(address) for b in iter_chunks(instance.source, one.extent)
            )
            holder[tag] = {"vr": holder[tag]["vr"], "InlineBinary": base64.b64encode(value).decode()}
        table = instance.frames
        data = b"".join(iter_chunks(instance.source, table.locate(number)))
        return EncodedFrame(attributes, table.transfer_syntax, data)


def as_array(told: dict[str, Any], data: bytes, dtype: numpy.dtype[Any]) -> Any:
    count = told["rows"] * told["columns"] * told["samples_per_pixel"]
    if told["bits_allocated"] == 1:
        return numpy.unpackbits(numpy.frombuffer(data, "u1"), bitorder="little")[:count]
    return numpy.frombuffer(data, dtype.newbyteorder("<"))


async def test_the_table_has_every_transfer_syntax_of_images() -> None:
    found = {str(pydicom.dcmread(path).file_meta.get("TransferSyntaxUID", "")) for path in ALL}
    assert found >= SYNTAXES


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
async def test_a_frame_decodes_to_what_pydicom_reads(imaging: Imaging, path: Path) -> None:
    recoded = await imaging.recode(encoded(path))
    if path.name in TWELVE_BITS:
        pixels = as_array(recoded.told, recoded.data, numpy.dtype("u2")).reshape(1024, 256)
        assert {place: pixels[place] for place in KNOWN} == KNOWN
        return
    wanted = samples(path)
    pixels = as_array(recoded.told, recoded.data, wanted.dtype)
    if recoded.told["photometric_interpretation"] == "YBR_FULL":  # kept as it was, but for the subsampling
        pixels = convert_color_space(pixels.reshape(wanted.shape), "YBR_FULL", "RGB").ravel()
    assert numpy.array_equal(pixels, wanted.ravel())


LOSSLESS = [JPEG2000Lossless, JPEGLSLossless, RLELossless]


@pytest.mark.parametrize("into", LOSSLESS, ids=lambda uid: uid.name)
@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small_bigendian.dcm", "SC_rgb_rle.dcm", "SC_rgb_jpeg_dcmtk.dcm", "MR_small_jp2klossless.dcm"],
)
async def test_a_frame_comes_back_from_a_lossless_syntax_as_it_was(imaging: Imaging, name: str, into: str) -> None:
    there = await imaging.recode(encoded(named(name)), into)
    original = encoded(named(name))
    changed = dict(original.attributes)
    if there.told["samples_per_pixel"] > 1:
        changed["00280004"] = {"vr": "CS", "Value": [there.told["photometric_interpretation"]]}
        changed["00280006"] = {"vr": "US", "Value": [1 if into == RLELossless else 0]}
    back = await imaging.recode(EncodedFrame(changed, into, there.data))
    wanted = samples(named(name))
    assert numpy.array_equal(as_array(back.told, back.data, wanted.dtype), wanted.ravel())


@pytest.mark.parametrize("name", ["JPEG2000-embedded-sequence-delimiter.dcm"])
async def test_what_nobody_can_decode_is_refused(imaging: Imaging, name: str) -> None:
    assert name in BROKEN
    with pytest.raises(NotAcceptable, match="cannot be decoded"):
        await imaging.recode(encoded(named(name)))


async def test_a_frame_that_is_cut_off_is_refused(imaging: Imaging) -> None:
    whole = encoded(named("CT_small.dcm"))
    with pytest.raises(NotAcceptable):
        await imaging.render([whole._replace(data=whole.data[:-100])], Rendering(PNG))


async def test_a_process_that_dies_is_replaced() -> None:
    imaging = Imaging(1, 60.0, 64 << 20)
    whole = encoded(named("CT_small.dcm"))
    await imaging.recode(whole)
    first = imaging._idle[0].process
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert (await imaging.recode(whole)).data
    assert imaging._idle[0].process.pid != first.pid
    await imaging.close()


async def test_what_takes_too_long_is_ended_and_the_next_is_served() -> None:
    imaging = Imaging(1, 60.0, 64 << 20)
    whole = encoded(named("CT_small.dcm"))
    await imaging.recode(whole)
    os.kill(imaging._idle[0].process.pid, signal.SIGSTOP)
    imaging._seconds = 0.5
    with pytest.raises(TooLarge, match="not decoded within"):
        await imaging.recode(whole)
    imaging._seconds = 60.0
    assert (await imaging.recode(whole)).data
    await imaging.close()


async def test_whoever_leaves_takes_nobody_else_along() -> None:
    imaging = Imaging(1, 60.0, 64 << 20)
    whole = encoded(named("CT_small.dcm"))
    leaving = asyncio.create_task(imaging.recode(whole))
    staying = asyncio.create_task(imaging.recode(whole))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).data
    await imaging.close()
    assert imaging._idle == []


async def test_whoever_leaves_before_their_turn_is_not_worked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    imaging = Imaging(1, 60.0, 64 << 20)
    monkeypatch.setattr("gateway.imaging.processes._MOST_WAITING", 2)
    whole = encoded(named("CT_small.dcm"))
    await imaging.recode(whole)
    process = imaging._idle[0].process
    os.kill(process.pid, signal.SIGSTOP)
    begun = asyncio.create_task(imaging.recode(whole))
    leaving = asyncio.create_task(imaging.recode(whole))
    await asyncio.sleep(0.1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    staying = asyncio.create_task(imaging.recode(whole))  # there is room for it now
    await asyncio.sleep(0.1)
    os.kill(process.pid, signal.SIGCONT)
    assert (await begun).data
    assert (await staying).data
    await imaging.close()


async def test_when_too_much_is_under_way_new_work_is_turned_away_and_patient_work_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    imaging = Imaging(1, 60.0, 64 << 20)
    monkeypatch.setattr("gateway.imaging.processes._MOST_WAITING", 1)
    whole = encoded(named("CT_small.dcm"))
    begun = asyncio.create_task(imaging.recode(whole))
    await asyncio.sleep(0)
    with pytest.raises(ImagingBusy):
        await imaging.recode(whole)
    assert (await imaging.recode(whole, patient=True)).data
    assert (await begun).data
    with imaging.holding(8 * (64 << 20)), pytest.raises(ImagingBusy), imaging.holding(1):
        raise AssertionError
    await imaging.close()


@pytest.mark.parametrize("into", LOSSLESS)
async def test_a_frame_of_an_odd_number_of_pixels_is_encoded_as_any_other(imaging: Imaging, into: str) -> None:
    numbers = {
        "00280002": 1,
        "00280010": 63,
        "00280011": 63,
        "00280100": 8,
        "00280101": 8,
        "00280102": 7,
        "00280103": 0,
    }
    attributes: Any = {tag: {"vr": "US", "Value": [number]} for tag, number in numbers.items()}
    attributes["00280004"] = {"vr": "CS", "Value": ["MONOCHROME2"]}
    pixels = bytes(at % 251 for at in range(63 * 63))
    given = await imaging.recode(EncodedFrame(attributes, "1.2.840.10008.1.2.1", pixels), into)
    assert (await imaging.recode(EncodedFrame(attributes, into, given.data))).data == pixels


async def test_a_process_that_has_nothing_to_do_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.imaging.processes._IDLE_SECONDS", 0.05)
    imaging = Imaging(1, 60.0, 64 << 20)
    await imaging.recode(encoded(named("CT_small.dcm")))
    process = imaging._idle[0].process
    async with asyncio.timeout(30):
        while process.returncode is None:
            await asyncio.sleep(0.01)
    assert imaging._idle == []
    await imaging.close()


async def test_an_image_that_needs_too_much_memory_is_refused() -> None:
    imaging = Imaging(1, 60.0, 1)
    huge = encoded(named("CT_small.dcm"))
    attributes = {
        **huge.attributes,
        "00280010": {"vr": "US", "Value": [60000]},
        "00280011": {"vr": "US", "Value": [60000]},
    }
    attributes["00280004"] = {"vr": "CS", "Value": ["MONOCHROME2"]}
    with pytest.raises((TooLarge, NotAcceptable)):
        await imaging.recode(EncodedFrame(attributes, "1.2.840.10008.1.2.5", huge.data))
    with pytest.raises(TooLarge, match="more than are decoded at once"):
        imaging.check_size(2)
    await imaging.close()


async def test_without_the_extra_it_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.imaging.processes.find_spec", lambda name: None)
    with pytest.raises(NotAcceptable, match=r"imaging-gateway\[pixels\]"):
        await Imaging(1, 60.0, 64 << 20).recode(encoded(named("CT_small.dcm")))


@pytest.mark.parametrize("end", ["201", "202", "203"])
async def test_high_throughput_jpeg_2000_is_decoded(imaging: Imaging, end: str) -> None:
    """The middle of CT_small.dcm, encoded without loss by OpenJPH, as no pydicom file is."""
    data = Path(__file__).with_name("ct_small_middle.jph").read_bytes()
    attributes = dict(encoded(named("CT_small.dcm")).attributes)
    attributes |= {tag: {"vr": "US", "Value": [64]} for tag in ("00280010", "00280011")}
    recoded = await imaging.recode(EncodedFrame(attributes, f"1.2.840.10008.1.2.4.{end}", data))
    assert recoded.data == samples(named("CT_small.dcm"))[32:96, 32:96].tobytes()


async def test_jpeg_lossless_of_any_predictor_is_decoded(imaging: Imaging, tmp_path: Path) -> None:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(named("CT_small.dcm")))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(tmp_path / "lossless.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    frame = encoded(tmp_path / "lossless.dcm")
    assert frame.transfer_syntax == "1.2.840.10008.1.2.4.57"
    assert (await imaging.recode(frame)).data == samples(named("CT_small.dcm")).tobytes()
