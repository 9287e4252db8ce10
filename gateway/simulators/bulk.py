"""Large input for streaming tests and the benchmark: many instances, or a huge one that is never in memory whole."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MultiFrameGrayscaleWordSecondaryCaptureImageStorage

from gateway.simulators.hospitals import HOSPITALS, Examination, Person
from gateway.simulators.iod import SeriesPlan, frame_of_reference, general_image, instance, plane, put

_CHUNK = 1 << 20
_PATIENT = Person("Large^Study", "BULK-1", "19700101", "O", issuer="BULK")


def _examination(key: str) -> Examination:
    return Examination("es-madrid", key, "bulk", _PATIENT, "20250101", "120000", "Large study", "", "BULK-1", "+0100")


def ct_series(directory: Path, instances: int = 400, *, rows: int = 512, columns: int = 512, key: str = "bulk") -> str:
    """Writes one CT series and gives its StudyInstanceUID: files of rows x columns x 16 bits, 0.5 MB each by default.

    Every file has other pixels, so that no two can be mistaken for each other.
    """
    directory.mkdir(parents=True, exist_ok=True)
    examination = _examination(key)
    series = SeriesPlan("ct", 1, "CT", CTImageStorage, "Large series", "ABDOMEN")
    made = Dataset()
    for number in range(1, instances + 1):
        made = instance(examination, HOSPITALS["es-madrid"], series, number)
        _ct(made, examination, number)
        _describe_pixels(made, rows, columns)
        rng = np.random.default_rng(number)
        made.add_new("PixelData", "OW", rng.integers(0, 4096, rows * columns, dtype=np.uint16).astype("<u2").tobytes())
        made.save_as(directory / f"{key}-{number:04d}.dcm", enforce_file_format=True)
    return str(made.StudyInstanceUID)


def _ct(made: Dataset, examination: Examination, number: int) -> None:
    general_image(made, examination, "ORIGINAL", "PRIMARY", "AXIAL")
    frame_of_reference(made, examination)
    plane(made, (-200.0, -200.0, float(number)), (1, 0, 0, 0, 1, 0), 0.78125, 1)
    put(made, PatientPosition="HFS", KVP=120, RescaleIntercept=-1024, RescaleSlope=1, RescaleType="HU")


def _describe_pixels(made: Dataset, rows: int, columns: int) -> None:
    put(made, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", Rows=rows, Columns=columns)
    put(made, BitsAllocated=16, BitsStored=12, HighBit=11, PixelRepresentation=0, WindowCenter=1064, WindowWidth=400)


def large_multiframe(path: Path, megabytes: int = 200, *, rows: int = 1024, columns: int = 1024) -> str:
    """Writes one multi-frame instance of about `megabytes` (10^6 bytes) frame by frame; its StudyInstanceUID."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame_bytes = rows * columns * 2
    frames = max(1, megabytes * 1_000_000 // frame_bytes)
    made = _multiframe_head(rows, columns, frames)
    with path.open("wb") as file:
        file.write(_part10(made))
        _pixel_data_header(file, frames * frame_bytes)
        for chunk in _frames(frames, frame_bytes):
            file.write(chunk)
    return str(made.StudyInstanceUID)


def _multiframe_head(rows: int, columns: int, frames: int) -> Dataset:
    """Multi-frame Grayscale Word Secondary Capture without its pixels (PS3.3 A.8.4)."""
    examination = _examination("bulk-multiframe")
    series = SeriesPlan(
        "multiframe", 1, "OT", MultiFrameGrayscaleWordSecondaryCaptureImageStorage, "Large instance", "ABDOMEN"
    )
    made = instance(examination, HOSPITALS["es-madrid"], series, 1)
    general_image(made, examination, "DERIVED", "SECONDARY")
    _describe_pixels(made, rows, columns)
    put(made, ConversionType="WSD", NumberOfFrames=frames, FrameIncrementPointer=0x00181065)
    put(made, FrameTimeVector=[0, *[40] * (frames - 1)], PresentationLUTShape="IDENTITY")
    put(made, RescaleIntercept=0, RescaleSlope=1, RescaleType="US")
    return made


def _part10(made: Dataset) -> bytes:
    buffer = io.BytesIO()
    dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


def _pixel_data_header(file: BinaryIO, length: int) -> None:
    """(7FE0,0010) OW in Explicit VR Little Endian: the last element of the data set, so it can follow the rest."""
    file.write(b"\xe0\x7f\x10\x00OW\x00\x00" + length.to_bytes(4, "little"))


def _frames(frames: int, frame_bytes: int) -> Iterator[bytes]:
    """Each frame begins with its own number and goes on with a pattern, in chunks of at most 1 MiB."""
    pattern = np.random.default_rng(7).integers(0, 4096, _CHUNK // 2, dtype=np.uint16).astype("<u2").tobytes()
    for number in range(1, frames + 1):
        head = np.array([number % 4096] * 8, dtype="<u2").tobytes()
        yield head
        left = frame_bytes - len(head)
        while left:
            chunk = pattern[: min(left, _CHUNK)]
            yield chunk
            left -= len(chunk)
