"""Retrieves what is under a reference: lists it by C-FIND, then has it sent by C-GET or C-MOVE (PS3.4 C.4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydicom import Dataset as Identifier
from pynetdicom.presentation import PresentationContext, build_context

from gateway.adapters.dimse.associations import MAX_CONTEXTS, NodeAssociation, NothingAccepted, Response
from gateway.adapters.dimse.operations import Associations, Operation, find_context
from gateway.adapters.dimse.receiving import Event, Intake
from gateway.adapters.dimse.storage_contexts import COMPRESSED_SYNTAXES, classes_of, contexts_for, need_of
from gateway.adapters.dimse.storage_scp import StorageReceiver
from gateway.errors import NodeBusy, NodeError, NodeProtocolError, NodeRefused, Unsupported
from gateway.model.query import Ref
from gateway.wire.ceiling import FoundBytes

_ROOM = MAX_CONTEXTS - 1  # one is for the retrieve itself
_ASKED_AGAIN = 5
_OF_INSTANCES = ("SOPClassUID", "AvailableTransferSyntaxUID")
_SUBOPERATIONS_FAILED = 0xA702
_OUT_OF_RESOURCES = (0xA701, _SUBOPERATIONS_FAILED)
_SOP_CLASS_NOT_SUPPORTED = (0x0122, 0x0112, 0x0211)
_MOVE_DESTINATION_UNKNOWN = 0xA801
CANCELLED = 0xFE00
_REFUSALS = (NodeBusy, NodeRefused)


@dataclass(frozen=True, slots=True)
class Models:
    """The Query/Retrieve information models of one root (PS3.4 C.3)."""

    find: str
    get: str
    move: str


@dataclass(slots=True)
class Holdings:
    """What the node says it has under a reference. `series_of` is None when it cannot list instances."""

    series_of: dict[str, str] | None = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    classes_by_series: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether all classes fit into one association's contexts."""
        return need_of(self.classes) <= _ROOM

    def add(self, series: str, sop_class: str, modality: str, syntaxes: list[str]) -> None:
        for uid in (sop_class,) if sop_class else classes_of(modality):
            for classes in (self.classes, self.classes_by_series.setdefault(series, {})):
                announced = classes.setdefault(uid, [])
                announced.extend(syntax for syntax in syntaxes if sop_class and syntax not in announced)


