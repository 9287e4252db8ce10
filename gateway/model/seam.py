"""The seam between the gateway and its nodes: what an adapter is asked, and the capabilities it may have.

Rules that every adapter keeps (and tests/behaviour holds):
- The constructor does no I/O. `open()` may; `close()` gives everything back.
- No match is an empty stream. Leaving a stream early (aclose, cancellation) releases the association, connection or cursor.
- No retry, cache, mapping, policy or payload logging in an adapter. Every failure is a gateway.errors.NodeError.
- Every body is chunks; nobody ever holds a whole instance in memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gateway.model.dataset import Dataset
from gateway.model.query import Operator, Ref
from gateway.model.vocabulary import Level

Value = str | int | float | list[str] | list[int] | list[float]


@dataclass(frozen=True, slots=True)
class NativeMatch:
    """One key in the node's own words: a path in its format, the operator and the values as in model.query.Match.

    `of` is the DICOM path the key came from, for adapters whose search parameters have names of their own.
    """

    path: str
    operator: Operator
    values: tuple[str, ...]
    of: tuple[str, ...] = ()


Shown = tuple[str, str | None]
"""The StudyDate and StudyTime of a study, as its node gave them; None for a time that it said nothing of."""


@dataclass(frozen=True, slots=True)
class NativeQuery:
    """One question to one node. `study` / `series` are the UIDs above. `return_` are native paths wanted back.

    `character_set` is the node's (0008,0005) for requests with non-ASCII keys. `limit` is a ceiling on rows, None for no ceiling.
    `samples`: of an answer that the limit cuts off, only when its studies were is wanted (`Report.sample`). An adapter may give
    its rows all the same.
    """

    level: Level
    match: tuple[NativeMatch, ...] = ()
    study: str | None = None
    series: str | None = None
    return_: tuple[str, ...] = ()
    all_attributes: bool = False
    character_set: str = ""
    fuzzy: bool = False
    limit: int | None = None
    samples: bool = False


class Record(Protocol):
    """One row as the node gave it."""

    def value(self, path: str) -> Value | None:
        """The value at a path in the node's own format (a DICOM keyword or tag path, a FHIRPath, a column); None when absent."""

    def children(self, path: str) -> Iterable[Record]:
        """One record per series, identifier or sequence item, so that what belongs together stays together."""


NOT_WHOLE = "says that its answer is not whole"
"""A gap of which the node's own word is all that is known."""


