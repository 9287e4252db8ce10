"""What leaves, as its caller may see it: results and pages, instances in a syntax that was asked for, metadata, pictures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from gateway.errors import NodeProtocolError, NotAcceptable, NotFound
from gateway.federation.federate import absent
from gateway.federation.node import aclosing_iterator
from gateway.federation.page import Reach, ordered
from gateway.federation.pictures import Picture
from gateway.federation.retrieve import OpenedInstance
from gateway.federation.sighted import Watch
from gateway.imaging.processes import Imaging
from gateway.imaging.syntaxes import EXPLICIT, NATIVE_SYNTAXES, can_become
from gateway.imaging.transcoding import has_pixels, transcoded
from gateway.model.answer import Answer, Found, Issue
from gateway.model.dataset import Dataset, items
from gateway.model.query import Ref
from gateway.model.seam import FramePart
from gateway.privacy.view import View, view_found
from gateway.security.audit import AuditRecord
from gateway.wire.elements import Part10Error
from gateway.wire.transfer import FORBIDDEN_ON_THE_WEB, explicit_little_endian, rewrite, written_syntax
from gateway.wire.written import Written, write


@dataclass(frozen=True, slots=True)
class StudyTree:
    """One study whole: its series, each with its instances, as the caller may see them.

    `is_whole` says that every node that holds it told all it has: only then may anything be counted.
    """

    study: Found
    series: tuple[tuple[Found, tuple[Found, ...]], ...]
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class OutgoingInstance:
    """One instance ready to leave: the UIDs and syntax that the caller will find in `body`, a Part 10 file in chunks."""

    ref: Ref
    transfer_syntax: str
    body: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A retrieve under way; `instances` raises if anything fails later. `issues` name silent nodes and known gaps;
    `partial` says that there are gaps: something a holder has is missing."""

    instances: AsyncIterator[OutgoingInstance]
    issues: tuple[Issue, ...]
    partial: bool


@dataclass(frozen=True, slots=True)
class OutgoingParts:
    """Frames or bulk data under way, the first of them there; `issues` name silent nodes."""

    parts: AsyncIterator[FramePart]
    issues: tuple[Issue, ...]


@dataclass(frozen=True, slots=True)
class OutgoingPictures:
    """Rendered pictures under way, the first of them there; `issues` and `partial` as in Outgoing, `notes` for the caller."""

    pictures: AsyncIterator[Picture]
    issues: tuple[Issue, ...]
    partial: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Metadata:
    """The metadata of every instance once, as JSON text; `issues` and `partial` as in Outgoing."""

    pieces: tuple[Written, ...]
    issues: tuple[Issue, ...]
    partial: bool


def reach_as_seen(reach: Reach, view: View) -> Reach:
    """The caller's conditions hold for what the caller sees."""
    accepts = reach.accepts
    if accepts is None or view.is_plain:
        return reach
    return replace(reach, accepts=lambda found: accepts(view_found(view, found)))


def reach_of_watch(reach: Reach, watch: Watch) -> Reach:
    """Takes only what the watch takes."""
    accepts = reach.accepts
    if accepts is None:
        return replace(reach, accepts=watch.takes, takes_most=False)
    return replace(reach, accepts=lambda found: watch.takes(found) and accepts(found), takes_most=False)


Choice = Callable[[Sequence[Found]], Found]


def chosen_as_seen(choose: Choice, answer: Answer[Found], view: View) -> Found:
    """The original of the result that was chosen among what the caller may see; a silent node may have the one meant."""
    seen = [view_found(view, one) for one in answer.items]
    try:
        return answer.items[seen.index(choose(seen))]
    except NotFound:
        raise absent("the study of that id", answer.issues) from None


def instances_by_series(series: Sequence[Found], answers: Sequence[Answer[Found]]) -> list[list[Found]]:
    """The instances in the order of the ordered series."""
    by_series = {id(one): ordered(answer.items) for one, answer in zip(series, answers, strict=True)}
    return [by_series[id(one)] for one in ordered(series)]


