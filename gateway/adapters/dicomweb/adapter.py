"""DICOMweb nodes: QIDO-RS, WADO-RS and STOW-RS as PS3.18 has them and as products answer them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any
from urllib.parse import urljoin

from gateway.adapters.dicomweb import listed as listed
from gateway.adapters.dicomweb import qido as qido
from gateway.adapters.dicomweb import stow as stow
from gateway.adapters.dicomweb.quirks import DICOM_JSON, NO_ANY_SYNTAX, Learned, examine, learn
from gateway.adapters.dicomweb.wado import (
    DICOM,
    OCTETS,
    answer_parts,
    ascending,
    check_asked,
    check_number,
    frame_part,
    instance_part,
)
from gateway.adapters.http.client import Answer, HttpClient, JsonAnswer, deadline_named
from gateway.adapters.http.joined import joined
from gateway.errors import InvalidQuery, NodeError, NodeProtocolError, NodeTimeout, Unsupported
from gateway.model.dataset import Dataset, text, values
from gateway.model.patient import patient_of
from gateway.model.query import Operator, Ref
from gateway.model.seam import (
    NOT_WHOLE,
    FramePart,
    NativeMatch,
    NativeQuery,
    Part,
    Probe,
    Record,
    Report,
    Shown,
    StoreOutcome,
)
from gateway.model.vocabulary import STUDY_DATE, STUDY_TIME, STUDY_UID, UID_OF_LEVEL, Level, keyword, tag
from gateway.wire import maximum as maximum
from gateway.wire.ceiling import FoundBytes
from gateway.wire.dicomjson import DicomRecord, sanitize

_ABSENT = frozenset({404, 410})
_CANNOT = frozenset({405, 501})
_NEGOTIABLE = frozenset({400, 406, 415})  # Orthanc says 400 where PS3.18 8.7.5 says 406
_NO = _ABSENT | _CANNOT | _NEGOTIABLE
_INSTANCES = f'multipart/related; type="{DICOM}"'
_FRAMES = f'multipart/related; type="{OCTETS}"; transfer-syntax=*'
_BULK = f'multipart/related; type="{OCTETS}", {OCTETS}, */*;q=0.1'
_MORE = re.compile("additional results", re.IGNORECASE)  # the text of PS3.18 8.3.4.4
_WARNING = re.compile(r'\b299\s+\S+\s+"((?:[^"\\]|\\.)*)"')
_HARMLESS = re.compile("additional results|fuzzymatching|deprecat", re.IGNORECASE)
_NUMBER_OF_FRAMES = tag("NumberOfFrames")
_LEARNING_SECONDS = 3.0
_LEARN_AGAIN_AFTER = 60.0
_LARGE_ROW = 16 * 1024
_MOMENT = 0.01
"""Seconds in which answers to questions that were asked together come: less than it takes to ask another one."""
_AT_A_STRETCH = 50
"""Instances whose metadata are looked at before others have their turn: some milliseconds."""


class DicomwebAdapter:
    """One DICOMweb service. `quirks` None: they are learned from the node at its first search.

    The prefixes stand between the base URL and the resources of each service.
    """

    def __init__(
        self,
        node: str,
        *,
        http: HttpClient,
        qido_prefix: str = "",
        wado_prefix: str = "",
        stow_prefix: str = "",
        quirks: frozenset[str] | None = None,
    ) -> None:
        self.node = node
        self._http = http
        self._qido, self._wado, self._stow = (p.strip("/") for p in (qido_prefix, wado_prefix, stow_prefix))
        self._configured = quirks
        self._learned: Learned | None = None
        self._learning: asyncio.Task[Learned] | None = None
        self._learn_after = 0.0
        self._most_at_once: dict[Level, int] = {}
        self._repeats_rows, self._asked_for_any = False, 0
        self._waited_for = 0
        self._needs_plain_accept = quirks is not None and NO_ANY_SYNTAX in quirks

    async def open(self) -> None:
        await self._http.open()

    async def close(self) -> None:
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.gather(self._learning, return_exceptions=True)
        await self._http.close()

    async def probe(self) -> Probe:
        """Learns the node anew; what the node file says about quirks stays in force."""
        self._most_at_once.clear()
        self._repeats_rows, self._asked_for_any = False, 0
        learned = await learn(self._http, self._qido)
        if learned.sure:
            self._learned = learned
        return await examine(self._http, self._qido, self._wado, learned)

    # --- QIDO-RS

    @property
    def takes_times(self) -> bool:
        quirks = self._configured or (self._learned.quirks if self._learned else frozenset())
        return f"{qido.IGNORES_KEY}StudyTime" not in quirks

    async def find(self, query: NativeQuery) -> AsyncGenerator[Record | Report, None]:
        """Rows page by page, until the node has no more, the limit is reached or paging turns out not to work."""
        ends = time.monotonic() + self._http.timeouts.total
        quirks = await self._quirks()
        search = qido.build(query, quirks)
        if qido.NO_RELATIONAL in quirks and search.is_relational:
            raise Unsupported(self.node, f"searches {search.resource} of one study only")
        above = Ref(query.study) if search.has_parent and query.study else None
        seen: set[tuple[str, ...]] = set()
        offset, truncated, has_more, is_whole = 0, False, True, True
        found = FoundBytes(self.node)
        behind: JsonAnswer | None = None
        hides = False
        while has_more:
            left = None if query.limit is None else query.limit - len(seen)
            # One row more than wanted shows whether there is more.
            answer = behind or await self._page(search, offset, None if left is None else left + 1, ends)
            is_behind, behind = behind is not None, None
            found.add(answer.size)
            if query.samples and left is not None and not offset and (sample := _sample(answer.document, left)):
                self._note_most(query.level, len(answer.document))
                yield search.report(truncated=True, sample=sample)
                return
            rows = self._rows(answer)
            self._note_most(query.level, len(rows))
            is_whole = is_whole and not _is_partial(answer)
            fresh = _unseen(rows, UID_OF_LEVEL[query.level], seen)
            for row in fresh[:left]:
                if above is not None:
                    check_asked(self.node, above, row)
                yield DicomRecord(row)
            offset += len(rows)
            truncated = query.limit is not None and len(seen) > query.limit
            has_more = (query.limit is None or len(seen) <= query.limit) and await self._goes_on(answer, query.level)
            is_repetition = bool(rows) and not fresh
            self._repeats_rows = self._repeats_rows or is_repetition
            is_withheld = not rows and _announces_more(answer)
            if is_repetition or is_withheld or (has_more and qido.IGNORES_OFFSET in quirks):
                truncated, has_more = True, False
            elif is_behind and not rows:
                truncated = hides
            elif has_more and offset == len(rows) and not _announces_more(answer):
                most = None if query.limit is None else query.limit - len(seen) + 1
                behind, hides = await self._behind(search, query, rows, most, ends)
        yield search.report(truncated=truncated, gaps=() if is_whole else (NOT_WHOLE,))

    async def _page(
        self, search: qido.Search, offset: int, limit: int | None, ends: float, ceiling: int | None = None
    ) -> JsonAnswer:
        within = max(0.01, ends - time.monotonic())
        url = self._url(self._qido, search.resource, search.page(offset, limit))
        self._waited_for += 1
        try:
            answer = await self._http.get_json(url, accept=DICOM_JSON, expect=_NO, within=within, ceiling=ceiling)
        finally:
            self._waited_for -= 1
        if answer.status not in _NO or (answer.status in _ABSENT and search.has_parent):
            return answer
        if search.is_relational or answer.status in _CANNOT:
            raise Unsupported(self.node, f"does not search {search.resource}")
        raise NodeProtocolError(self.node, f"answered a search with status {answer.status}")

    async def _behind(
        self, search: qido.Search, query: NativeQuery, rows: Sequence[Dataset], limit: int | None, ends: float
    ) -> tuple[JsonAnswer, bool]:
        """The page behind a first one of so round a number that it may be a maximum, and whether the node hides what would lie
        there, since no offset leads on. A node that has repeated its rows there tells by that alone, as long as it does."""
        if self._repeats_rows:
            page = await self._page(search, len(rows), limit, ends)
            return page, not page.document and await self._hides_some(query, rows, ends)
        hides = asyncio.create_task(self._hides_some(query, rows, ends))
        try:
            return await self._page(search, len(rows), limit, ends), await hides
        finally:
            hides.cancel()
            await asyncio.gather(hides, return_exceptions=True)

    async def _hides_some(self, query: NativeQuery, rows: Sequence[Dataset], ends: float) -> bool:
        """Not where the node gives more of any studies. Else as far as parts of these rows tell, which are asked for alone: one
        has others, or is no less."""
        if query.level is not Level.STUDY or maximum.names_as_many(query, len(rows)):
            return False
        if query.match and await self._gives_more_than(len(rows), ends):
            return False

        async def ask(part: NativeQuery) -> list[str]:
            answer = await self._page(qido.build(part, await self._quirks()), 0, len(rows), ends)
            return [text(row, STUDY_UID) for row in self._rows(answer)]

        with suppress(NodeError):  # then nothing tells
            return await maximum.hides_some(query, rows, ask)
        return False

    async def _gives_more_than(self, count: int, ends: float) -> bool:
        """Whether the node gives more studies than so many when it is asked for any: that is no maximum of its own then. It is
        asked that once, and where it heeds no limit not at all."""
        quirks = await self._quirks()
        if qido.IGNORES_LIMIT in quirks or count <= self._asked_for_any:
            return False
        self._asked_for_any = count
        any_ = qido.build(NativeQuery(Level.STUDY, ()), quirks)
        given: set[str] = set()
        with suppress(NodeError):
            answer = await self._page(any_, 0, 2 * count + 1, ends, ceiling=(2 * count + 1) * _LARGE_ROW)
            given.update(text(row, STUDY_UID) for row in self._rows(answer))
        self._note_most(Level.STUDY, len(given))
        return len(given) > count

    def _note_most(self, level: Level, count: int) -> None:
        self._most_at_once[level] = max(count, self._most_at_once.get(level, 0))

    async def _goes_on(self, answer: JsonAnswer, level: Level) -> bool:
        """Whether there may be more: the node says so, or it stopped at a number that smells of a silent maximum. Not at fewer
        than it once gave in one answer, be it the one to another question of the moment."""
        count = len(answer.document or ())
        if _announces_more(answer):
            return count > 0
        if not maximum.smells(count) or count < self._most_at_once[level]:
            return False
        if self._waited_for:
            await asyncio.sleep(_MOMENT)
        return count >= self._most_at_once.get(level, 0)

    def _rows(self, answer: JsonAnswer) -> list[Dataset]:
        if answer.document is None:
            return []
        try:
            return list(map(sanitize, self._listed(answer.document, "a search")))
        except ValueError:
            raise self._malformed("a search") from None

    def _listed(self, document: Any, asked: str) -> list[Any]:
        if not isinstance(document, list):
            raise NodeProtocolError(self.node, f"answered {asked} with something else than a list of data sets")
        return document

    def _malformed(self, asked: str) -> NodeProtocolError:
        return NodeProtocolError(self.node, f"answered {asked} with malformed data sets")

    async def _exists(self, ref: Ref) -> bool:
        """Whether a search finds it; for nodes whose refusal does not say if the thing or the service is missing."""
        own = UID_OF_LEVEL[ref.level]
        uid = ref.instance or ref.series or ref.study
        key = NativeMatch(keyword(own), Operator.EXACT, (uid,))
        study, series = ref.study if ref.series else None, ref.series if ref.instance else None
        async with aclosing(self.find(NativeQuery(ref.level, (key,), study, series))) as found:
            async for row in found:
                if isinstance(row, DicomRecord) and text(row.dataset, own) == uid:
                    return True
        return False

    # --- WADO-RS

    async def retrieve(self, ref: Ref) -> AsyncGenerator[Part, None]:
        async with self._instances(ref) as answer:
            status = answer.status
            if status not in _NO:
                framed = "content-length" in answer.headers or "multipart" in answer.content_type.lower()
                async with aclosing(answer_parts(self.node, answer, DICOM)) as parts:
                    async for part in parts:
                        yield await instance_part(self.node, ref, part, framed=framed)
        if status == 206:
            raise NodeProtocolError(self.node, "could not give every instance (206)")
        if status in _NO:
            await self._explain(ref, status, "instances")

    @asynccontextmanager
    async def _instances(self, ref: Ref) -> AsyncIterator[Answer]:
        """As stored where the node can say so, else as it likes; what it understood is remembered."""
        url = self._url(self._wado, ref.path)
        if not self._needs_plain_accept:
            accept = {"Accept": _INSTANCES + "; transfer-syntax=*"}
            async with self._http.stream("GET", url, headers=accept, expect=_NO) as answer:
                if answer.status not in _NEGOTIABLE:
                    yield answer
                    return
        async with self._http.stream("GET", url, headers={"Accept": _INSTANCES}, expect=_NO) as answer:
            self._needs_plain_accept = self._needs_plain_accept or answer.status not in _NO
            yield answer

    async def _explain(self, ref: Ref, status: int, what: str) -> None:
        """Comes back when the node does not have it. Raises Unsupported or NodeProtocolError when it does."""
        if status in _CANNOT:
            raise Unsupported(self.node, f"does not serve {what}")
        if await self._exists(ref):
            if status in _ABSENT:
                raise Unsupported(self.node, f"does not serve {what} of a {ref.level.lower()}")
            raise NodeProtocolError(self.node, f"answered a request for {what} with status {status}")

    async def lacking(self, ref: Ref, given: Collection[str]) -> Sequence[Ref]:
        return await listed.lacking(self.find, ref, given)

    async def describe(self, ref: Ref) -> AsyncGenerator[Dataset, None]:
        url = self._url(self._wado, f"{ref.path}/metadata")
        headers = {"Accept": DICOM_JSON, "Accept-Encoding": self._http.codings}
        async with self._http.stream("GET", url, headers=headers, expect=_NO) as answer:
            status, base = answer.status, answer.url
            document = await self._http.read_json(answer) if status not in _NO else None
        if status == 206:
            raise NodeProtocolError(self.node, "could not give the metadata of every instance (206)")
        if status in _NO:
            await self._explain(ref, status, "metadata")
        # One by one to its end, while it is at hand: those of a series together are more than a processor's cache holds.
        for number, found in enumerate(self._listed(document or [], "a request for metadata")):
            if number % _AT_A_STRETCH == _AT_A_STRETCH - 1:
                await asyncio.sleep(0)
            yield self._described(ref, found, base)

    def _described(self, ref: Ref, found: object, base: str) -> Dataset:
        try:
            dataset = sanitize(found)
        except ValueError:
            raise self._malformed("a request for metadata") from None
        check_asked(self.node, ref, dataset)
        try:
            _make_absolute(dataset, base)
        except ValueError:
            raise NodeProtocolError(self.node, "gave an address of bulk data that is none") from None
        return dataset

    async def frames(self, ref: Ref, numbers: Sequence[int]) -> AsyncGenerator[FramePart, None]:
        """In the order asked for, which a node need not keep to: it is asked for what ascends."""
        given, runs = 0, list(ascending(numbers))
        if max(numbers) > runs[0][-1]:  # what is not there is said before what is
            with suppress(NodeError):
                await self._require_frames(ref, max(numbers))
        for run in runs:
            async with aclosing(self._frames(ref, run)) as frames:
                async for frame in frames:
                    yield frame
                    given += 1
            if not given:
                return
        if given < len(numbers):
            raise NodeProtocolError(self.node, "sent fewer frames than asked for")

    async def _frames(self, ref: Ref, numbers: Sequence[int]) -> AsyncGenerator[FramePart, None]:
        listed = ",".join(map(str, numbers))
        url = self._url(self._wado, f"{ref.path}/frames/{listed}")
        async with self._http.stream("GET", url, headers={"Accept": _FRAMES}, expect=_NO) as answer:
            status, given = answer.status, 0
            self._check_whole(status)
            if status not in _NO:
                async with aclosing(answer_parts(self.node, answer, "")) as parts:
                    async for part in parts:
                        if given == len(numbers):
                            raise NodeProtocolError(self.node, "sent more frames than asked for")
                        check_number(self.node, numbers[given], part)
                        yield frame_part(self.node, numbers[given], part)
                        given += 1
        if status in _NO:
            await self._require_frames(ref, max(numbers))
            await self._explain(ref, status, "frames")
        elif given < len(numbers):
            raise NodeProtocolError(self.node, "sent fewer frames than asked for")

    def _check_whole(self, status: int) -> None:
        """Raises NodeProtocolError where only a part of the bytes comes: no part is ever asked for."""
        if status == 206:
            raise NodeProtocolError(self.node, "sent a part of what it was asked for (206)")

    async def _require_frames(self, ref: Ref, highest: int) -> None:
        """Raises InvalidQuery for a frame that the instance does not have; Orthanc says 400 to that, others 404."""
        async with aclosing(self.describe(ref)) as found:
            async for instance in found:
                count = next((v for v in values(instance, _NUMBER_OF_FRAMES) if isinstance(v, int)), 1)
                if highest > count:
                    raise InvalidQuery(f"frame {highest} of an instance that has {count}", parameter="frames")

    async def bulkdata(self, ref: Ref, address: str) -> AsyncGenerator[FramePart, None]:
        """The address is followed inside the allow list only. Pixel data may come as one part per frame."""
        url = self._http.check_address(address, base=self._url(self._wado, ref.path) + "/")
        async with self._http.stream("GET", url, headers={"Accept": _BULK}, expect=_ABSENT) as answer:
            self._check_whole(answer.status)
            if answer.status not in _ABSENT:
                async with aclosing(answer_parts(self.node, answer, "")) as parts:
                    async for part in parts:
                        yield frame_part(self.node, 0, part)

    # --- STOW-RS

    async def store(self, parts: AsyncIterator[Part]) -> AsyncGenerator[StoreOutcome, None]:
        """One request for each instance, over connections that stay: what fails is then that instance and no other."""
        url = self._url(self._stow, "studies")
        expect = {*stow.REFUSED, *stow.MAYBE_REFUSED, *_CANNOT}
        async for part in parts:
            upload = stow.Upload(part)
            headers = {**upload.headers, "Accept": DICOM_JSON}
            async with self._http.stream("POST", url, headers=headers, content=upload.body(), expect=expect) as answer:
                if answer.status in _CANNOT:
                    raise Unsupported(self.node, "does not store instances")
                with deadline_named(self.node, "did not complete its answer to a store"):
                    async with asyncio.timeout(self._http.timeouts.first_byte):
                        outcome = await stow.outcome(self._http, answer, part.sop_instance_uid)
            yield outcome

    # --- what the node is like

    def _url(self, prefix: str, path: str, query: str = "") -> str:
        return self._http.url(f"{prefix}/{path}" if prefix else path, query)

    async def _quirks(self) -> frozenset[str]:
        if self._configured is not None:
            return self._configured
        if self._learned is None and time.monotonic() >= self._learn_after:
            if self._learning is None or self._learning.done():
                self._learning = asyncio.create_task(self._learn())
                self._learning.add_done_callback(lambda task: task.cancelled() or task.exception())
            return (await joined(self._learning, self.node)).quirks
        return self._learned.quirks if self._learned else frozenset()

    async def _learn(self) -> Learned:
        """Nothing learned, from an empty or a slow node, is tried again later; a node that is down is an error now."""
        try:
            async with asyncio.timeout(min(_LEARNING_SECONDS, self._http.timeouts.total / 2)):
                learned = await learn(self._http, self._qido)
        except (TimeoutError, NodeTimeout):
            learned = Learned(frozenset(), sure=False)
        if learned.sure:
            self._learned = learned
        self._learn_after = time.monotonic() + _LEARN_AGAIN_AFTER
        return learned


def _sample(document: Any, limit: int) -> tuple[Shown, ...]:
    """When the first `limit` studies of an answer were that has more; () for any other, and for what is to be mended first."""
    if not isinstance(document, list) or len(document) <= limit:
        return ()
    try:
        return tuple([(_first(row, STUDY_DATE) or "", _first(row, STUDY_TIME)) for row in document[:limit]])
    except (LookupError, TypeError, AttributeError):
        return ()


def _first(row: Any, tag: str) -> str | None:
    """The first value of an attribute as sent, '' where it has none; None for an attribute that is not there. Raises TypeError,
    LookupError or AttributeError for what is no attribute with texts."""
    attribute = row.get(tag)
    if attribute is None:
        return None
    content = attribute.get("Value")
    if content and type(content) is not list:
        raise TypeError("a value without its list")
    return content[0].strip(" \0") if content else ""


def _unseen(rows: list[Dataset], uid_tag: str, seen: set[tuple[str, ...]]) -> list[Dataset]:
    """The rows not seen before, which then are: of one UID one for each patient, since an archive may hold it for several. A
    row without UID is seen once."""
    fresh = []
    for row in rows:
        named = (text(row, STUDY_UID), text(row, uid_tag), *patient_of(row, ""))
        if named not in seen:
            seen.add(named)
            fresh.append(row)
    return fresh


def _announces_more(answer: JsonAnswer) -> bool:
    return _MORE.search(answer.headers.get("warning", "")) is not None


def _is_partial(answer: JsonAnswer) -> bool:
    """Whether the node itself says that something is missing: by 206, or by a Warning (299) that is none of those which say
    nothing of that kind."""
    said = _WARNING.findall(answer.headers.get("warning", ""))
    return answer.status == 206 or not all(map(_HARMLESS.search, said))


def _make_absolute(dataset: Dataset, base: str) -> None:
    """Bulk data addresses are relative to the metadata they stand in (PS3.18 F.2.2); in place."""
    for attribute in dataset.values():
        if "BulkDataURI" in attribute:
            if not attribute["BulkDataURI"].startswith(("http://", "https://")):
                attribute["BulkDataURI"] = urljoin(base, attribute["BulkDataURI"])
        elif attribute.get("vr") == "SQ":
            for item in attribute.get("Value", ()):
                _make_absolute(item, base)
