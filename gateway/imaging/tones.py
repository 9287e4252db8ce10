"""Stored values made into 8-bit grey or RGB: Modality LUT, VOI window or LUT, polarity, palettes (PS3.3 C.11, PS3.4 N.2)."""

from __future__ import annotations

from typing import Any

import numpy
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi

from gateway.imaging.frame import CannotDecode, Frame
from gateway.imaging.options import LINEAR, LINEAR_EXACT, SIGMOID

Window = tuple[float, float, str]
_MOST_SIGNED = 0x7FFF
_FUNCTIONS = {"LINEAR": LINEAR, "LINEAR_EXACT": LINEAR_EXACT, "SIGMOID": SIGMOID}


def shown(frame: Frame, window: Window | None) -> NDArray[numpy.uint8]:
    """What is put on a screen: (rows, columns) in grey or (rows, columns, 3) in RGB. Raises CannotDecode."""
    kind = frame.told["photometric_interpretation"]
    if kind == "PALETTE COLOR" and frame.told["samples_per_pixel"] == 1:
        return _eight_bits(apply_color_lut(frame.pixels, frame.dataset))
    if frame.pixels.ndim == 3:
        if kind not in ("RGB", "YBR_RCT", "YBR_ICT") or frame.pixels.shape[2] < 3:
            raise CannotDecode("photometric interpretation")
        return _eight_bits(frame.pixels[:, :, :3], frame.told.get("bits_stored", 8))
    grey = _grey(frame, window)
    inverse = kind == "MONOCHROME1" or frame.dataset.get("PresentationLUTShape") == "INVERSE"
    return numpy.asarray(255 - grey if inverse else grey, numpy.uint8)


def _eight_bits(samples: NDArray[Any], bits: int | None = None) -> NDArray[numpy.uint8]:
    bits = bits or samples.dtype.itemsize * 8
    if samples.dtype == numpy.uint8 and bits >= 8:
        return samples
    most = float(2**bits - 1)
    return numpy.asarray(numpy.rint(numpy.clip(samples, 0, most) * (255.0 / most)), numpy.uint8)


def _grey(frame: Frame, window: Window | None) -> NDArray[numpy.uint8]:
    dataset = frame.dataset
    values = numpy.asarray(apply_modality_lut(frame.pixels, dataset), numpy.float64)
    if window is None and _has_table(dataset):
        _settle_sign(dataset.VOILUTSequence[0], values)
        table = numpy.asarray(apply_voi(numpy.asarray(values, numpy.int64), dataset, index=0))
        return _eight_bits(table, int(dataset.VOILUTSequence[0].LUTDescriptor[2]))
    center, width, function = window or own_window(dataset) or _whole_range(frame, values)
    return windowed(values, center, width, function)


def _has_table(dataset: Dataset) -> bool:
    items = dataset.get("VOILUTSequence")
    return bool(items) and "LUTData" in items[0] and "LUTDescriptor" in items[0]


def _settle_sign(table: Dataset, values: NDArray[numpy.float64]) -> None:
    """Where a table begins is US for unsigned stored values, also where what comes of them is below 0 (PS3.3 C.11.2.1.1)."""
    entries, first, bits = table.LUTDescriptor
    if first > _MOST_SIGNED and values.min() < 0:
        table.LUTDescriptor = [entries, first - 2 * (_MOST_SIGNED + 1), bits]


def own_window(dataset: Dataset) -> Window | None:
    """The first window of the data set; None where it has none that can be used."""
    try:
        center, width = (_first(dataset.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
        function = _FUNCTIONS.get(str(dataset.get("VOILUTFunction") or "LINEAR"), LINEAR)
    except (TypeError, ValueError, IndexError):
        return None
    return (center, width, function) if is_window(width, function) and numpy.isfinite(center) else None


def is_window(width: float, function: str) -> bool:
    """PS3.3 C.11.2.1.2: at least 1 for LINEAR, more than 0 for the others."""
    return width >= 1 if function == LINEAR else width > 0


def _first(value: Any) -> float:
    return float(value[0] if hasattr(value, "__getitem__") and not isinstance(value, str) else value)


def _whole_range(frame: Frame, values: NDArray[numpy.float64]) -> Window:
    """From the least to the greatest value that is no padding; single bits are black and white, also where all are alike."""
    if frame.told.get("bits_stored") == 1 and "RescaleSlope" not in frame.dataset:
        return 0.5, 1.0, LINEAR_EXACT
    kept = values[numpy.isfinite(values) & ~_padding(frame)]
    if not kept.size:
        return 0.5, 1.0, LINEAR_EXACT
    least, most = float(kept.min()), float(kept.max())
    return (least + most) / 2, max(most - least, 1e-9), LINEAR_EXACT


def _padding(frame: Frame) -> NDArray[numpy.bool_]:
    value, limit = frame.dataset.get("PixelPaddingValue"), frame.dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return numpy.zeros(frame.pixels.shape, bool)
    ends = numpy.array([value, limit if isinstance(limit, int) else value])
    if frame.pixels.dtype.kind == "i":  # some writers tell it without its sign
        ends = ends.astype(frame.pixels.dtype)
    return numpy.asarray((frame.pixels >= ends.min()) & (frame.pixels <= ends.max()))


def windowed(values: NDArray[numpy.float64], center: float, width: float, function: str) -> NDArray[numpy.uint8]:
    """PS3.3 C.11.2.1.2.1 (linear), C.11.2.1.3.1 (sigmoid) and C.11.2.1.3.2 (linear exact), to 0..255."""
    if function == SIGMOID:
        exponent = numpy.clip(-4 * (values - center) / width, -700, 700)
        out = 255 / (1 + numpy.exp(exponent))
    elif function == LINEAR and width > 1:
        out = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    elif function == LINEAR:
        out = numpy.where(values > center - 0.5, 255.0, 0.0)
    else:
        out = ((values - center) / width + 0.5) * 255
    return numpy.asarray(numpy.rint(numpy.clip(numpy.nan_to_num(out), 0, 255)), numpy.uint8)