@dataclass(frozen=True, slots=True)
class Report:
    """Ends every `find`: which native paths the node matched itself, which it had but ignored, which it does not know.

    Every row is matched again here whatever this says. `truncated` says that the node stopped at its own maximum.
    `complete_rows` says that an attribute missing from a row has no value; otherwise it is merely not known at this level.
    `gaps` say what else is missing, in words that are safe to show and follow the node's name.
    `sample` stands for the rows of an answer that was cut off, where that is all that was asked for; no row came then.
    """

    matched: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()
    truncated: bool = False
    complete_rows: bool = False
    gaps: tuple[str, ...] = ()
    sample: tuple[Shown, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """One instance on its way: `body` is a DICOM Part 10 file in chunks of at most 1 MiB (preamble, File Meta, data set).

    `transfer_syntax` is that of the body as the node gave it. The UIDs are what the node says; the federation checks them.
    `file` is the same bytes whole, where they lie on disk until the next Part is asked for; only a Part to be stored has one.
    """

    sop_instance_uid: str
    transfer_syntax: str
    body: AsyncIterator[bytes]
    series_instance_uid: str = ""
    size: int | None = None
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class FramePart:
    """One frame, or one bulk data value: raw bytes with the media type and transfer syntax they are in.

    For a frame `number` is 1-based; for bulk data it is 0. `body` is chunks.
    """

    number: int
    media_type: str
    transfer_syntax: str
    body: AsyncIterator[bytes]
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Location:
    """Where the pixels are, when an adapter finds only an address: `protocol` names the adapter that can open `address`."""

    protocol: str
    address: str
    ref: Ref


@dataclass(frozen=True, slots=True)
class StoreOutcome:
    """What became of one stored instance: Failure Reason (0008,1197) and Warning Reason (0008,1196), 0 for none."""

    sop_class_uid: str
    sop_instance_uid: str
    failure: int = 0
    warning: int = 0


@dataclass(frozen=True, slots=True)
class ResourceQuery:
    """One question for whole FHIR resources of `kind`, answered by what has one of `ids`, else by what is about the `study`,
    else by what is the `patient`'s, and bears one of `identifiers` (FHIR tokens, escaped), as far as each is given.

    `patient` has the keys on the patient's id and issuer in the node's own words. `limit` is a ceiling on resources.
    """

    kind: str
    patient: NativeQuery
    identifiers: tuple[str, ...] = ()
    study: str = ""
    ids: tuple[str, ...] = ()
    limit: int = 1000


@dataclass(frozen=True, slots=True)
class NodeResource:
    """A resource as the node gave it, in its FHIR `version`. `bearer` is a record with whose it is at `subject` and `patient`,
    for the mapping to read: it names nobody where the node does not say, or contradicts itself.

    `studies` are the StudyInstanceUIDs behind its references to ImagingStudy, where they could be resolved. `address` is where
    it lies at another server whose it is, '' for the node's own.
    """

    resource: dict[str, Any]
    version: str
    bearer: Record
    studies: dict[str, str] = field(default_factory=dict)
    address: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a node showed of itself when asked: for `ping`, /nodes and the planning of searches.

    `quirks` are short stable words. `latency` is seconds. `advice` are lines for a person: what to put into the node file,
    what the PACS administrator has to enter.
    """

    product: str = ""
    capabilities: tuple[str, ...] = ()
    quirks: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    latency: float = 0.0
    details: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class Finds(Protocol):
    def find(self, query: NativeQuery) -> AsyncIterator[Record | Report]:
        """Records in the node's order; the last item is the Report."""


@runtime_checkable
class FindsByTime(Protocol):
    @property
    def takes_times(self) -> bool:
        """Whether the node itself is asked for a range of StudyTime, and its answer is no more than that."""


@runtime_checkable
class Resources(Protocol):
    def resources(self, query: ResourceQuery) -> AsyncIterator[NodeResource | Report]:
        """What the node has of the kind, possibly more than was asked for; the last item is the Report. A node that has
        nothing of the kind gives none. Raises NodeError, also where it cannot be asked by what is given."""


@runtime_checkable
class Retrieves(Protocol):
    def retrieve(self, ref: Ref) -> AsyncIterator[Part]:
        """Every instance under `ref`, as stored. A Part's body must be consumed (or left) before the next Part is asked for.

        Raises Unsupported, or a NodeError; an empty stream means that the node does not have it.
        """


@runtime_checkable
class Describes(Protocol):
    def describe(self, ref: Ref) -> AsyncIterator[Dataset]:
        """One data set per instance in the DICOM JSON model, VRs kept. Long values are {"vr", "BulkDataURI"}, the address
        being the node's own."""


@runtime_checkable
class Frames(Protocol):
    def frames(self, ref: Ref, numbers: Sequence[int]) -> AsyncIterator[FramePart]:
        """The frames (1-based) in the order asked for. Raises InvalidQuery for a number the instance does not have."""


@runtime_checkable
class BulkData(Protocol):
    def bulkdata(self, ref: Ref, address: str) -> AsyncIterator[FramePart]:
        """One bulk data value by the BulkDataURI that `describe` gave."""


@runtime_checkable
class Identifies(Protocol):
    async def identify(self, ref: Ref) -> Dataset | None:
        """Whose an instance is as it lies there now: its UIDs and its patient's identifiers; None where it is gone. Frames and
        bulk data carry none, and what they are read from may be another one since it was described."""


@runtime_checkable
class Lists(Protocol):
    """Of an adapter that cannot tell from an answer by itself whether all is there."""

    async def lacking(self, ref: Ref, given: Collection[str]) -> Sequence[Ref]:
        """The instances under `ref` (a study or a series) that the node lists beside those that it gave (SOP Instance UIDs);
        none also where it lists none. Raises NodeError."""


@runtime_checkable
class Locates(Protocol):
    async def locate(self, ref: Ref) -> Sequence[Location]:
        """Where the instances under `ref` can be opened; empty when the node does not know them."""


@runtime_checkable
class Stores(Protocol):
    def store(self, parts: AsyncIterator[Part]) -> AsyncIterator[StoreOutcome]:
        """Stores each instance; one outcome each, in order, told as soon as it is known: it stands, whatever fails later.

        Raises NodeError when the node cannot be talked to, Unsupported when it stores nothing.
        """


@runtime_checkable
class Adapter(Protocol):
    """What every adapter has; its other capabilities are the methods it has."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def probe(self) -> Probe:
        """Asks the node what it can do. Raises a NodeError when it does not answer."""
