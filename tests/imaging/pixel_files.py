"""The pydicom files that have pixels, and what pydicom, numpy and pillow make of them: what ours is held against."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

ROOT = Path(pydicom.__file__).parent / "data" / "test_files"
warnings.filterwarnings("ignore", module="pydicom")

BROKEN = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "a made-up codestream of 266 bytes",
    "MR_truncated.dcm": "shorter than its frames",
    "meta_missing_tsyntax.dcm": "without Rows and Columns",
    "nested_priv_SQ.dcm": "without Rows and Columns",
    "no_meta.dcm": "not a DICOM file",
}
"""What nobody can decode, and why."""
TWELVE_BITS = {"JPEG-lossy.dcm", "JPGExtended.dcm"}
"""JPEG Extended with 12 bits: pydicom decodes it by no plug-in; (row, column) -> value is what libjpeg gives."""
KNOWN = {(420, 140): 244, (230, 120): 95}


def _has_pixels(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            dataset = pydicom.dcmread(file)
    except (pydicom.errors.InvalidDicomError, OSError, ValueError, TypeError):
        return False
    return any(one in dataset for one in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))


@cache
def files() -> tuple[Path, ...]:
    """Every file with pixels that can be decoded."""
    return tuple(
        path for path in sorted(ROOT.rglob("*")) if path.is_file() and path.name not in BROKEN and _has_pixels(path)
    )


def named(name: str) -> Path:
    return next(path for path in ROOT.rglob(name))


def read(path: Path) -> pydicom.FileDataset:
    """The file; one says that it has '1A' frames, which pydicom does not get over."""
    dataset = pydicom.dcmread(path)
    if path.name == "badVR.dcm":
        dataset.NumberOfFrames = 1
    return dataset


def samples(path: Path, number: int = 1) -> NDArray[Any]:
    """One frame as pydicom decodes it, chrominance as RGB."""
    dataset = read(path)
    pixels = dataset.pixel_array
    has_more = int(dataset.get("NumberOfFrames") or 1) > 1 or path.name == "badVR.dcm"
    return numpy.asarray(pixels[number - 1] if has_more else pixels)


def picture(path: Path, number: int = 1) -> NDArray[numpy.uint8]:
    """The frame as 8-bit grey or RGB with the file's own window, else from its least to its greatest value."""
    dataset = read(path)
    pixels = samples(path, number)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        coloured = apply_color_lut(pixels, dataset)
        return _scaled(coloured, 0, 2 ** (8 * coloured.dtype.itemsize) - 1)
    if pixels.ndim == 3:
        return _scaled(pixels, 0, 2**dataset.BitsStored - 1)
    values = apply_modality_lut(pixels, dataset).astype(float)
    window = dataset.get("WindowWidth")
    if window not in (None, ""):
        width = float(window[0] if hasattr(window, "__getitem__") and not isinstance(window, str) else window)
        center = dataset.WindowCenter
        center = float(center[0] if hasattr(center, "__getitem__") and not isinstance(center, str) else center)
        grey = numpy.interp(values, [center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2], [0, 255])
    elif "VOILUTSequence" in dataset:
        table = apply_voi_lut(pixels, dataset, prefer_lut=True)
        grey = _scaled(table, 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1)
    else:
        kept = values[pixels != dataset.PixelPaddingValue] if "PixelPaddingValue" in dataset else values
        least, most = kept.min(), kept.max()
        grey = _scaled(values, least, most)
    grey = numpy.rint(grey)
    inverse = dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"
    return numpy.asarray(255 - grey if inverse else grey, numpy.uint8)


def _scaled(values: NDArray[Any], least: float, most: float) -> NDArray[numpy.uint8]:
    span = (most - least) or 1
    return numpy.asarray(numpy.rint(numpy.clip((values.astype(float) - least) / span, 0, 1) * 255), numpy.uint8)
