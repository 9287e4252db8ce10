"""What stands before the data set of a DICOM file: its preamble and File Meta Information (PS3.10 7.1)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from struct import pack, unpack

from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from gateway import __version__
from gateway.wire.elements import EXPLICIT_LITTLE, Part10Error, is_vr, read_header

IMPLEMENTATION_CLASS_UID = "2.25.226656364850957201165073000524490319928"
IMPLEMENTATION_VERSION_NAME = f"IMGGATEWAY_{__version__}"[:16]
MAX_FILE_META = 1 << 20
_GROUPS = (b"\2\0", b"\x08\0", b"\0\x08")
"""With which group a file without preamble may begin: 0002, or 0008 in either byte order."""


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax: str) -> bytes:
    """An empty preamble, DICM and the File Meta Information of PS3.10 7.1, naming this gateway as the writer."""
    elements = b"".join(
        [
            pack("<HH2sHL2s", 2, 1, b"OB", 0, 2, b"\0\1"),
            _meta_element(0x02, b"UI", sop_class_uid),
            _meta_element(0x03, b"UI", sop_instance_uid),
            _meta_element(0x10, b"UI", transfer_syntax),
            _meta_element(0x12, b"UI", IMPLEMENTATION_CLASS_UID),
            _meta_element(0x13, b"SH", IMPLEMENTATION_VERSION_NAME),
        ]
    )
    return bytes(128) + b"DICM" + pack("<HH2sHL", 2, 0, b"UL", 4, len(elements)) + elements


def _meta_element(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", "replace")
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return pack("<HH2sH", 2, element, vr, len(value)) + value


async def read_file_meta(chunks: AsyncIterator[bytes]) -> tuple[bytes, int, int]:
    """(the bytes read so far, where the File Meta Information begins in them, where the data set begins)."""
    received = b""
    async for chunk in chunks:
        received += chunk
        offset = 132 if received[128:132] == b"DICM" else 0
        if len(received) < 140:
            continue
        if offset == 0 and received[:2] not in _GROUPS:
            raise Part10Error("not a DICOM file")
        end = _file_meta_end(received, offset)
        if end is not None and len(received) >= end + 8:
            return received, offset, end
        if len(received) > MAX_FILE_META + len(chunk):
            raise Part10Error("the File Meta Information has no end")
    raise Part10Error("the file ends before its data set")


def _file_meta_end(data: bytes, offset: int) -> int | None:
    """Where the elements of group 0002 end; None when more bytes are needed.

    The group length counts where it falls between elements: a deflated data set can look like group 0002.
    """
    at, announced = offset, -1
    while at != announced:
        header = read_header(data, at, EXPLICIT_LITTLE)
        if header is None:
            return None
        if header.tag >> 16 != 2:
            return at
        if header.tag == 0x00020000 and header.length == 4:
            value = data[at + 8 : at + 12]
            announced = at + 12 + unpack("<L", value)[0] if len(value) == 4 else -1
        at += header.size + header.length
    return at


def guessed_syntax(first: bytes) -> str:
    """The Transfer Syntax UID where none is given, from the first six bytes of the data set, as pydicom guesses it."""
    if not is_vr(first[4:6]):
        return ImplicitVRLittleEndian
    return ExplicitVRBigEndian if unpack("<H", first[:2])[0] >= 0x0400 else ExplicitVRLittleEndian
