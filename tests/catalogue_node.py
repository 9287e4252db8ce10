"""Lean DICOMweb archives that only search, several in one process: `catalogue_node.py DIRECTORY`.

The directory holds `settings.json` (`ports`, one a node, `maximum`, `delay`) and one `PORT.jsonl` per node. Rows are
rendered before the first question, and searched while the delay runs: a node's own time is its delay.
QIDO-RS as archives have it: studies by exact or ranged StudyDate and StudyTime, ModalitiesInStudy, PatientID,
PatientName and AccessionNumber with wildcards, lists of StudyInstanceUIDs, `limit` and `offset`; `includefield` changes
nothing, other keys are not looked at. A node with a `maximum` gives that many rows, whatever was asked, and says nothing.

It measures itself: a question's clock runs from its last byte read to the last byte of its answer handed to the system.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import sys
import time
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

_NAMES = {
    "0020000D": "StudyInstanceUID",
    "00080020": "StudyDate",
    "00080030": "StudyTime",
    "00080050": "AccessionNumber",
    "00080061": "ModalitiesInStudy",
    "00100010": "PatientName",
    "00100020": "PatientID",
}
_TEXTS = ("AccessionNumber", "PatientID", "PatientName")
_WHATEVER = ("", "*")
_UIDS = re.compile(r"[,\\]")
Test = Callable[["Row"], bool]


@dataclass(frozen=True, slots=True)
class Row:
    """One study: what it is found by, and its data set as text."""

    uid: str
    date: str
    time: str
    modalities: tuple[str, ...]
    texts: tuple[str, str, str]
    body: bytes


@dataclass
class Counts:
    """What a node was asked since it was last reset; `seconds` is the clock of each question, `kept` those it remembers."""

    requests: int = 0
    rows: int = 0
    seconds: list[float] = field(default_factory=list)


class Archive:
    """The rows of one node in the order it was given them, with an index of dates, patients, studies and modalities."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        dated = sorted((row.date, position) for position, row in enumerate(rows) if row.date)
        self._dates, self._dated = [date for date, _ in dated], [position for _, position in dated]
        self._by: dict[str, dict[str, list[int]]] = {
            name: defaultdict(list) for name in ("StudyInstanceUID", "PatientID", "ModalitiesInStudy")
        }
        for position, row in enumerate(rows):
            self._by["StudyInstanceUID"][row.uid].append(position)
            self._by["PatientID"][row.texts[1]].append(position)
            for modality in row.modalities:
                self._by["ModalitiesInStudy"][modality].append(position)

    def find(self, keys: dict[str, str], most: int | None = None) -> Sequence[Row]:
        """The rows that fit, in the archive's order; no more than `most` are looked for."""
        keys = {name: value for name, value in keys.items() if value not in _WHATEVER}
        tests = _tests(keys)
        chosen: Iterable[Row] = self.rows
        positions = self._indexed(keys)
        if positions is not None:
            chosen = (self.rows[position] for position in sorted(positions))
        return list(islice((row for row in chosen if all(test(row) for test in tests)), most))

    def _indexed(self, keys: dict[str, str]) -> list[int] | None:
        """The positions that the smallest index leaves; None when no key has one."""
        found = []
        for name, index in self._by.items():
            if name in keys and not _is_wild(keys[name]):
                wanted = set(_UIDS.split(keys[name]))
                found.append([position for value in wanted for position in index.get(value, ())])
        if "StudyDate" in keys:
            low, high = _span(keys["StudyDate"])
            found.append(self._dated[bisect_left(self._dates, low) : bisect_right(self._dates, high or "99999999")])
        return list(set(min(found, key=len))) if found else None


