"""The table of the fault matrix: every fault, what it is on each adapter, and why the cells that are missing cannot exist."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tests.faults.proxy import Fault
from tests.faults.ward import Ward

ADAPTERS = ("dicomweb", "dimse", "fhir", "files")
OPERATIONS = ("search", "locate", "metadata", "retrieve")
"""`locate` is what only a FHIR server is asked for: the address of the DICOMweb service that has the pixels."""

Bringing = Callable[[Ward, str], AbstractContextManager[Any]]
UNREACHABLE, TIMEOUT, BUSY, REFUSED, PROTOCOL = "GW201", "GW202", "GW203", "GW204", "GW205"
_HTTP, _NETWORK = ("dicomweb", "fhir"), ("dicomweb", "dimse", "fhir")


@dataclass(frozen=True)
class Row:
    """One fault. `codes` are those that the node may be named with; with none the answer is whole in spite of the fault.

    `by` is how it is brought about, by adapter. `breaks`: it may come after the first byte of a retrieve, whose
    connection then breaks. `over_tls`: it is one of a ward whose node is reached over TLS.
    """

    codes: frozenset[str]
    by: Mapping[str, Bringing]
    breaks: bool = False
    over_tls: bool = False

    @property
    def is_silence(self) -> bool:
        """Whether only a deadline ends it."""
        return self.codes == {TIMEOUT}


def _row(*codes: str, by: Mapping[str, Bringing], breaks: bool = False, over_tls: bool = False) -> Row:
    return Row(frozenset(codes), by, breaks, over_tls)


def _wire(*adapters: str, **fault: Any) -> dict[str, Bringing]:
    return dict.fromkeys(adapters, lambda ward, operation: ward.on_the_wire(Fault(**fault), operation))


def _peer(*adapters: str, **options: Any) -> dict[str, Bringing]:
    return dict.fromkeys(adapters, lambda ward, operation: ward.in_the_peer(options, operation))


FAULTS: dict[str, Row] = {
    "refuse": _row(UNREACHABLE, by=_wire(*_NETWORK, kind="refuse")),
    "black hole": _row(TIMEOUT, by=_wire(*_NETWORK, kind="black hole")),
    "open connections freeze": _row(TIMEOUT, by=_wire(*_NETWORK, kind="freeze")),
    "slow start": _row(TIMEOUT, by=_wire(*_NETWORK, kind="slow start")),
    "slow drip": _row(TIMEOUT, by=_wire(*_NETWORK, kind="slow drip", piece=8, delay=0.1)),
    "slow but moving": _row(by=_wire(*_NETWORK, kind="slow drip", piece=8192, delay=0.03)),
    "reset mid-stream": _row(UNREACHABLE, PROTOCOL, by=_wire(*_NETWORK, kind="reset"), breaks=True),
    "Content-Length cut short": _row(PROTOCOL, by=_wire(*_HTTP, kind="short length"), breaks=True),
    "no last chunk": _row(PROTOCOL, by=_wire(*_HTTP, kind="no last chunk"), breaks=True),
    "close-delimited ended early": _row(PROTOCOL, by=_wire(*_HTTP, kind="close delimited"), breaks=True),
    "PDU cut in the middle": _row(UNREACHABLE, PROTOCOL, by=_wire("dimse", kind="cut pdu"), breaks=True),
    "association aborted": _row(PROTOCOL, by=_wire("dimse", kind="abort"), breaks=True),
    "association limit reached": _row(BUSY, by=_wire("dimse", kind="reject")),
    "server fails": _row(
        PROTOCOL, REFUSED, BUSY, by=_peer(*_HTTP, status_500=True) | _peer("dimse", failure=0xA700)
    ),
    "malformed JSON": _row(PROTOCOL, by=_peer(*_HTTP, garbage_json=True)),
    "malformed DICOM": _row(PROTOCOL, by=_wire(*_NETWORK, kind="scramble"), breaks=True),
    "values that their VR forbids": _row(PROTOCOL, by=_peer("dimse", garbage=True)),
    "duplicate rows": _row(by=_peer(*_HTTP, duplicates=True) | _peer("dimse", one_row_per_instance=True)),
    "filters ignored": _row(
        by=_peer("dicomweb", ignores_keys=frozenset({"StudyDate"}))
        | _peer("dimse", ignored_keys=frozenset({"StudyDate", "StudyTime"}))
        | _peer("fhir", ignores_parameters=frozenset({"started"}))
    ),
    "another patient's study": _row(PROTOCOL, by=_peer(*_NETWORK, foreign_study=True)),
    "200 MB of JSON": _row(PROTOCOL, TIMEOUT, BUSY, by=_wire(*_HTTP, kind="flood")),
    "redirect to another host": _row(REFUSED, by=dict.fromkeys(_HTTP, lambda ward, operation: ward.with_redirect(operation))),
    "expired certificate": _row(
        REFUSED, UNREACHABLE, by=dict.fromkeys(_NETWORK, lambda ward, _: ward.with_expired_certificate()), over_tls=True
    ),
    "directory gone": _row(UNREACHABLE, by={"files": lambda ward, _: ward.without_directory()}),
    "directory unreadable": _row(UNREACHABLE, by={"files": lambda ward, _: ward.with_unreadable_directory()}),
    "file truncated": _row(UNREACHABLE, PROTOCOL, by={"files": lambda ward, _: ward.with_truncated_file()}, breaks=True),
}  # fmt: skip

_NOT_BY_FILES = "a directory has no connections, servers or answers"
_NOT_BY_DIMSE = "DIMSE has no HTTP, JSON or redirects"
_NOT_BY_HTTP = "HTTP has no associations, PDUs or VRs of its own"
_ROWS_ONLY = "is about the rows of searches"
_NO_OTHER_PLACE = "the node itself has the pixels"
_SAME_SEARCH = "the search that locates is the one that finds: row 'search'"

IMPOSSIBLE: list[tuple[str, str, str, str]] = [
    # fault, adapter, operation ('*' is every one), reason
    ("*", "dicomweb", "locate", _NO_OTHER_PLACE),
    ("*", "dimse", "locate", _NO_OTHER_PLACE),
    ("*", "files", "locate", _NO_OTHER_PLACE),
    *((name, "files", "*", _NOT_BY_FILES) for name, row in FAULTS.items() if "files" not in row.by),
    *((name, "dimse", "*", _NOT_BY_DIMSE) for name, row in FAULTS.items() if "dimse" not in row.by),
    *((name, each, "*", _NOT_BY_HTTP) for name, row in FAULTS.items() for each in _HTTP if each not in row.by),
    ("malformed JSON", "*", "retrieve", "instances are not JSON"),
    ("malformed DICOM", "dicomweb", "search", "rows are JSON"),
    ("malformed DICOM", "dicomweb", "metadata", "metadata is JSON"),
    ("malformed DICOM", "fhir", "search", "rows are JSON"),
    ("malformed DICOM", "fhir", "locate", "addresses are JSON"),
    ("malformed DICOM", "fhir", "metadata", "metadata is JSON"),
    *((name, "*", operation, _ROWS_ONLY) for name in ("duplicate rows", "filters ignored", "values that their VR forbids")
      for operation in ("locate", "metadata", "retrieve")),
    ("another patient's study", "dimse", "search", "a C-FIND by date names no study that could be mistaken"),
    ("another patient's study", "dicomweb", "search", "a search by date names no study that could be mistaken"),
    ("another patient's study", "fhir", "search", "a search by date names no study that could be mistaken"),
    ("200 MB of JSON", "*", "retrieve", "instances are not JSON"),
    *((name, "fhir", "locate", _SAME_SEARCH) for name, row in FAULTS.items()
      if row.over_tls or name in ("refuse", "server fails", "malformed JSON", "another patient's study",
                                  "redirect to another host")),
    *((name, "fhir", operation, "the proxy before its pixels speaks HTTP without TLS: see dicomweb")
      for name, row in FAULTS.items() if row.over_tls for operation in ("metadata", "retrieve")),
    ("file truncated", "files", "metadata", "metadata lies before the pixels, which are cut off"),
    ("file truncated", "files", "search", "a search reads the index, not the files"),
]  # fmt: skip


def why_not(fault: str, adapter: str, operation: str) -> str:
    """Why there is no such cell; '' where there is one."""
    for *key, reason in IMPOSSIBLE:
        if all(mine in ("*", asked) for mine, asked in zip(key, (fault, adapter, operation), strict=True)):
            return reason
    return ""


def cells(*, over_tls: bool) -> list[tuple[str, str, str]]:
    return [
        (adapter, fault, operation)
        for adapter in ADAPTERS
        for fault, row in FAULTS.items()
        for operation in OPERATIONS
        if row.over_tls == over_tls and not why_not(fault, adapter, operation)
    ]