class Retrieving:
    """One retrieve, in its thread. `destination` is our AE title as the node knows it; `senders` are the node's own."""

    def __init__(
        self,
        associations: Associations,
        models: Models,
        ref: Ref,
        *,
        relational: bool,
        receiver: StorageReceiver | None,
        destination: str,
        senders: tuple[str, ...],
    ) -> None:
        self._associations = associations
        self._models = models
        self._ref = ref
        self._relational = relational
        self._receiver = receiver
        self._destination = destination
        self._senders = senders
        self._node = associations.peer.node

    def by_get(self, operation: Operation[Event]) -> None:
        with _as_reported():
            self._get(operation, self._holdings(operation))

    def by_move(self, operation: Operation[Event]) -> None:
        with _as_reported():
            self._move(operation, self._holdings(operation))

    def by_either(self, operation: Operation[Event]) -> None:
        """C-GET; C-MOVE where the node does not do C-GET, or none of its sub-operations succeeded."""
        holdings = self._holdings(operation)
        with _as_reported():
            try:
                self._get(operation, holdings)
            except _NothingCame:
                if self._receiver is None:
                    raise
                self._move(operation, holdings)

    # What is there

    def _holdings(self, operation: Operation[Event], *, by_class: bool = False) -> Holdings:
        """By C-FIND at SERIES and IMAGE level; a node that refuses those, or lists a series and nothing in it, is asked blindly.

        The SOP classes are those of each series' modality; `by_class` those that the node tells of each instance, for
        which some read every file (Orthanc).
        """
        holdings = Holdings()
        try:
            with self._associations.searching(operation) as association:
                for series, modality in self._series(association):
                    listed = self._add_instances(association, holdings, series, modality, by_class)
                    if series and not listed and not self._ref.instance:
                        return _unlisted()
        except (NodeRefused, Unsupported):
            return _unlisted()
        return holdings

    def _series(self, association: NodeAssociation) -> Iterator[tuple[str, str]]:
        """(SeriesInstanceUID, Modality); ('', '') for all of them at once where the node is relational."""
        if self._ref.series is None and self._relational:
            yield "", ""
            return
        identifier = _identifier("SERIES", study=self._ref.study, series=self._ref.series or "", wanted=("Modality",))
        rows = self._rows(association, identifier)
        modalities = {str(row.get("SeriesInstanceUID") or ""): str(row.get("Modality") or "").strip() for row in rows}
        yield from ((series, modality) for series, modality in modalities.items() if series)

    def _add_instances(
        self, association: NodeAssociation, holdings: Holdings, series: str, modality: str, by_class: bool
    ) -> int:
        """How many there are."""
        wanted = ("SeriesInstanceUID", "Modality", *(_OF_INSTANCES if by_class else ()))
        instance = self._ref.instance or ""
        identifier = _identifier("IMAGE", study=self._ref.study, series=series, instance=instance, wanted=wanted)
        before = len(holdings.series_of or ())
        for row in self._rows(association, identifier):
            uid = str(row.get("SOPInstanceUID") or "")
            if not uid or holdings.series_of is None or (instance and uid != instance):
                continue
            of_series = str(row.get("SeriesInstanceUID") or series)
            holdings.series_of[uid] = of_series
            syntaxes = row.get("AvailableTransferSyntaxUID") or []
            listed = [str(s) for s in syntaxes] if not isinstance(syntaxes, str) else [str(syntaxes)]
            of_modality = modality or str(row.get("Modality") or "").strip()
            holdings.add(of_series, str(row.get("SOPClassUID") or ""), of_modality, listed)
        return len(holdings.series_of or ()) - before

    def _rows(self, association: NodeAssociation, identifier: Identifier) -> list[Identifier]:
        rows, found = [], FoundBytes(self._node, "listed what it has in")
        for response in association.find(identifier, self._models.find):
            found.add(len(response.data_set or b""))
            row = response.identifier() if response.is_pending else None
            if row is not None:
                rows.append(row)
            elif response.status != 0x0000:
                raise NodeRefused(self._node, f"answered C-FIND with status {response.status:04X}")
        return rows

    # C-GET

    def _get(self, operation: Operation[Event], holdings: Holdings) -> None:
        if holdings.series_of == {}:
            return
        if holdings.series_of is not None and not holdings.fits and not self._ref.series:
            holdings = self._holdings(operation, by_class=True)
        intake = Intake(operation.channel, holdings.series_of, operation.stop)
        found = self._get_guessed(operation, intake, holdings)
        if intake.missing and not intake.broken and not _is_refused(found):
            self._get_by_class(operation, intake, holdings)
            if intake.missing and not intake.broken:
                self._get_by_syntax(operation, intake, holdings)
        self._conclude(intake, found)

    def _get_guessed(self, operation: Operation[Event], intake: Intake, holdings: Holdings) -> list[NodeError | None]:
        """What was wrong with each round. Orthanc goes out of protocol over an instance of a class that was not proposed."""
        found: list[NodeError | None] = []
        try:
            for ref, classes in self._rounds(holdings):
                found.append(self._get_round(operation, intake, ref, classes))
        except NodeProtocolError as error:
            found.append(error)
        return found

    def _get_by_class(self, operation: Operation[Event], intake: Intake, holdings: Holdings) -> None:
        """What did not come is asked for again where it is of a class that its series' modality does not suggest."""
        told = self._holdings(operation, by_class=True).classes_by_series
        for ref in list(self._lacking(intake)):
            guessed, classes = holdings.classes_by_series[ref.series or ""], told.get(ref.series or "", {})
            if not classes.keys() <= guessed.keys():
                self._get_round(operation, intake, ref, classes)
        holdings.classes_by_series |= told

    def _rounds(self, holdings: Holdings) -> Iterator[tuple[Ref, Mapping[str, list[str]]]]:
        """One C-GET for all, or one per series where all classes do not fit into one association's contexts."""
        if self._ref.series or holdings.series_of is None or need_of(holdings.classes) <= _ROOM:
            yield self._located(holdings), holdings.classes
            return
        for series, classes in holdings.classes_by_series.items():
            yield Ref(self._ref.study, series), classes

    def _get_by_syntax(self, operation: Operation[Event], intake: Intake, holdings: Holdings) -> None:
        """DCMTK's dcmqrscp sends by the first context of a class, whatever the file's syntax. What failed is asked for
        again with one compressed syntax on offer at a time: whole series, or a few instances, but nothing twice.
        """
        for syntax in COMPRESSED_SYNTAXES:
            for ref in self._lacking(intake):
                classes = holdings.classes_by_series[ref.series or ""]
                if isinstance(self._get_round(operation, intake, ref, classes, only=syntax), _REFUSALS):
                    return
            if not intake.missing:
                return

    def _lacking(self, intake: Intake) -> Iterator[Ref]:
        for series, instances in intake.lacking().items():
            if not instances and not self._ref.instance:
                yield Ref(self._ref.study, series)
            elif len(instances) <= _ASKED_AGAIN:
                yield from (Ref(self._ref.study, series, uid) for uid in instances or [self._ref.instance or ""])

    def _get_round(
        self,
        operation: Operation[Event],
        intake: Intake,
        ref: Ref,
        classes: Mapping[str, list[str]],
        only: str = "",
    ) -> NodeError | None:
        """One association, one C-GET; what its final response found wrong. `only` proposes no other syntax."""
        contexts = [build_context(uid, only) for uid in classes] if only else contexts_for(classes, _ROOM)
        try:
            with self._associations.other(operation, self._association_for_get(intake, contexts)) as association:
                if not association.accepts(self._models.get):
                    raise NothingAccepted(self._node, "does not accept C-GET")
                if not any(association.accepts(str(c.abstract_syntax), as_scp=True) for c in contexts):
                    return Unsupported(self._node, "does not send such instances by C-GET")
                before = intake.refused, len(intake.received)
                final = _final(association.get(_identifier_of(ref), self._models.get))
                return self._complaint(final, intake, before, "C-GET")
        except NothingAccepted:
            error = Unsupported(self._node, "does not accept C-GET")
            raise error if intake.anything else _NothingCame(error) from None

    def _association_for_get(self, intake: Intake, contexts: list[PresentationContext]) -> NodeAssociation:
        return NodeAssociation(
            self._associations.peer,
            [*find_context(self._models.get), *contexts],
            scp_roles=list(dict.fromkeys(str(c.abstract_syntax) for c in contexts)),
            open_sink=lambda command, syntax: intake.open(command.sop_class_uid, command.sop_instance_uid, syntax),
        )

    def _located(self, holdings: Holdings) -> Ref:
        """The reference with its series, which a retrieve of one instance must name (PS3.4 C.4.2.1.4)."""
        ref = self._ref
        if ref.instance and not ref.series and holdings.series_of:
            return Ref(ref.study, holdings.series_of[ref.instance], ref.instance)
        return ref

    # C-MOVE

    def _move(self, operation: Operation[Event], holdings: Holdings) -> None:
        if holdings.series_of == {}:
            return
        if self._receiver is None:
            raise Unsupported(self._node, "C-MOVE needs a receiver, and none is configured")
        intake = Intake(operation.channel, holdings.series_of, operation.stop)
        association = NodeAssociation(self._associations.peer, find_context(self._models.move))
        originator = self._associations.peer.calling_ae_title
        with (
            self._associations.other(operation, association),
            self._receiver.expecting(originator, self._senders, intake) as message_id,
        ):
            if not association.accepts(self._models.move):
                raise Unsupported(self._node, "does not accept C-MOVE")
            identifier = _identifier_of(self._located(holdings))
            responses = association.move(
                identifier, self._models.move, self._destination, message_id, lambda: intake.heard
            )
            found = self._complaint(_final(responses), intake, (0, 0), "C-MOVE")
        self._conclude(intake, [found])

    # What came

    def _complaint(self, final: Response, intake: Intake, before: tuple[int, int], service: str) -> NodeError | None:
        """What the final response says went wrong (PS3.4 C.4.2.1.5, C.4.3.1.4), without what we refused ourselves; `before` is
        how many had been refused and received until then."""
        refused, received = intake.refused - before[0], len(intake.received) - before[1]
        status, failed, lost = final.status, final.failed - refused, final.sent - received - refused
        is_done = status == 0x0000 or status >> 12 == 0xB
        if failed > 0 and (is_done or status >> 12 == 0xC or status == _SUBOPERATIONS_FAILED):
            return NodeProtocolError(self._node, f"{failed} sub-operations of {service} failed")
        if not is_done:
            return self._refusal(status, service)
        return (
            NodeProtocolError(self._node, f"{lost} instances that it says it sent did not arrive") if lost > 0 else None
        )

    def _conclude(self, intake: Intake, found: list[NodeError | None]) -> None:
        """Raises unless all that the node lists has come and nothing else, or, where it could not list, unless nothing went
        wrong. What comes unlisted may be a list that was cut off; beside one instance that was asked for it is nothing."""
        complaints = [error for error in found if error]
        error: NodeError | None = None
        if intake.broken:
            error = NodeProtocolError(self._node, f"{intake.broken} instances broke off")
        elif intake.missing and intake.refused:
            error = NodeProtocolError(self._node, f"sent {intake.refused} instances that were not asked for")
        elif intake.missing:
            error = (
                complaints[0]
                if complaints
                else NodeProtocolError(self._node, f"{intake.missing} instances that it lists did not arrive")
            )
        elif intake.unlisted and not self._ref.instance:
            error = NodeProtocolError(self._node, f"sent {intake.unlisted} instances that it had not listed")
        elif complaints and not intake.names_instances:
            error = complaints[0]
        if error:
            raise error if intake.anything else _NothingCame(error)

    def _refusal(self, status: int, service: str) -> NodeError:
        if status in _OUT_OF_RESOURCES:
            return NodeBusy(self._node, f"is out of resources for {service}")
        if status in _SOP_CLASS_NOT_SUPPORTED:
            return Unsupported(self._node, f"does not support {service}")
        if status == _MOVE_DESTINATION_UNKNOWN:
            return NodeRefused(self._node, f"does not know {self._destination} as a C-MOVE destination")
        if status == CANCELLED:
            return NodeProtocolError(self._node, f"cancelled {service} by itself")
        return NodeRefused(self._node, f"answered {service} with status {status:04X}")