def _tests(keys: dict[str, str]) -> list[Test]:
    date, time_ = keys.get("StudyDate", ""), keys.get("StudyTime", "")
    if "-" in date and "-" in time_:
        tests = [_in_span(_span(date), _span(time_))]
    else:
        tests = ([_on(*_span(date))] if date else []) + ([_at(time_)] if time_ else [])
    if "StudyInstanceUID" in keys:
        tests.append(_one_of(frozenset(_UIDS.split(keys["StudyInstanceUID"]))))
    if "ModalitiesInStudy" in keys:
        tests.append(_with_modality(_pattern(keys["ModalitiesInStudy"])))
    return tests + [_with_text(place, keys[name]) for place, name in enumerate(_TEXTS) if name in keys]


def _in_span(dates: tuple[str, str], times: tuple[str, str]) -> Test:
    """A range of dates and one of times are one span of time (PS3.18 8.3.4.1)."""
    first = dates[0] and dates[0] + _padded(times[0], "0")
    last = dates[1] and dates[1] + _padded(times[1], "9")
    return lambda row: _within(row.date and row.time and row.date + _padded(row.time, "0"), first, last)


def _on(first: str, last: str) -> Test:
    return lambda row: _within(row.date, first, last)


def _at(wanted: str) -> Test:
    """The end of a range takes in all of its last unit: '-10' holds 10:59."""
    first, last = _span(wanted)
    low, high = _padded(first, "0"), _padded(last, "9" if "-" in wanted else "0")
    return lambda row: _within(row.time and _padded(row.time, "0"), low, high)


def _one_of(uids: frozenset[str]) -> Test:
    return lambda row: row.uid in uids


def _with_modality(fits: Callable[[str], Any]) -> Test:
    return lambda row: any(map(fits, row.modalities))


def _with_text(place: int, wanted: str) -> Test:
    fits = _pattern(wanted, folded=_TEXTS[place] == "PatientName")
    return lambda row: bool(fits(row.texts[place]))


def _is_wild(value: str) -> bool:
    return "*" in value or "?" in value


def _span(value: str) -> tuple[str, str]:
    """'a-b', 'a-', '-b' or 'a' as (first, last)."""
    first, dash, last = value.partition("-")
    return first, last if dash else first


def _padded(moment: str, fill: str) -> str:
    digits = moment.replace(":", "").replace(".", "")
    return digits.ljust(12, fill)


def _within(value: str, first: str, last: str) -> bool:
    return bool(value) and value >= first and (not last or value <= last)


def _pattern(wanted: str, *, folded: bool = False) -> Callable[[str], Any]:
    text = "".join({"*": ".*", "?": "."}.get(char) or re.escape(char) for char in wanted)
    return re.compile(text, re.DOTALL | (re.IGNORECASE if folded else 0)).fullmatch


@dataclass
class Node:
    """One archive with what it lets through: `maximum` rows an answer, `delay` seconds before each."""

    archive: Archive
    maximum: int | None
    delay: float
    counts: Counts = field(default_factory=Counts)

    def answer(self, target: str) -> tuple[int, bytes, int]:
        """(status, body, rows) of a GET. `/counts`, `/reset` and `/change` are for the one who measures."""
        address = urlsplit(target)
        steps = address.path.strip("/").split("/")
        if steps == ["studies"]:
            rows = self._page(dict(parse_qsl(address.query, keep_blank_values=True)))
            return 200, b"[" + b",".join([row.body for row in rows]) + b"]", len(rows)
        if steps[0] == "studies" and steps[-1] in ("series", "instances"):
            return self._below(steps[1], steps[3] if len(steps) == 5 else "", steps[-1] == "instances")
        if steps == ["counts"]:
            return 200, json.dumps(asdict(self.counts)).encode(), 0
        if steps == ["reset"]:
            self.counts = Counts()
            return 200, b"{}", 0
        if steps == ["change"]:
            self.maximum, self.delay = json.loads(dict(parse_qsl(address.query))["to"])
            return 200, b"{}", 0
        return 400, b"", 0

    def _page(self, query: dict[str, str]) -> Sequence[Row]:
        keys = {_NAMES.get(name, name): value for name, value in query.items()}
        limit = int(query.get("limit", len(self.archive.rows)))
        if self.maximum is not None:
            return self.archive.find(keys, min(limit, self.maximum))
        offset = int(query.get("offset", 0))
        return self.archive.find(keys, offset + limit)[offset:]

    def _below(self, study: str, series: str, is_instances: bool) -> tuple[int, bytes, int]:
        """One series a modality, one instance a series."""
        found = self.archive.find({"StudyInstanceUID": study})
        rows = []
        for number, modality in enumerate(found[0].modalities if found else (), 1):
            below = {
                "00080060": {"vr": "CS", "Value": [modality]},
                "0020000D": {"vr": "UI", "Value": [study]},
                "0020000E": {"vr": "UI", "Value": [f"{study}.{number}"]},
                "00201209": {"vr": "IS", "Value": [1]},
            }
            if is_instances:
                below["00080018"] = {"vr": "UI", "Value": [f"{study}.{number}.1"]}
            if series in ("", f"{study}.{number}"):
                rows.append(below)
        return (200, json.dumps(rows).encode(), len(rows)) if found else (404, b"", 0)


