"""Learns from a node's own answers what it does otherwise than PS3.18 says; each question costs it one row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pydicom.datadict import tag_for_keyword

from gateway.adapters.dicomweb import qido as qido
from gateway.adapters.http.client import HttpClient, JsonAnswer
from gateway.errors import NodeProtocolError
from gateway.model.dataset import Dataset, text
from gateway.model.query import Ref
from gateway.model.seam import Probe
from gateway.model.vocabulary import INSTANCE_UID, PATIENT_NAME, SERIES_UID, STUDY_UID
from gateway.wire.foreign import sanitize

ANSWERS_204 = "answers-204"
NO_ANY_SYNTAX = "no-transfer-syntax-any"
NO_METADATA = "no-metadata"
NO_FRAMES = "no-frames"
DICOM_JSON = "application/dicom+json"

_WORDS = frozenset(
    {
        ANSWERS_204, NO_ANY_SYNTAX, NO_METADATA, NO_FRAMES, qido.NO_PERCENT_DECODING, qido.IGNORES_HEX_TAGS, qido.IGNORES_LIMIT,
        qido.IGNORES_OFFSET, qido.NO_RELATIONAL, qido.FOLDS_NAMES, qido.CASE_SENSITIVE_NAMES, qido.FUZZY_NAMES,
    }
)  # fmt: skip
_ROW_CEILING = 2 * 1024 * 1024
_AT_ONCE = 4
# Values that no study has: a node that finds one with them does not look at the key.
_NOBODY = {
    "StudyInstanceUID": "2.25.329800735698586629295641978511506172918",
    "StudyDate": "18581117-18581118",
    "PatientID": "~NOBODY~2PB1EX~",
    "AccessionNumber": "~NOBODY~2PB1",
    "ModalitiesInStudy": "ZZ",
    "PatientName": "~NOBODY~2PB1EX~",
}
_ACCENTED = str.maketrans("acdeilnorsuyzACDEILNORSUYZ", "áčđéíłñøřšüýžÁČĐÉÍŁÑØŘŠÜÝŽ")
_STROKED = frozenset("đłøĐŁØ")  # do not decompose: a node that folds these folds what decomposes, too


def is_quirk(word: str) -> bool:
    """Whether a DICOMweb node can have it; of any attribute it can be said that a node ignores it."""
    keyword = word.removeprefix(qido.IGNORES_KEY)
    return word in _WORDS or (keyword != word and tag_for_keyword(keyword) is not None)


@dataclass(frozen=True, slots=True)
class Learned:
    """`matches` are the keys the node looked at. Not `sure`: the node holds no study to learn from."""

    quirks: frozenset[str]
    matches: tuple[str, ...] = ()
    sure: bool = True


class Questions:
    """Asks searches of one node, at most four at once. A refused question is an answer, too: None."""

    def __init__(self, http: HttpClient, prefix: str) -> None:
        self._http, self._prefix = http, prefix
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def url(self, resource: str, query: str = "") -> str:
        return self._http.url(f"{self._prefix}/{resource}" if self._prefix else resource, query)

    async def ask(self, resource: str, query: str) -> JsonAnswer | None:
        """None for a status that says no, an answer that is none, and one that a limit should have kept small."""
        try:
            async with self._turns:
                return await self._http.get_json(self.url(resource, query), accept=DICOM_JSON, ceiling=_ROW_CEILING)
        except NodeProtocolError:
            return None

    async def rows(self, resource: str, query: str) -> list[Dataset] | None:
        answer = await self.ask(resource, query)
        return None if answer is None else _rows(answer.document)

    async def finds(self, query: str) -> bool | None:
        rows = await self.rows("studies", query + "&limit=1")
        return None if rows is None else bool(rows)


def _rows(document: Any) -> list[Dataset] | None:
    if document is None:
        return []
    try:
        return [sanitize(row) for row in document] if isinstance(document, list) else None
    except ValueError:
        return None


async def learn(http: HttpClient, prefix: str) -> Learned:
    """About fifteen searches. Raises NodeError when the node does not answer the first."""
    questions = Questions(http, prefix)
    known = await questions.rows("studies", "limit=2")
    if not known:
        return Learned(frozenset(), sure=False)
    tests: list[Awaitable[set[str]]] = [
        _decoding(questions, text(known[0], STUDY_UID)),
        _relational(questions),
        _nothing_found(questions),
        _hex_tags(questions),
        _names(questions, known[0]),
        _paging(questions, known),
        *(_key(questions, keyword) for keyword in _NOBODY),
    ]
    found: set[str] = set().union(*await asyncio.gather(*tests))
    if qido.IGNORES_KEY + "PatientName" in found:
        found -= {qido.FOLDS_NAMES}
    matches = tuple(keyword for keyword in _NOBODY if qido.IGNORES_KEY + keyword not in found)
    return Learned(frozenset(found), matches)


async def _decoding(questions: Questions, study: str) -> set[str]:
    """A UID with its dots percent-encoded is the same UID to everybody who decodes."""
    plain = await questions.finds(f"StudyInstanceUID={study}")
    encoded = await questions.finds(f"StudyInstanceUID={study.replace('.', '%2E')}")
    return {qido.NO_PERCENT_DECODING} if plain and not encoded else set()


async def _key(questions: Questions, keyword: str) -> set[str]:
    found = await questions.finds(f"{keyword}={_NOBODY[keyword]}")
    return {qido.IGNORES_KEY + keyword} if found else set()


async def _hex_tags(questions: Questions) -> set[str]:
    found = await questions.finds(f"0020000D={_NOBODY['StudyInstanceUID']}")
    return set() if found is False else {qido.IGNORES_HEX_TAGS}


async def _relational(questions: Questions) -> set[str]:
    """/series without a study is optional for a node that fronts a DIMSE archive (PS3.18 10.6.1)."""
    return {qido.NO_RELATIONAL} if await questions.rows("series", "limit=1") is None else set()


async def _nothing_found(questions: Questions) -> set[str]:
    answer = await questions.ask("studies", f"StudyInstanceUID={_NOBODY['StudyInstanceUID']}&limit=1")
    return {ANSWERS_204} if answer is not None and answer.status == 204 else set()


async def _names(questions: Questions, row: Dataset) -> set[str]:
    """Asks for a known study by its patient's name in other letters: the study UID keeps the answer to that one row."""
    name, study = text(row, PATIENT_NAME).partition("=")[0], text(row, STUDY_UID)
    if not name.isascii() or name.swapcase() == name:
        return set()
    accented = name.translate(_ACCENTED)
    same, swapped, folded = [
        await questions.finds(f"StudyInstanceUID={study}&PatientName={quote(one.replace('^', '*'), safe='*')}")
        for one in (name, name.swapcase(), accented)
    ]
    if same and not swapped:
        return {qido.CASE_SENSITIVE_NAMES}
    return {qido.FOLDS_NAMES} if same and folded and _STROKED & set(accented) else set()