def _unlisted() -> Holdings:
    """What a node has that does not list it: anything."""
    blind = Holdings(series_of=None)
    blind.add("", "", "", [])
    return blind


class _NothingCame(Exception):
    """A retrieve failed before its first instance: another way may be tried. `error` is what the caller would get."""

    def __init__(self, error: NodeError) -> None:
        self.error = error


@contextmanager
def _as_reported() -> Iterator[None]:
    try:
        yield
    except _NothingCame as failure:
        raise failure.error from None


def _is_refused(found: list[NodeError | None]) -> bool:
    """Whether the node does not send at all: asked in another way, it would only be asked too much."""
    return any(isinstance(error, _REFUSALS) for error in found) or all(
        isinstance(error, Unsupported) for error in found
    )


def _final(responses: Iterator[Response]) -> Response:
    """The final response; until then sub-operations run, and `responses` sees to it that silence ends."""
    *_, final = responses
    return final


def _identifier_of(ref: Ref) -> Identifier:
    return _identifier(str(ref.level), study=ref.study, series=ref.series or "", instance=ref.instance or "")


def _identifier(
    level: str, *, study: str, series: str = "", instance: str = "", wanted: tuple[str, ...] = ()
) -> Identifier:
    identifier = Identifier()
    for keyword in wanted:
        setattr(identifier, keyword, None)
    identifier.QueryRetrieveLevel = level
    identifier.StudyInstanceUID = study
    if level != "STUDY" and (series or wanted):
        identifier.SeriesInstanceUID = series
    if level == "IMAGE":
        identifier.SOPInstanceUID = instance
    return identifier
