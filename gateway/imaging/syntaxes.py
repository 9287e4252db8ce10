"""Which transfer syntaxes can be made of which: what is decoded, and what pixels are encoded into (PS3.5 A, PS3.18 8.7.3)."""

from __future__ import annotations

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

EXPLICIT = str(ExplicitVRLittleEndian)
NATIVE_SYNTAXES = frozenset(
    map(str, (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian))
)
RLE, BASELINE = str(RLELossless), str(JPEGBaseline8Bit)
LOSSLESS = (str(JPEG2000Lossless), str(JPEGLSLossless), RLE)
"""What instances and frames are encoded into: nothing is lost, so that an instance keeps its UID (PS3.3 C.7.6.1.1.5)."""
_JPEG = "1.2.840.10008.1.2.4."
_DECODED = frozenset(
    (RLE, *(_JPEG + end for end in ("50", "51", "57", "70", "80", "81", "90", "91", "201", "202", "203")))
)
ALWAYS_LOSSY = frozenset((BASELINE, _JPEG + "51"))


def can_decode(transfer_syntax: str) -> bool:
    """Whether frames in this syntax can be understood; videos, among others, cannot."""
    return transfer_syntax in NATIVE_SYNTAXES or transfer_syntax in _DECODED


def can_become(stored: str, asked: str) -> bool:
    """Whether an instance can be sent in another syntax than it is stored in, with nothing lost."""
    return asked in (EXPLICIT, *LOSSLESS) and can_decode(stored)
