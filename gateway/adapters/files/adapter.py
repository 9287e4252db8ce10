"""The adapter `files`: a directory of DICOM files as a node, through an index that keeps up with the directory."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import aclosing
from os import fstat
from pathlib import Path

from gateway import metrics
from gateway.adapters.files.catalogue import Catalogue
from gateway.adapters.files.conditions import Conditions, conditions
from gateway.adapters.files.incoming import accept, sweep
from gateway.adapters.files.scan import Held
from gateway.errors import NodeProtocolError, NotFound
from gateway.model.dataset import Dataset, attribute
from gateway.model.query import Ref
from gateway.model.seam import FramePart, NativeQuery, Part, Probe, Record, Report, StoreOutcome
from gateway.model.vocabulary import INSTANCE_UID, ISSUER, PATIENT_ID, SERIES_UID, STUDY_UID
from gateway.wire.bodies import bulk_value_of, frames_of
from gateway.wire.dicomjson import DicomRecord
from gateway.wire.instance import Part10Error, open_instance

_CHUNK = 512 << 10


class FilesAdapter:
    """A directory of DICOM files. Names and other text are not matched here: whoever asks matches every row again.

    Two patients under one Study Instance UID are two studies; of several copies of an instance one is given.
    """

    def __init__(
        self,
        node: str,
        *,
        directory: Path,
        index: Path | None = None,
        rescan: float = 2.0,
        character_set: str = "",
    ) -> None:
        """`index` is the SQLite file, a temporary one by default; it holds patient data. The directory is looked
        through at most every `rescan` seconds. `character_set` applies to data sets without (0008,0005).
        """
        self.node = node
        self._catalogue = Catalogue(node, directory, index, rescan, character_set)
        self._is_swept = False

    async def open(self) -> None:
        """Returns before the directory is indexed; the first search waits for that."""
        await self._catalogue.open()

    async def close(self) -> None:
        await self._catalogue.close()

    async def probe(self) -> Probe:
        began = time.monotonic()
        await self._catalogue.up_to_date()
        held, skipped = await self._catalogue.threads.call(self._catalogue.index.counts)
        return Probe(
            product="directory of DICOM files",
            capabilities=("find", "retrieve", "describe", "frames", "bulkdata", "store"),
            latency=time.monotonic() - began,
            details={"files held": str(held), "files skipped": str(skipped)},
        )

    async def find(self, query: NativeQuery) -> AsyncGenerator[Record | Report, None]:
        """Rows of every level, relational: a row holds all attributes of its level and of those above."""
        await self._catalogue.up_to_date()
        asked = conditions(query)
        given, truncated = 0, False
        async with aclosing(self._catalogue.threads.steps(lambda: self._catalogue.index.rows(query, asked))) as batches:
            async for batch in batches:
                rows = batch if query.limit is None else batch[: query.limit - given]
                truncated = truncated or len(rows) < len(batch)
                given += len(rows)
                for row in rows:
                    yield DicomRecord(row)
        yield _report(asked, truncated, self._catalogue.unread)

    async def retrieve(self, ref: Ref) -> AsyncGenerator[Part, None]:
        """Every instance as the file's exact bytes."""
        received = metrics.received_from(self.node).inc
        for held in await self._catalogue.held(ref):
            async with aclosing(self._catalogue.threads.steps(lambda held=held: _whole(held, received))) as body:  # type: ignore[misc]
                yield Part(held.instance, held.transfer_syntax, body, held.series, held.stamp[1])

    async def describe(self, ref: Ref) -> AsyncGenerator[Dataset, None]:
        """BulkDataURI is '<SOP Instance UID>/<path>'."""
        held = await self._catalogue.held(ref)
        async with aclosing(self._catalogue.threads.steps(lambda: self._described(held))) as described:
            async for dataset in described:
                yield dataset

    def _described(self, held: Sequence[Held]) -> Generator[Dataset, None, None]:
        for one in held:
            with open_instance(Path(one.path)) as instance:
                yield instance.metadata(
                    lambda path, one=one: f"{one.instance}/{path}",  # type: ignore[misc]
                    default_character_set=self._catalogue.character_set,
                )

    async def frames(self, ref: Ref, numbers: Sequence[int]) -> AsyncGenerator[FramePart, None]:
        """Nothing when the instance is not here. Frames that cannot be told apart are a NodeProtocolError."""
        for held in await self._one(ref):
            async with aclosing(frames_of(self._catalogue.threads, Path(held.path), numbers)) as frames:
                async for frame in frames:
                    yield frame

    async def bulkdata(self, ref: Ref, address: str) -> AsyncGenerator[FramePart, None]:
        """Encapsulated pixel data comes as one part per frame. Raises NotFound for an address never given out."""
        uid, _, path = address.partition("/")
        if ref.instance not in (None, uid):
            raise NotFound("the instance has no such bulk data")
        for held in await self._one(Ref(ref.study, ref.series, uid)):
            async with aclosing(bulk_value_of(self._catalogue.threads, Path(held.path), path)) as parts:
                async for part in parts:
                    yield part

    async def identify(self, ref: Ref) -> Dataset | None:
        held = next(iter(await self._one(ref)), None)
        if held is None:
            return None
        named = {
            STUDY_UID: held.study,
            SERIES_UID: held.series,
            INSTANCE_UID: held.instance,
            PATIENT_ID: held.patient,
            ISSUER: held.issuer,
        }
        return {tag: attribute(tag, [value]) for tag, value in named.items() if value}

    async def _one(self, ref: Ref) -> Sequence[Held]:
        """The file of an instance, if there is one. Raises NodeProtocolError where two patients have it: pixels do not say whose
        they are."""
        found = await self._catalogue.held(ref)
        if len({held.patient for held in found}) > 1 or len({held.issuer for held in found if held.issuer}) > 1:
            raise NodeProtocolError(self.node, "has this instance of two patients")
        return found[:1]

    async def store(self, parts: AsyncIterator[Part]) -> AsyncGenerator[StoreOutcome, None]:
        """What is stored is found at once. An instance that is here with other bytes is refused as a duplicate."""
        catalogue = self._catalogue
        await catalogue.up_to_date()
        if not self._is_swept:
            self._is_swept = True
            await catalogue.threads.call(sweep, catalogue.directory)
        async for part in parts:
            place_of, character_set = catalogue.index.instance, catalogue.character_set
            accepted = await accept(catalogue.readers, catalogue.directory, part, place_of, character_set)
            if accepted.held is not None:
                await catalogue.threads.call(catalogue.index.update, [accepted.held], [], [])
            yield accepted.outcome


def _whole(held: Held, count: Callable[[int], None]) -> Generator[bytes, None, None]:
    """The bytes of a file that is still the one in the index, all of them. Raises Part10Error where it is not."""
    with Path(held.path).open("rb", buffering=0) as file:
        status, left = fstat(file.fileno()), held.stamp[1]
        if (status.st_mtime_ns, status.st_size) != held.stamp:
            raise Part10Error("the file has changed")
        while left:
            chunk = file.read(min(_CHUNK, left))
            if not chunk:
                raise Part10Error("the file was cut off")
            left -= len(chunk)
            count(len(chunk))
            yield chunk


def _report(asked: Conditions, truncated: bool, unread: int) -> Report:
    return Report(
        matched=frozenset(asked.matched),
        ignored=frozenset(asked.ignored),
        unknown=frozenset(asked.unknown),
        truncated=truncated,
        complete_rows=True,
        gaps=(f"may not read {unread} of its files and directories, which are left out",) if unread else (),
    )