async def outgoing(one: OpenedInstance, view: View, wanted: Sequence[str], imaging: Imaging) -> OutgoingInstance:
    """The instance in one of the syntaxes asked for: as stored where that will do, Explicit VR LE where the web forbids the
    stored one, else with its pixels in the first of them that they can be given in.

    Raises NotAcceptable where there is none.
    """
    stored, ref = one.stream.transfer_syntax, ref_as_seen(view, one.ref)
    available = stored if view.is_plain else written_syntax(stored)
    asked = available if available in wanted else next((one for one in wanted if _fits(stored, one)), None)
    if asked is None:
        raise _not_available(available)
    syntax, body = await _given(one, view, available, asked, imaging)
    return OutgoingInstance(ref, syntax, _readable(one.node, body))


async def _given(
    one: OpenedInstance, view: View, available: str, asked: str, imaging: Imaging
) -> tuple[str, AsyncIterator[bytes]]:
    stored = one.stream.transfer_syntax
    if not view.is_plain and asked in ("", "*", available):
        return available, rewrite(one.stream, view.instance)
    if asked in ("*", stored) or (not asked and stored not in FORBIDDEN_ON_THE_WEB):
        return stored, one.stream.raw()
    if stored in FORBIDDEN_ON_THE_WEB and asked in ("", EXPLICIT):
        return EXPLICIT, explicit_little_endian(one.stream)
    if stored in NATIVE_SYNTAXES and (asked == EXPLICIT or not await _has_pixels(one)):
        return EXPLICIT, rewrite(one.stream, view.instance)
    return asked, transcoded(one.stream, asked, imaging, view.instance)


async def _readable(node: str, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same chunks; what cannot be read is what the node sent, which before the first chunk can still be said."""
    try:
        async with aclosing_iterator(body) as chunks:
            async for chunk in chunks:
                yield chunk
    except Part10Error:
        raise NodeProtocolError(node, "sent an instance that cannot be read") from None


def _fits(stored: str, asked: str) -> bool:
    return asked in ("", "*") or can_become(stored, asked)


async def _has_pixels(one: OpenedInstance) -> bool:
    try:
        return await has_pixels(one.stream)
    except Part10Error:
        raise NodeProtocolError(one.node, "sent an instance that cannot be read") from None


def _not_available(available: str) -> NotAcceptable:
    return NotAcceptable(
        f"the instance is stored as {available}; ask for that, for '*', for {EXPLICIT} or a lossless syntax, "
        "or leave transfer-syntax out",
        parameter="Accept",
    )


def ref_as_seen(view: View, ref: Ref) -> Ref:
    """The UIDs as the caller knows them."""
    return Ref(view.uid(ref.study), ref.series and view.uid(ref.series), ref.instance and view.uid(ref.instance))


async def view_pictures(view: View, pictures: AsyncIterator[Picture], record: AuditRecord) -> AsyncIterator[Picture]:
    """Each counted in the audit, under the UIDs that the caller knows."""
    async for one in pictures:
        record.count += 1
        yield replace(one, ref=ref_as_seen(view, one.ref))


def view_written(view: View, piece: Written) -> Written:
    """Metadata as the caller may see it."""
    return piece if view.is_plain else write(view.dataset(dataset) for dataset in piece.datasets())


def require_shown(view: View, pieces: Sequence[Written], path: Sequence[str]) -> None:
    """Raises NotFound for a value that is not in the metadata (of one instance) as the caller may see them. `path` has tags, with
    the numbers of items between them."""
    found: list[Dataset] = [view.dataset(dataset) for piece in pieces for dataset in piece.datasets()]
    *above, last = path
    for tag_, number in zip(above[::2], above[1::2], strict=True):
        found = [item for dataset in found for item in items(dataset, tag_)[int(number) - 1 : int(number)]]
    if not any("BulkDataURI" in dataset.get(last, {}) for dataset in found):
        raise NotFound("there is no such bulk data")


def view_issues(view: View, issues: Sequence[Issue]) -> tuple[Issue, ...]:
    """Their texts without what the caller may not see."""
    return tuple(replace(issue, text=view.error(issue.text)) for issue in issues)
