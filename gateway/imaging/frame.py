"""One frame as an array: from the bytes of any transfer syntax that the installed codecs decode, and back into some."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.encoders.base import get_encoder
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from gateway.imaging.codestream import size_of
from gateway.model.dataset import Dataset

_KEYWORDS = ("FloatPixelData", "DoubleFloatPixelData")
# GDCM, which would be asked first, ends the process over an odd number of pixels of 8 bits.
_ENCODERS = {str(RLELossless): "pylibjpeg"}
_PARTIAL = ("YBR_PARTIAL_422", "YBR_PARTIAL_420")


class CannotDecode(Exception):
    """The bytes are no frame of that syntax and of these attributes, or nothing here decodes it."""


class Frame(NamedTuple):
    """The samples as (rows, columns) or (rows, columns, samples), chrominance turned into RGB; `told` are the image
    attributes that hold for them, by pydicom's names; `dataset` has the rest."""

    pixels: NDArray[Any]
    told: dict[str, Any]
    dataset: pydicom.Dataset


def attributes_of(attributes: Dataset, transfer_syntax: str) -> pydicom.Dataset:
    """The attributes as pydicom has them."""
    dataset = pydicom.Dataset.from_json({tag: one for tag, one in attributes.items() if "BulkDataURI" not in one})
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    return dataset


def decode(attributes: Dataset, transfer_syntax: str, data: bytes, *, as_rgb: bool = True) -> Frame:
    """One frame of an instance; native ones are little endian. Without `as_rgb` chrominance stays. Raises CannotDecode."""
    try:
        dataset = attributes_of(attributes, transfer_syntax)
        dataset.NumberOfFrames = 1
        syntax = dataset.file_meta.TransferSyntaxUID
        decoder = get_decoder(syntax)
        keyword = next((one for one in _KEYWORDS if one in dataset), "PixelData")
        _settle_chrominance(dataset, syntax, data)
        data = _in_low_bits(dataset, syntax, data)
        if syntax.is_encapsulated and syntax != RLELossless:
            _check_size(dataset, data)
        value = encapsulate([data]) if syntax.is_encapsulated else data + b"\0" * (len(data) % 2)
        vr = "OB" if syntax.is_encapsulated else "OW"
        dataset[keyword] = pydicom.DataElement(keyword, {"F": "OF", "D": "OD"}.get(keyword[0], vr), value)
        dataset[keyword].is_undefined_length = syntax.is_encapsulated
        pixels, told = decoder.as_array(dataset, index=0, raw=not as_rgb)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - codecs raise anything, with values in the text
        raise CannotDecode(type(error).__name__) from None
    if told["photometric_interpretation"] in _PARTIAL:
        raise CannotDecode("YBR_PARTIAL")
    if not as_rgb and told["photometric_interpretation"] == "YBR_FULL_422":
        told["photometric_interpretation"] = "YBR_FULL"  # each pixel has its own chrominance now
    return Frame(pixels, dict(told), dataset)


def _settle_chrominance(dataset: pydicom.Dataset, syntax: UID, data: bytes) -> None:
    """A node that decoded 4:2:2 for us gives whole samples and may go on calling them what they were: decoders give RGB."""
    if not syntax.is_encapsulated and dataset.get("PhotometricInterpretation") == "YBR_FULL_422":
        expected = int(get_expected_length(dataset))
        if len(data) >= expected // 2 * 3:
            dataset.PhotometricInterpretation = "RGB"


def _in_low_bits(dataset: pydicom.Dataset, syntax: UID, data: bytes) -> bytes:
    """Samples that older objects have in the high bits of their words (High Bit), where decoders look for them. Raises
    ValueError where the words are compressed."""
    high, stored = dataset.get("HighBit"), dataset.get("BitsStored")
    shift = high + 1 - stored if isinstance(high, int) and isinstance(stored, int) else 0
    if shift <= 0 or (syntax.is_encapsulated and syntax != RLELossless):
        return data
    if syntax == RLELossless:
        raise ValueError
    dataset.HighBit = stored - 1
    return (numpy.frombuffer(data, f"<u{dataset.BitsAllocated // 8}") >> shift).tobytes()


def _check_size(dataset: pydicom.Dataset, data: bytes) -> None:
    """Codecs decode what the frame says, and cut what comes to what the attributes say: other pixels than there are.
    Raises ValueError."""
    own = size_of(data)
    told = dataset.Rows, dataset.Columns, dataset.SamplesPerPixel
    if own and (own.rows or told[0], own.columns, own.samples) != told:
        raise ValueError


def native(frame: Frame) -> bytes:
    """The samples as Explicit VR Little Endian has them, by pixel; those of one bit packed (PS3.5 8.1.1)."""
    if frame.told["bits_allocated"] == 1:
        return numpy.packbits(frame.pixels.astype("u1").ravel(), bitorder="little").tobytes()
    pixels = frame.pixels
    return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()


def encode(frame: Frame, transfer_syntax: str) -> bytes:
    """The same samples in a lossless syntax (or JPEG Baseline, from 8 bits); `frame.told` then says how. Raises CannotDecode."""
    try:
        if transfer_syntax == JPEG2000Lossless and frame.told["photometric_interpretation"] == "RGB":
            frame.told["photometric_interpretation"] = "YBR_RCT"  # as the IODs want it (PS3.5 8.2.4); it loses nothing
        if transfer_syntax == JPEGBaseline8Bit:
            return _jpeg(frame)
        options = {key: value for key, value in frame.told.items() if key != "number_of_frames"}
        encoder = get_encoder(transfer_syntax)
        plugin = _ENCODERS.get(transfer_syntax, "")
        return bytes(encoder.encode(frame.pixels, **options, number_of_frames=1, encoding_plugin=plugin))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001
        raise CannotDecode(type(error).__name__) from None


def _jpeg(frame: Frame) -> bytes:
    from io import BytesIO

    from PIL import Image

    kind = frame.told["photometric_interpretation"]
    if frame.pixels.dtype != numpy.uint8 or frame.told["bits_allocated"] == 1 or kind == "PALETTE COLOR":
        raise ValueError
    buffer = BytesIO()
    # 4:2:2, as the photometric interpretation YBR_FULL_422 has it.
    Image.fromarray(frame.pixels, "YCbCr" if kind == "YBR_FULL" else None).save(
        buffer, "JPEG", quality=95, subsampling=1
    )
    return buffer.getvalue()
