"""Rendered pictures of what nodes hold: which frame of which instance, fetched alone where the node can, then rendered."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import orjson

from gateway.cache import freshness
from gateway.errors import InvalidQuery, NotAcceptable, NotFound, TooLarge
from gateway.federation.federate import absent
from gateway.federation.node import Node, aclosing_iterator, first_then
from gateway.federation.page import ordered
from gateway.federation.retrieve import OpenedParts, Retrieval
from gateway.imaging import attributes as images
from gateway.imaging.options import GIF, JPEG, PNG, Rendering, can_write
from gateway.imaging.processes import EncodedFrame, Imaging
from gateway.imaging.syntaxes import EXPLICIT
from gateway.model.answer import Found, Issue
from gateway.model.dataset import Dataset, text, whole_number
from gateway.model.query import Ref
from gateway.model.seam import FramePart
from gateway.model.vocabulary import INSTANCE_UID, MODALITY, SERIES_UID, tag
from gateway.wire.frames import frame_media_type

PDF = "application/pdf"
RENDERED_TYPES = (JPEG, PNG, GIF)
_KEYWORD, _MOST_NAMED = re.compile("[A-Za-z0-9]{1,64}"), 20
_MOST_INSTANCES = 200
_MOST_FRAMES = 10_000
_MOST_TRIED = 4
_MOST_OF_TABLE, _MOST_OF_TABLES = 4 << 20, 64 << 20
_SIDE = 200
_DOCUMENT, _DOCUMENT_TYPE = tag("EncapsulatedDocument"), tag("MIMETypeOfEncapsulatedDocument")
_DOCUMENT_LENGTH, _NUMBER = tag("EncapsulatedDocumentLength"), tag("InstanceNumber")
_WITHOUT_PIXELS = frozenset(
    {"SR", "PR", "KO", "DOC", "RTSTRUCT", "RTPLAN", "RTRECORD", "REG", "FID", "AU", "ECG", "PLAN"}
)
_ANNOTATIONS = {
    "patient": ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    "technique": (
        "Modality",
        "StudyDate",
        "SeriesDescription",
        "KVP",
        "XRayTubeCurrent",
        "ExposureTime",
        "SliceThickness",
    ),
}
Shows = Callable[[Dataset], Dataset]
Chooses = Callable[[FramePart], str]


@dataclass(frozen=True, slots=True)
class Asked:
    """`media_types` in order of preference, '*/*' for any; `numbers` are frames (1-based), none for the instance's own
    choice; `annotation` names what is written into the image."""

    media_types: tuple[str, ...]
    rendering: Rendering
    numbers: tuple[int, ...] = ()
    annotation: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """One rendered file; `number` is the frame that was asked for, 0 where that is the instance."""

    ref: Ref
    number: int
    media_type: str
    body: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class OpenedPictures:
    """Pictures on their way, the first of them rendered; `silent` and `gaps` as in Opened; `notes` are for the caller."""

    pictures: AsyncIterator[Picture]
    silent: tuple[Issue, ...]
    gaps: tuple[Issue, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    """One file to be made of some frames of one instance."""

    ref: Ref
    dataset: Dataset
    numbers: tuple[int, ...]
    media_type: str
    number: int = 0


@dataclass(slots=True)
class Pictures:
    """Renders what `retrieval` fetches."""

    retrieval: Retrieval
    imaging: Imaging

    @asynccontextmanager
    async def open(
        self, ref: Ref, nodes: Sequence[Node], show: Shows, asked: Asked, *, documents: bool
    ) -> AsyncIterator[OpenedPictures]:
        """The pictures under `ref`; entering it waits for the first. `show` is what the caller may see of a data set;
        `documents` says whether it may see encapsulated ones, of whose content nothing can be taken away.

        Raises NotAcceptable where nothing can be rendered as asked, TooLarge for too many instances, and as the retrieval.
        """
        async with AsyncExitStack() as stack:
            if ref.instance is None:
                await self._check_count(ref, nodes)
            datasets, silent, gaps = await self._described(ref, nodes)
            jobs, notes = _jobs(ref, datasets, asked, documents=documents)
            source = self._made(jobs, nodes, asked, show)
            pictures = await stack.enter_async_context(aclosing_iterator(source))
            first = await anext(pictures)
            notes = (*notes, *_without_effect(jobs, asked), *_refused(jobs, asked, show))
            yield OpenedPictures(first_then(first, pictures), silent, gaps, notes)

    async def _check_count(self, ref: Ref, nodes: Sequence[Node]) -> None:
        study = (await self.retrieval.federation.locate(ref.study, nodes)).items[0]
        count = 0
        for series in (await self.retrieval.federation.series_of(study)).items:
            if ref.series in (None, series.series):
                count += len((await self.retrieval.federation.instances_of(series)).items)
        if count > _MOST_INSTANCES:
            raise TooLarge(
                f"{count} instances are more than are rendered at once ({_MOST_INSTANCES}): ask for their series"
            )

    async def _described(
        self, ref: Ref, nodes: Sequence[Node]
    ) -> tuple[list[Dataset], tuple[Issue, ...], tuple[Issue, ...]]:
        with freshness.only_fresh():
            described = await self.retrieval.metadata(ref, nodes)
        found = [dataset for piece in described.pieces for dataset in piece.datasets()]
        found.sort(key=lambda one: (text(one, SERIES_UID), whole_number(one, _NUMBER) or 0, text(one, INSTANCE_UID)))
        return found, described.silent, described.gaps

    async def _made(
        self, jobs: Sequence[_Job], nodes: Sequence[Node], asked: Asked, show: Shows
    ) -> AsyncIterator[Picture]:
        for job in jobs:
            if job.media_type == PDF:
                yield Picture(job.ref, 0, PDF, self._document(job, nodes))
                continue
            lines = _lines(asked.annotation, show(job.dataset))[0] if asked.annotation else ()
            rendering = replace(asked.rendering, media_type=job.media_type, lines=lines)
            rendered = await self._rendered(job, nodes, rendering)
            yield Picture(job.ref, job.number, job.media_type, _whole(rendered))

    async def _rendered(self, job: _Job, nodes: Sequence[Node], rendering: Rendering) -> bytes:
        self.imaging.check_size(images.pixels_of_frame(job.dataset) * len(job.numbers))
        with self.imaging.holding(images.bytes_of_frame(job.dataset) * len(job.numbers)):
            return await self._fetched(job, nodes, rendering)

    async def _fetched(self, job: _Job, nodes: Sequence[Node], rendering: Rendering) -> bytes:
        own = await self._attributes(job, nodes)
        frames: list[EncodedFrame] = []
        most, left = images.most_bytes_of_frame(job.dataset), images.most_bytes_of_frames(job.dataset, len(job.numbers))
        try:
            async with self.retrieval.frames(job.ref, job.numbers, nodes) as opened:
                async for part in opened.parts:
                    data = await _read(part.body, min(most, left))
                    left -= len(data)
                    frames.append(EncodedFrame(own[part.number], part.transfer_syntax, data))
        except InvalidQuery:  # it says that it has this frame: it is a video, whose frames nobody tells apart
            raise NotAcceptable("frames of it cannot be told apart; ask for it as stored", parameter="Accept") from None
        milliseconds = images.milliseconds_per_frame(job.dataset)
        return await self.imaging.render(frames, replace(rendering, milliseconds=milliseconds))

    async def _attributes(self, job: _Job, nodes: Sequence[Node]) -> dict[int, Dataset]:
        """The image attributes of each frame, with the values that stand elsewhere (long palettes and LUTs, colour profiles),
        each fetched once: before the frames, since the node may have one turn only."""
        found = {number: images.frame_attributes(job.dataset, number) for number in job.numbers}
        fetched: dict[str, str] = {}
        for number, attributes in found.items():
            if next(images.elsewhere(attributes), None):
                found[number] = orjson.loads(orjson.dumps(attributes))
            for holder, tag_, address in list(images.elsewhere(found[number])):
                if address not in fetched:
                    left = _MOST_OF_TABLES - sum(map(len, fetched.values()))
                    fetched[address] = await self._table(job, address, nodes, min(left, _MOST_OF_TABLE))
                holder[tag_] = {"vr": holder[tag_].get("vr", "OW"), "InlineBinary": fetched[address]}
        return found

    async def _table(self, job: _Job, address: str, nodes: Sequence[Node], most: int) -> str:
        path = tuple(address.rpartition("/bulkdata/")[2].split("."))
        async with self.retrieval.bulkdata(job.ref, path, nodes) as opened:
            pieces = [await _read(part.body, most) async for part in opened.parts]
        return base64.b64encode(b"".join(pieces)).decode()

    async def _document(self, job: _Job, nodes: Sequence[Node]) -> AsyncIterator[bytes]:
        attribute = job.dataset.get(_DOCUMENT, {})
        left = whole_number(job.dataset, _DOCUMENT_LENGTH)
        if "BulkDataURI" not in attribute:
            yield base64.b64decode(attribute.get("InlineBinary", ""))[:left]
            return
        async with self.retrieval.bulkdata(job.ref, (_DOCUMENT,), nodes) as opened:
            async for part in opened.parts:
                async for chunk in part.body:
                    piece = chunk if left is None else chunk[:left]
                    left = None if left is None else left - len(piece)
                    yield piece

    async def recoded(
        self, ref: Ref, nodes: Sequence[Node], opened: OpenedParts, choose: Chooses
    ) -> AsyncIterator[FramePart]:
        """The opened frames in the syntax that `choose` says for each, as they are where it says ''."""
        dataset: Dataset | None = None
        async for part in opened.parts:
            into = choose(part)
            if not into:
                yield part
                continue
            if dataset is None:
                dataset = await self._of_frames(ref, nodes, opened)
                self.imaging.check_size(images.pixels_of_frame(dataset))
            yield await self._recoded(part, dataset, into)

    async def _of_frames(self, ref: Ref, nodes: Sequence[Node], opened: OpenedParts) -> Dataset:
        """What the frames are of. A node is asked for it only where they hold no turn: it may have one turn only, and all who
        held one while they waited for a second would wait for ever."""
        if opened.described is not None:
            return opened.described.datasets()[0]
        datasets, _, _ = await self._described(ref, nodes)
        return datasets[0]

    async def _recoded(self, part: FramePart, dataset: Dataset, into: str) -> FramePart:
        with self.imaging.holding(images.bytes_of_frame(dataset)):
            data = await _read(part.body, images.most_bytes_of_frame(dataset))
            frame = EncodedFrame(images.frame_attributes(dataset, part.number), part.transfer_syntax, data)
            given = (await self.imaging.recode(frame, "" if into == EXPLICIT else into)).data
        return FramePart(part.number, frame_media_type(into), into, _whole(given), len(given))

    async def thumbnail(self, ref: Ref, nodes: Sequence[Node], asked: Asked) -> tuple[Picture, tuple[Issue, ...]]:
        """One small picture that stands for what is under `ref` and shows nobody's identity: where the only images may
        have it in their pixels, or there are none, a picture of nothing but the modality."""
        media_type = next((one for one in asked.media_types if one in RENDERED_TYPES), JPEG)
        viewport = asked.rendering.viewport
        viewport = replace(viewport, columns=viewport.columns or _SIDE, rows=viewport.rows or _SIDE)
        rendering = replace(asked.rendering, media_type=media_type, viewport=viewport, lines=())
        silent: tuple[Issue, ...] = ()
        chosen = ref
        word = ""
        for candidate in await self._candidates(ref, nodes):
            datasets, silent, _ = await self._described(candidate, nodes)
            dataset = datasets[0]
            word, chosen = word or text(dataset, MODALITY), candidate
            if not images.is_image(dataset) or images.may_show_identity(dataset):
                continue
            _check_numbers(dataset, asked)
            number = asked.numbers[0] if asked.numbers else images.representative_frame(dataset)
            job = _Job(candidate, dataset, (number,), media_type, number if asked.numbers else 0)
            try:
                rendered = await self._rendered(job, nodes, rendering)
            except (NotAcceptable, TooLarge):
                self.imaging.require()
                continue
            return Picture(candidate, job.number, media_type, _whole(rendered)), silent
        rendered = await self.imaging.neutral(viewport.columns, viewport.rows, word, media_type)
        return Picture(chosen, 0, media_type, _whole(rendered)), silent

    async def _candidates(self, ref: Ref, nodes: Sequence[Node]) -> list[Ref]:
        """Instances that could stand for it, best first: the middle one of each series, the largest with pixels first."""
        if ref.instance:
            return [ref]
        federation = self.retrieval.federation
        study = (await federation.locate(ref.study, nodes)).items[0]
        answer = await federation.series_of(study)
        series = [one for one in answer.items if ref.series in (None, one.series)]
        if not series:
            raise absent(ref.path, answer.issues)
        series.sort(key=lambda one: text(one.attributes, MODALITY) in _WITHOUT_PIXELS)
        found = [await self._middle(one) for one in series[:_MOST_TRIED]]
        middles = [one for one in found if one is not None]
        if not middles:
            raise NotFound(f"no node has an instance of {ref.path}")
        ranked = sorted(middles, key=lambda one: -one[1])
        return [one for one, _ in ranked]

    async def _middle(self, series: Found) -> tuple[Ref, int] | None:
        found = ordered((await self.retrieval.federation.instances_of(series)).items)
        if not found:
            return None
        one = found[len(found) // 2]
        has_pixels = text(series.attributes, MODALITY) not in _WITHOUT_PIXELS
        return Ref(one.study, one.series, one.instance), len(found) if has_pixels else 0


def _jobs(
    ref: Ref, datasets: Sequence[Dataset], asked: Asked, *, documents: bool
) -> tuple[list[_Job], tuple[str, ...]]:
    """What is to be made, and what has to be said about it. Raises NotAcceptable where nothing can be made, TooLarge."""
    jobs: list[_Job] = []
    notes: list[str] = []
    left_out = 0
    for dataset in datasets:
        place = Ref(ref.study, text(dataset, SERIES_UID), text(dataset, INSTANCE_UID))
        media_type = _media_type(dataset, asked)
        if not media_type or (media_type == PDF and not documents):
            left_out += 1
        elif media_type in (GIF, PDF):
            jobs.append(_Job(place, dataset, _animated(dataset, asked), media_type))
        elif asked.numbers:
            _check_numbers(dataset, asked)
            jobs += [_Job(place, dataset, (number,), media_type, number) for number in asked.numbers]
        else:
            number, count = images.representative_frame(dataset), images.frame_count(dataset)
            jobs.append(_Job(place, dataset, (number,), media_type))
            if count > 1:
                notes.append(f"frame {number} of {count} is shown; image/gif has all, /frames/list/rendered any")
    if not jobs:
        raise NotAcceptable(_offers(datasets), parameter="Accept")
    if left_out:
        notes.append(f"{left_out} instances cannot be rendered and are left out")
    return jobs, tuple(dict.fromkeys(notes))


def _check_numbers(dataset: Dataset, asked: Asked) -> None:
    """Raises InvalidQuery for a frame that the instance does not have, before any of the others is sent."""
    count = images.frame_count(dataset)
    wrong = next((number for number in asked.numbers if number > count), None)
    if wrong:
        raise InvalidQuery(f"frame {wrong} of an instance that has {count}", parameter="frames")


def _animated(dataset: Dataset, asked: Asked) -> tuple[int, ...]:
    _check_numbers(dataset, asked)
    count = images.frame_count(dataset)
    if not asked.numbers and count > _MOST_FRAMES:
        raise TooLarge(f"{count} frames are more than one picture shows ({_MOST_FRAMES}): ask for /frames/ of them")
    return asked.numbers or tuple(range(1, count + 1))


def _media_type(dataset: Dataset, asked: Asked) -> str:
    """The first type asked for that there is of this instance; '' for none (PS3.18 Table 8.7.4-1)."""
    own: tuple[str, ...] = ()
    if images.is_image(dataset):
        own = RENDERED_TYPES
    elif text(dataset, _DOCUMENT_TYPE).lower() == PDF:
        own = (PDF,)
    for wanted in asked.media_types:
        if wanted in own:
            return wanted
        if own and (wanted == "*/*" or (wanted == "image/*" and own[0] == JPEG)):
            return own[0]
    return ""


def _offers(datasets: Sequence[Dataset]) -> str:
    if any(map(images.is_image, datasets)):
        return f"this is rendered as {', '.join(RENDERED_TYPES)}"
    if any(text(one, _DOCUMENT_TYPE).lower() == PDF for one in datasets):
        return f"this is available as {PDF}"
    return "what is neither an image nor an encapsulated PDF is not rendered; ask for it as application/dicom"


def _without_effect(jobs: Sequence[_Job], asked: Asked) -> Iterator[str]:
    """What is said of parameters that are for images in grey, or in colour, where others are shown."""
    kinds = {(images.is_colour(job.dataset), job.media_type == GIF) for job in jobs if job.media_type != PDF}
    if asked.rendering.window and any(is_colour for is_colour, _ in kinds):
        yield "a window changes nothing of an image in colour"
    if asked.rendering.icc_profile in ("yes", "srgb") and kinds - {(True, False)}:
        yield "an image in grey, or a GIF, has no colour profile"


def _refused(jobs: Sequence[_Job], asked: Asked, show: Shows) -> tuple[str, ...]:
    """What is said of annotations that are not written (PS3.18 8.3.5.1.1)."""
    pictures = [job for job in jobs if job.media_type != PDF] if asked.annotation else []
    refused = {keyword for job in pictures for keyword in _lines(asked.annotation, show(job.dataset))[1]}
    # What is no keyword may be anything, and is not repeated.
    named = sorted({keyword if _KEYWORD.fullmatch(keyword) else "(no keyword)" for keyword in refused})
    return (f"The following annotation values are not supported: {', '.join(named[:_MOST_NAMED])}",) if named else ()


def _lines(annotation: Sequence[str], shown: Dataset) -> tuple[tuple[str, ...], list[str]]:
    """The lines to write, and the keywords of those that the letters at hand cannot write."""
    lines: list[str] = []
    refused: list[str] = []
    for keyword in annotation:
        found = [text(shown, tag(one)) for one in _ANNOTATIONS.get(keyword, ())]
        own = [one.partition("=")[0].replace("^", " ").strip() for one in found if one]
        if own and all(map(can_write, own)):
            lines += own
        else:
            refused.append(keyword)
    return tuple(lines), refused


async def _read(body: AsyncIterator[bytes], most: int) -> bytes:
    pieces, size = [], 0
    async with aclosing_iterator(body) as chunks:
        async for chunk in chunks:
            size += len(chunk)
            if size > most:
                raise TooLarge(f"a frame of more than {most} bytes is not decoded; ask for it as stored")
            pieces.append(chunk)
    return b"".join(pieces)


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data
