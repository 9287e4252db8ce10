"""What an answer is about: the studies and patients by which a purge finds it where it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gateway.cache.tags import ANY_ISSUER, Tag, patient_tag, study_tag
from gateway.model.patient import PatientKey
from gateway.model.query import Operator, Query
from gateway.model.study import Row
from gateway.model.vocabulary import PATIENT_ID, STUDY_UID


def of_rows(rows: Iterable[Row], query: Query, patients: Iterable[PatientKey] = ()) -> frozenset[Tag]:
    """The tags of the rows and of the question: that there is nothing of a study is about that study too, and about its
    `patients`, whom rows below STUDY need not name."""
    named = (patient_tag(key.issuer, key.id) for key in patients)
    return frozenset((*_of_question(query), *named, *(tag for row in rows for tag in of_row(row))))


def of_row(row: Row) -> Iterator[Tag]:
    """The tags of a row: its study, and its patient under all identifiers."""
    yield study_tag(row.study)
    for key in (row.patient, *row.linked):
        yield patient_tag(key.issuer, key.id)
    for child in row.children:
        yield from of_row(child)


def _of_question(query: Query) -> Iterator[Tag]:
    uids = (query.study or "", *_values(query, STUDY_UID))
    yield from (study_tag(uid) for uid in uids if uid)
    # Questions that differ in the issuer only may be one question to a node, so theirs is left open.
    yield from (patient_tag(ANY_ISSUER, identifier) for identifier in _values(query, PATIENT_ID))


def _values(query: Query, tag: str) -> tuple[str, ...]:
    match = query.match_on(tag)
    return match.values if match is not None and match.operator in (Operator.EXACT, Operator.LIST) else ()