class Connection(asyncio.Protocol):
    """One keep-alive connection; a question at a time."""

    def __init__(self, node: Node) -> None:
        self._node, self._received = node, b""
        self._began, self._is_counted, self._timer = 0.0, False, None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(0)
        raw = transport.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._received.endswith(b"\r\n\r\n"):
            return
        self._began = time.perf_counter()
        target = self._received.split(b" ", 2)[1].decode("latin-1")
        self._received = b""
        self._is_counted = not target.startswith(("/counts", "/reset", "/change"))
        answer = self._answer(target)
        # The search is a part of the delay: a process has several nodes, and one would wait for the searches of the others.
        left = self._node.delay - (time.perf_counter() - self._began) if self._is_counted else 0
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(left, self._give, answer)
        else:
            self._give(answer)

    def _answer(self, target: str) -> bytes:
        status, body, rows = self._node.answer(target)
        if self._is_counted:
            self._node.counts.requests += 1
            self._node.counts.rows += rows
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/dicom+json\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def _give(self, answer: bytes) -> None:
        self._transport.write(answer)
        if not self._transport.get_write_buffer_size():
            self.resume_writing()

    def pause_writing(self) -> None:
        """Nothing more is written before the next question anyway."""

    def resume_writing(self) -> None:
        """The last byte is with the system."""
        if self._is_counted:
            self._node.counts.seconds.append(time.perf_counter() - self._began)
            self._is_counted = False


def read_rows(path: Path) -> list[Row]:
    rows = []
    for line in path.read_bytes().splitlines():
        found = json.loads(line)
        texts = tuple(_text(found, tag) for tag in ("00080050", "00100020", "00100010"))
        rows.append(
            Row(
                _text(found, "0020000D"),
                _text(found, "00080020"),
                _text(found, "00080030"),
                tuple(found.get("00080061", {}).get("Value", ())),
                texts,  # type: ignore[arg-type]
                line,
            )
        )
    return rows


def _text(row: dict[str, Any], tag: str) -> str:
    value = next(iter(row.get(tag, {}).get("Value", ())), "")
    return str(value.get("Alphabetic", "") if isinstance(value, dict) else value)


async def serve(directory: Path) -> None:
    settings = json.loads((directory / "settings.json").read_text())
    loop = asyncio.get_running_loop()
    nodes = [
        (port, Node(Archive(read_rows(directory / f"{port}.jsonl")), settings["maximum"], settings["delay"]))
        for port in settings["ports"]
    ]
    for port, node in nodes:
        await loop.create_server(lambda node=node: Connection(node), "127.0.0.1", port, backlog=512)  # type: ignore[misc]
    await asyncio.Event().wait()


if __name__ == "__main__":
    run = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        run = uvloop.run
    run(serve(Path(sys.argv[1])))
