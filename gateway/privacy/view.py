"""The view that every answer passes on its way out and every identifier on its way in; the plain view changes nothing.

A view works in both directions: `query` and `ref` turn what the caller knows into what the nodes know, before planning;
`dataset`, `instance`, `uid` and `error` turn it back. No route bypasses it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import pydicom

from gateway.model.answer import Found
from gateway.model.dataset import Dataset
from gateway.model.patient import patient_of
from gateway.model.query import Query, Ref
from gateway.model.study import Row


class View(Protocol):
    """What one caller may see. `digest` is in every key that depends on the view; `is_plain` allows exact bytes to pass."""

    @property
    def digest(self) -> str: ...

    @property
    def is_plain(self) -> bool: ...

    def query(self, query: Query) -> Query:
        """The caller's search in the nodes' identifiers. Raises InvalidQuery for a key the view cannot turn back."""

    def uid_inbound(self, uid: str) -> str:
        """A UID the caller gave as the nodes know it."""

    def uid(self, uid: str) -> str:
        """A node's UID as the caller sees it."""

    def dataset(self, dataset: Dataset) -> Dataset:
        """A row or an instance's metadata (DICOM JSON model) as the caller sees it; the argument is not changed."""

    def instance(self, dataset: pydicom.Dataset) -> pydicom.Dataset:
        """The elements of an instance before (or after) its pixel data as the caller sees them; may change its argument."""

    def error(self, text: str) -> str:
        """An error text as the caller sees it: no identifier of the nodes' own in it."""


@dataclass(frozen=True, slots=True)
class PlainView:
    """Shows everything as it is: for callers who are entitled to the original."""

    digest: str = "plain"
    is_plain: bool = True

    def query(self, query: Query) -> Query:
        return query

    def uid_inbound(self, uid: str) -> str:
        return uid

    def uid(self, uid: str) -> str:
        return uid

    def dataset(self, dataset: Dataset) -> Dataset:
        return dataset

    def instance(self, dataset: pydicom.Dataset) -> pydicom.Dataset:
        return dataset

    def error(self, text: str) -> str:
        return text


def view_ref(view: View, ref: Ref) -> Ref:
    """What the caller asked to retrieve, in the nodes' UIDs."""
    inbound = view.uid_inbound
    return Ref(inbound(ref.study), ref.series and inbound(ref.series), ref.instance and inbound(ref.instance))


def view_found(view: View, found: Found) -> Found:
    """One result as the caller sees it: UIDs, attributes and every holder's row."""
    if view.is_plain:
        return found
    rows = tuple(_view_row(view, row) for row in found.rows)
    return replace(
        found,
        patient=rows[0].patient,
        study=view.uid(found.study),
        series=found.series and view.uid(found.series),
        instance=found.instance and view.uid(found.instance),
        attributes=view.dataset(found.attributes),
        rows=rows,
        patients=frozenset(row.patient for row in rows),
    )


def _view_row(view: View, row: Row) -> Row:
    attributes = view.dataset(row.attributes)
    return replace(
        row,
        patient=patient_of(attributes, row.patient.issuer),
        study=view.uid(row.study),
        series=row.series and view.uid(row.series),
        instance=row.instance and view.uid(row.instance),
        attributes=attributes,
        linked=frozenset(),
        children=tuple(_view_row(view, child) for child in row.children),
    )
