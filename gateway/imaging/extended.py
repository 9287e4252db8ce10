"""Decodes JPEG Extended with 12 bits by GDCM, which pydicom leaves out (1.2.840.10008.1.2.4.51): a plug-in of its decoders."""

from __future__ import annotations

from pydicom.pixels.decoders.base import DecodeRunner, JPEGExtended12BitDecoder
from pydicom.uid import UID, JPEGExtended12Bit

try:
    import gdcm
except ImportError:
    gdcm = None

DECODER_DEPENDENCIES = {JPEGExtended12Bit: ("gdcm>=3.0.10",)}


def is_available(uid: str) -> bool:
    return gdcm is not None and uid in DECODER_DEPENDENCIES


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """One frame, 16 bits for each sample. Raises ValueError where it is no such frame."""
    fragments = gdcm.SequenceOfFragments.New()
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(src)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(str(runner.photometric_interpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    syntax = gdcm.TransferSyntax.GetTSType(str.__str__(runner.transfer_syntax))
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    bits = runner.bits_stored
    image.SetPixelFormat(
        gdcm.PixelFormat(runner.samples_per_pixel, runner.bits_allocated, bits, bits - 1, runner.pixel_representation)
    )
    samples: str | None = image.GetBuffer()
    if samples is None:
        raise ValueError("no JPEG Extended frame")
    return samples.encode("utf-8", "surrogateescape")


def register() -> None:
    """Adds it behind pydicom's own, which decode 8 bits."""
    if is_available(UID(JPEGExtended12Bit)) and "gateway" not in JPEGExtended12BitDecoder.available_plugins:
        JPEGExtended12BitDecoder.add_plugin("gateway", (__name__, "decode_frame"))
