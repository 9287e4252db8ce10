"""Whose a study is at the node that is to store more of it: an instance of another patient is not mixed into it.

The node is asked in its own words, anew, once per study and request. Its file is compared with the file that comes, so a mapping
that takes the patient's id from elsewhere plays no part.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.errors import Unsupported
from gateway.federation.incoming import Arrived
from gateway.federation.merge import Domains
from gateway.federation.node import Node, aclosing_iterator
from gateway.model.dataset import Dataset, text
from gateway.model.patient import PatientKey, can_be_read, issuer_of
from gateway.model.query import Operator, Ref
from gateway.model.seam import Finds, NativeMatch, NativeQuery, Report, Retrieves, Stores
from gateway.model.vocabulary import INSTANCE_UID, PATIENT_ID, SERIES_UID, STUDY_UID, Level, keyword
from gateway.wire.dicomjson import DicomRecord
from gateway.wire.part10 import AFTER_UIDS, Part10Error, identify, open_part10

_RETURNED = ("PatientID", "IssuerOfPatientID")
_REMEMBERED, _MOST_REMEMBERED = 60.0, 10_000


@dataclass(slots=True)
class Claims:
    """Whose the studies are that are being stored now, and whose files were looked into lately, by node and study.

    Two requests at once must not begin one study for two patients, whatever node file each of them began under: claims are by
    the node's id, what was found there by its digest. Kept by each process for itself.
    """

    _claimed: dict[tuple[str, str], PatientKey] = field(default_factory=dict)
    _users: Counter[tuple[str, str]] = field(default_factory=Counter)
    _seen: OrderedDict[tuple[str, str], tuple[float, PatientKey]] = field(default_factory=OrderedDict)

    def claim(self, node: str, study: str, patient: PatientKey) -> bool:
        """Whether nobody else claims the study for another patient; it is then claimed until `release`."""
        name = (node, study)
        if self._claimed.setdefault(name, patient) != patient:
            return False
        self._users[name] += 1
        return True

    def release(self, node: str, study: str) -> None:
        name = (node, study)
        self._users[name] -= 1
        if self._users[name] <= 0:
            del self._users[name], self._claimed[name]

    def seen(self, node: str, study: str) -> PatientKey | None:
        """Whose file was found in the study a short while ago."""
        until, patient = self._seen.get((node, study), (0.0, None))
        return patient if time.monotonic() < until else None

    def remember(self, node: str, study: str, patient: PatientKey) -> None:
        self._seen[node, study] = time.monotonic() + _REMEMBERED, patient
        self._seen.move_to_end((node, study))
        if len(self._seen) > _MOST_REMEMBERED:
            self._seen.popitem(last=False)


@dataclass(slots=True)
class Whose:
    """For one request at one node; `close` ends its claims."""

    node: Node
    adapter: Stores
    domains: Domains
    claims: Claims
    _told: dict[tuple[str, PatientKey], bool] = field(default_factory=dict)
    _claimed: set[str] = field(default_factory=set)

    def close(self) -> None:
        for study in self._claimed:
            self.claims.release(self.node.id, study)
        self._claimed.clear()

    def known(self, one: Arrived) -> bool | None:
        """Whether the study is of the instance's patient, where that was found out already in this request."""
        return self._told.get((one.ref.study, self._patient(one.found)))

    async def fits(self, one: Arrived) -> bool:
        """Whether the study at the node, if it has it, is of the instance's patient. Raises NodeError."""
        known = self.known(one)
        if known is None:
            study, patient = one.ref.study, self._patient(one.found)
            known = self._told[study, patient] = await self._is_free_for(study, patient)
        return known

    async def _is_free_for(self, study: str, patient: PatientKey) -> bool:
        """A study that the request has claimed already is another patient's: this one's would be known."""
        if study in self._claimed or not self.claims.claim(self.node.id, study, patient):
            return False
        fits = False
        try:
            fits = await self._is_patients(study, patient)
        finally:
            if fits:
                self._claimed.add(study)
            else:
                self.claims.release(self.node.id, study)
        return fits

    def _patient(self, found: Dataset) -> PatientKey:
        return self.node.reader.patient(found, self.node.reader.issuer)

    async def _is_patients(self, study: str, patient: PatientKey) -> bool:
        """A node that cannot be searched, or does not have the study, contradicts nobody."""
        finder = self.adapter
        if not isinstance(finder, Finds) or not self.node.may("find"):
            return True
        query = NativeQuery(Level.STUDY, (_exactly(STUDY_UID, study),), return_=_RETURNED)
        try:
            rows, is_whole = await self._rows(finder, query)
        except Unsupported:
            return True
        for row in rows:
            held = self._patient(row)
            if held.id != patient.id or not can_be_read(text(row, PATIENT_ID)):
                return False
            # Many nodes keep an issuer that they do not tell: then only a file of the study says whose it is.
            if not issuer_of(row, "") and not is_whole:
                held = await self._inside(finder, study) or held
            if held.id != patient.id or not self._is_same_issuer(held.issuer, patient.issuer):
                return False
        return True

    def _is_same_issuer(self, one: str, other: str) -> bool:
        return one == other or self.domains.same(one, other)

    async def _rows(self, finder: Finds, query: NativeQuery) -> tuple[list[Dataset], bool]:
        """Those of the study asked for, and whether what a row leaves out has no value."""

        async def ask() -> tuple[list[Dataset], bool]:
            rows, is_whole = [], False
            async with aclosing_iterator(finder.find(query)) as records:
                async for record in records:
                    if isinstance(record, Report):
                        is_whole = record.complete_rows
                    elif isinstance(record, DicomRecord):
                        rows.append(record.dataset)
            return rows, is_whole

        wanted = query.study or query.match[0].values[0]
        rows, is_whole = await self.node.asking("find", lambda _: ask())
        return [row for row in rows if text(row, STUDY_UID) in ("", wanted)], is_whole

    async def _inside(self, finder: Finds, study: str) -> PatientKey | None:
        """The patient of one instance of the study; None where the node gives none."""
        seen = self.claims.seen(self.node.digest, study)
        if seen is not None or not isinstance(finder, Retrieves) or not self.node.may("retrieve"):
            return seen
        try:
            ref = await self._any_instance(finder, study)
            found = await self.node.asking("retrieve", lambda _: _head(finder, ref)) if ref else None
        except Unsupported:
            return None
        if found is None:
            return None
        patient = self._patient(found)
        self.claims.remember(self.node.digest, study, patient)
        return patient

    async def _any_instance(self, finder: Finds, study: str) -> Ref | None:
        series, _ = await self._rows(finder, NativeQuery(Level.SERIES, study=study, limit=1))
        for uid in _uids(series, SERIES_UID):
            instances, _ = await self._rows(finder, NativeQuery(Level.IMAGE, study=study, series=uid, limit=1))
            for instance in _uids(instances, INSTANCE_UID):
                return Ref(study, uid, instance)
        return None


async def _head(finder: Retrieves, ref: Ref) -> Dataset | None:
    """What identifies the instance; the rest of it is not read."""
    async with aclosing_iterator(finder.retrieve(ref)) as parts:
        async for part in parts:
            try:
                stream = await open_part10(part.body, until=AFTER_UIDS)
                return identify(stream)
            except Part10Error:
                return None
    return None


def _exactly(tag: str, value: str) -> NativeMatch:
    return NativeMatch(keyword(tag), Operator.EXACT, (value,), of=(tag,))


def _uids(rows: Sequence[Dataset], tag: str) -> list[str]:
    return [uid for row in rows if (uid := text(row, tag))]
