"""DIMSE messages and the P-DATA that carries them: command sets as plain numbers and text, PDVs cut to size (PS3.7 6.3, 9.3)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from gateway.wire.elements import UNDEFINED

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
P_DATA, A_RELEASE_RQ, A_RELEASE_RP, A_ABORT = 0x04, 0x05, 0x06, 0x07
COMMAND, LAST = 0x01, 0x02
"""The bits of a message control header (PS3.8 E.2)."""
_PDV_HEADER = 6
SHORTEST_PDU = _PDV_HEADER + 1
"""The length of a P-DATA-TF that holds one byte of a message."""

RESPONSE = 0x8000
_GROUP_LENGTH, _AFFECTED_CLASS, _FIELD, _MESSAGE_ID, _RESPONDED_TO = 0x0000, 0x0002, 0x0100, 0x0110, 0x0120
_DESTINATION, _PRIORITY, _DATA_SET_TYPE, _STATUS = 0x0600, 0x0700, 0x0800, 0x0900
_AFFECTED_INSTANCE, _COMPLETED, _FAILED, _WITH_WARNING = 0x1000, 0x1021, 0x1022, 0x1023
_LOW, _DATA_SET, _NO_DATA_SET = 0x0002, 0x0001, 0x0101
_ELEMENT = struct.Struct("<HHL")


class Service(IntEnum):
    """The command fields of the requests (PS3.7 E.1)."""

    STORE = 0x0001
    GET = 0x0010
    FIND = 0x0020
    MOVE = 0x0021
    ECHO = 0x0030


class BadMessage(ValueError):
    """The bytes are no DIMSE message."""


@dataclass(slots=True)
class Command:
    """A received command set. What is missing is 0 or ''; a response without a status raises BadMessage."""

    elements: dict[int, bytes]

    @property
    def field(self) -> int:
        return self._number(_FIELD)

    @property
    def has_data_set(self) -> bool:
        return self._number(_DATA_SET_TYPE, _NO_DATA_SET) != _NO_DATA_SET

    @property
    def message_id(self) -> int:
        return self._number(_MESSAGE_ID)

    @property
    def sop_class_uid(self) -> str:
        return self._text(_AFFECTED_CLASS)

    @property
    def sop_instance_uid(self) -> str:
        return self._text(_AFFECTED_INSTANCE)

    @property
    def status(self) -> int:
        if len(self.elements.get(_STATUS, b"")) < 2:
            raise BadMessage("a response without a status")
        return self._number(_STATUS)

    @property
    def failed_suboperations(self) -> int:
        return self._number(_FAILED)

    @property
    def sent_suboperations(self) -> int:
        """Those whose instance was stored, with a warning or without."""
        return self._number(_COMPLETED) + self._number(_WITH_WARNING)

    def _number(self, element: int, default: int = 0) -> int:
        value = self.elements.get(element, b"")
        return int.from_bytes(value[:2], "little") if len(value) >= 2 else default

    def _text(self, element: int) -> str:
        return self.elements.get(element, b"").decode("ascii", "replace").strip(" \0")


@dataclass(slots=True)
class Message:
    """A received message: its command, the presentation context it came in, and its data set's bytes, if it has one."""

    command: Command
    context_id: int
    data_set: bytes | None


def command_of(encoded: bytes) -> Command:
    """A command set from its bytes, always Implicit VR Little Endian (PS3.7 6.3.1). Raises BadMessage."""
    elements: dict[int, bytes] = {}
    at, size = 0, len(encoded)
    while at < size:
        if at + 8 > size:
            raise BadMessage("a truncated command set")
        group, element, length = _ELEMENT.unpack_from(encoded, at)
        at += 8 + length
        if group or at > size:
            raise BadMessage("no command set")
        elements[element] = encoded[at - length : at]
    return Command(elements)


def request(
    service: Service, sop_class: str, message_id: int, *, data_set: bool, instance: str = "", destination: str = ""
) -> bytes:
    """The command set of a request."""
    elements: dict[int, int | str] = {
        _AFFECTED_CLASS: sop_class,
        _FIELD: int(service),
        _MESSAGE_ID: message_id,
        _DATA_SET_TYPE: _DATA_SET if data_set else _NO_DATA_SET,
    }
    if service is not Service.ECHO:
        elements[_PRIORITY] = _LOW
    if destination:
        elements[_DESTINATION] = destination
    if instance:
        elements[_AFFECTED_INSTANCE] = instance
    return _encoded(elements)


def store_response(asked: Command, status: int) -> bytes:
    """The command set that answers a C-STORE request (PS3.7 Table 9.3-2)."""
    return _encoded(
        {
            _AFFECTED_CLASS: asked.sop_class_uid,
            _FIELD: Service.STORE | RESPONSE,
            _RESPONDED_TO: asked.message_id,
            _DATA_SET_TYPE: _NO_DATA_SET,
            _STATUS: status,
            _AFFECTED_INSTANCE: asked.sop_instance_uid,
        }
    )


def _encoded(elements: dict[int, int | str]) -> bytes:
    body = b"".join(_element(element, elements[element]) for element in sorted(elements))
    return _ELEMENT.pack(0, _GROUP_LENGTH, 4) + struct.pack("<L", len(body)) + body


def _element(element: int, value: int | str) -> bytes:
    if isinstance(value, int):
        return _ELEMENT.pack(0, element, 2) + struct.pack("<H", value)
    text = value.encode("ascii", "replace")
    padding = (b" " if element == _DESTINATION else b"\0") if len(text) % 2 else b""
    return _ELEMENT.pack(0, element, len(text) + len(padding)) + text + padding


def pdus(context_id: int, kind: int, encoded: bytes, most: int) -> Iterator[bytes]:
    """P-DATA-TF PDUs of a whole command or data set, none longer than `most` (PS3.8 9.3.1, D.1)."""
    room = most - _PDV_HEADER
    for start in range(0, len(encoded), room):
        piece = encoded[start : start + room]
        yield pdu(context_id, kind | (LAST if start + room >= len(encoded) else 0), piece)


def pdu(context_id: int, control: int, piece: bytes) -> bytes:
    """One P-DATA-TF PDU with one PDV."""
    size = len(piece) + 2
    return struct.pack(">BBLLBB", P_DATA, 0, size + 4, size, context_id, control) + piece


def identifier_of(data_set: bytes, transfer_syntax: str) -> Dataset:
    """An identifier from its bytes. Raises BadMessage for one that is cut short, and whatever broken ones provoke in pydicom."""
    identifier = read_dataset(BytesIO(data_set), transfer_syntax == IMPLICIT, True)
    last = next(reversed(list(identifier.values())), None)
    # pydicom takes what is left for the last value, and half of an id may be another patient's.
    if isinstance(last, RawDataElement) and last.length != UNDEFINED:
        end = last.value_tell + last.length
        if end > len(data_set) or data_set[end:].strip(b"\0"):
            raise BadMessage("an identifier that is cut short")
    return identifier


def encoded_identifier(identifier: Dataset, transfer_syntax: str) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, transfer_syntax == IMPLICIT
    write_dataset(buffer, identifier)
    return buffer.getvalue()