async def _paging(questions: Questions, known: list[Dataset]) -> set[str]:
    found = {qido.IGNORES_LIMIT} if len(known) > 2 else set()
    if len(known) > 1:
        second = await questions.rows("studies", "limit=1&offset=1")
        if second and text(second[0], STUDY_UID) == text(known[0], STUDY_UID):
            found.add(qido.IGNORES_OFFSET)
    return found


async def examine(http: HttpClient, qido_prefix: str, wado_prefix: str, learned: Learned) -> Probe:
    """What the node serves, tried on one instance it has, and the lines an administrator would write about it."""
    started = time.monotonic()
    first = await http.get_json(Questions(http, qido_prefix).url("studies", "limit=1"), accept=DICOM_JSON)
    latency = time.monotonic() - started
    capabilities, quirks = ["find"], set(learned.quirks)
    ref = await _any_instance(Questions(http, qido_prefix), first)
    if ref is not None:
        served = await _served(http, wado_prefix, ref)
        capabilities += [name for name, works in served.items() if works and not name.startswith("no-")]
        quirks |= {name for name, holds in served.items() if holds and name.startswith("no-")}
    found = tuple(sorted(quirks))
    return Probe(
        product=await _product(http, wado_prefix, first),
        capabilities=tuple(capabilities),
        quirks=found,
        advice=tuple(_advice(found, learned)),
        latency=latency,
        details={"matches": " ".join(learned.matches)},
    )


async def _any_instance(questions: Questions, first: JsonAnswer) -> Ref | None:
    studies = _rows(first.document) or []
    if not studies or not (study := text(studies[0], STUDY_UID)):
        return None
    series = await questions.rows(f"studies/{study}/series", "limit=1") or [{}]
    series_uid = text(series[0], SERIES_UID)
    instances = await questions.rows(f"studies/{study}/series/{series_uid}/instances", "limit=1") or [{}]
    instance = text(instances[0], INSTANCE_UID)
    return Ref(study, series_uid, instance) if series_uid and instance else None


async def _served(http: HttpClient, prefix: str, ref: Ref) -> dict[str, bool]:
    """Words for capabilities and words for what is missing; nothing is read but the heads of the answers."""
    base = f"{prefix}/{ref.path}" if prefix else ref.path
    any_syntax = await _status(http, base, 'multipart/related; type="application/dicom"; transfer-syntax=*')
    plain = any_syntax or await _status(http, base, 'multipart/related; type="application/dicom"')
    metadata = await _status(http, f"{base}/metadata", DICOM_JSON)
    frames = await _status(
        http, f"{base}/frames/1", 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
    )
    return {
        "retrieve": plain,
        "describe": metadata,
        "frames": frames,
        NO_ANY_SYNTAX: plain and not any_syntax,
        NO_METADATA: not metadata,
        NO_FRAMES: not frames,
    }


async def _status(http: HttpClient, path: str, accept: str) -> bool:
    try:
        async with http.stream("GET", http.url(path), headers={"Accept": accept}):
            return True
    except NodeProtocolError:
        return False


async def _product(http: HttpClient, prefix: str, first: JsonAnswer) -> str:
    """The Server header; Orthanc has none and shows in its error bodies."""
    if first.headers.get("server"):
        return "".join(char for char in first.headers["server"][:64] if char.isprintable())
    path = f"studies/{_NOBODY['StudyInstanceUID']}/metadata"
    url = http.url(f"{prefix}/{path}" if prefix else path)
    try:
        async with http.stream("GET", url, expect=range(400, 500)) as answer:
            return "Orthanc" if b"OrthancError" in await http.read(answer, 64 * 1024) else ""
    except NodeProtocolError:
        return ""


def _advice(quirks: tuple[str, ...], learned: Learned) -> Iterator[str]:
    if not learned.sure:
        yield "the node shows no study: ping again when it has some, to learn how it matches"
        return
    yield "quirks = [" + ", ".join(f'"{word}"' for word in quirks) + "]"
    if qido.FOLDS_NAMES not in quirks:
        yield f'add "{qido.FOLDS_NAMES}" to quirks if it finds names without diacritics, so that they are pushed whole'
