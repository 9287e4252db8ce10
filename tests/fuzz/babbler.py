"""A DICOMweb node that answers every question by chance: rows, metadata and multipart bodies that are bent, cut or of another study."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Sequence
from random import Random
from typing import Any

from tests.fuzz.grammar import Held, _bent

_UIDS = re.compile(r"studies/([^/?]+)(?:/series/([^/?]+))?(?:/instances/([^/?]+))?")
_STATUSES = (200,) * 14 + (204, 206, 400, 404, 406, 429, 500, 503)


class Babbler:
    """Serves in a thread of its own; `url` is its DICOMweb root."""

    def __init__(self, seed: int, held: Sequence[Held]) -> None:
        self._chance, self._held = Random(f"babbler/{seed}"), held
        self._ready = threading.Event()
        self.url = ""

    def __enter__(self) -> Babbler:
        threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True).start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/dicom-web"
        self._ready.set()
        await self._over.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                answer, lasts = self._answer(head.decode("latin-1"))
                writer.write(answer)
                await writer.drain()
                if not lasts:
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    def _answer(self, head: str) -> tuple[bytes, bool]:
        """What is sent, and whether the connection goes on."""
        chance = self._chance
        path = head.split(" ")[1]
        type_, body = self._content(path)
        body = body if chance.random() < 0.5 else _bent(chance, body)
        status = chance.choice(_STATUSES)
        is_cut = chance.random() < 0.06
        length = len(body) if status != 204 else 0
        fields = [f"HTTP/1.1 {status} X", f"Content-Type: {type_}", f"Content-Length: {length + 9 * is_cut}"]
        if chance.random() < 0.05:
            fields.append(
                chance.choice(("Content-Encoding: gzip", "Retry-After: x", "Location: http://x/", "Warning: 299 x"))
            )
        return "\r\n".join(fields).encode() + b"\r\n\r\n" + (body if length else b""), not is_cut

    def _content(self, path: str) -> tuple[str, bytes]:
        chance, held = self._chance, self._chance.choice(self._held)
        asked = _UIDS.search(path)
        study, series, instance = asked.groups() if asked else (None, None, None)
        place = path.partition("?")[0]
        is_search = place.endswith(("/studies", "/series", "/instances", "/metadata"))
        if is_search or chance.random() < 0.05:
            rows = [self._row(study, series, instance, held) for _ in range(chance.choice((0, 1, 2, 5)))]
            return chance.choice(("application/dicom+json", "application/json", "text/html")), json.dumps(rows).encode()
        if "/frames/" in path or "/bulkdata/" in path:
            return self._multipart("application/octet-stream", [held.body[-512:]])
        bodies = [chance.choice(self._held).body for _ in range(chance.choice((1, 1, 2)))]
        return self._multipart("application/dicom", [held.body, *bodies])

    def _row(self, study: str | None, series: str | None, instance: str | None, held: Held) -> dict[str, Any]:
        chance = self._chance
        row: dict[str, Any] = {
            "0020000D": {"vr": "UI", "Value": [study or f"1.9.{chance.randrange(50)}"]},
            "0020000E": {"vr": "UI", "Value": [series or f"1.9.1.{chance.randrange(9)}"]},
            "00080018": {"vr": "UI", "Value": [instance or f"1.9.1.1.{chance.randrange(9)}"]},
            "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.7"]},
            "00100020": {"vr": "LO", "Value": [chance.choice((held.patient, "B1", ""))]},
            "00100010": {"vr": "PN", "Value": [{"Alphabetic": held.name}]},
            "00080020": {"vr": "DA", "Value": [held.day or "20200101"]},
            "00080061": {"vr": "CS", "Value": ["CT", "MR"]},
            "00080060": {"vr": "CS", "Value": ["CT"]},
            "00201208": {"vr": "IS", "Value": [1]},
        }
        for _ in range(chance.choice((0, 0, 1, 2))):
            row[chance.choice((*row, "00081111", "7FE00010", "0008", "x"))] = chance.choice(_ODD)
        return row

    def _multipart(self, type_: str, bodies: Sequence[bytes]) -> tuple[str, bytes]:
        chance = self._chance
        mark = b"--bound"
        parts = [mark + b"\r\nContent-Type: " + type_.encode() + b"\r\n\r\n" + body + b"\r\n" for body in bodies]
        closing = mark + b"--\r\n" if chance.random() < 0.9 else b""
        return f'multipart/related; type="{type_}"; boundary=bound', b"".join(parts) + closing


_ODD: tuple[Any, ...] = (
    None, 1, "x", [], {}, {"vr": "XX"}, {"vr": "PN", "Value": ["x"]}, {"vr": "PN", "Value": [{"Alphabetic": 5}]}, {"Value": [1]},
    {"vr": "DA", "Value": ["99999999"]}, {"vr": "DA", "Value": [20200101]}, {"vr": "UI", "Value": [None]}, {"vr": "UI", "Value": ["x y"]},
    {"vr": "IS", "Value": ["many"]}, {"vr": "SQ", "Value": [{"00100020": {"vr": "LO", "Value": [{}]}}]}, {"vr": "SQ", "Value": ["x"]},
    {"vr": "LO", "Value": "text"}, {"vr": "CS", "Value": [["CT"]]}, {"vr": "LO", "Value": [True, 1.5, None, {"a": 1}]},
    {"vr": "OB", "InlineBinary": "!!"}, {"vr": "OW", "BulkDataURI": "http://elsewhere.example/x"}, {"vr": "OW", "BulkDataURI": 5},
    {"vr": "TM", "Value": ["25:61"]}, {"vr": "IS", "Value": [10**30]}, {"vr": "DS", "Value": ["NaN"]}, {"vr": "SQ", "Value": None},
)  # fmt: skip
