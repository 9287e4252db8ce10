"""Reading a node's records as rows of the model, by a mapping."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Mapping as Table
from typing import Any

from gateway.errors import Unmappable
from gateway.mapping.schema import Code, Entry, LeaveOut, Mapping
from gateway.mapping.transforms import TRANSFORMS, read_all
from gateway.model.dataset import Attribute, Dataset, as_text, attribute, items, text
from gateway.model.moments import parse_offset
from gateway.model.patient import PatientKey, issuer_of, other_keys, patient_of
from gateway.model.seam import Record
from gateway.model.study import Row, row_of
from gateway.model.vocabulary import ISSUER, OTHER_PATIENT_IDS, PATIENT_ID, STUDY_UID, TIMEZONE_OFFSET, Level, tag, vr
from gateway.model.vocabulary import path as path_of
from gateway.model.zoned import moved

_ReadAttribute = Callable[[Record], Attribute | None]
_CODE = {"code": tag("CodeValue"), "system": tag("CodingSchemeDesignator"), "display": tag("CodeMeaning")}
_OF_A_CHILD = (STUDY_UID, PATIENT_ID, ISSUER, TIMEZONE_OFFSET)
_OF_A_PATIENT = (PATIENT_ID, ISSUER, OTHER_PATIENT_IDS)


class Reader:
    """Reads what one node sends. Entries are prepared once; a plain DICOM row costs little more than its identity."""

    def __init__(self, mapping: Mapping, node: str, issuer: str, *, time_zone: str = "") -> None:
        """`issuer` is the node's `patient_id_issuer`; `time_zone` overrides the mapping's. `as_sent` says that rows are what the
        node sends."""
        self.mapping = mapping
        self.node = node
        self.issuer = mapping.canonical_issuer(issuer)
        self.time_zone = time_zone or mapping.time_zone
        self._study, self._series, self._instance = (
            _prepare(mapping, entries) for entries in (mapping.study, mapping.series, mapping.instance)
        )
        is_dicom, out = mapping.protocol == "dicom", mapping.leave_out
        self._is_left_out = _leaving_out(out) if out else None
        self._dicom_entries = {level: _prepare_dicom(mapping, level) for level in Level} if is_dicom else {}
        self.as_sent = is_dicom and not mapping.issuers and not out and not any(self._dicom_entries.values())

    def rows(self, record: Record, level: Level, *, study: str = "", series: str = "") -> tuple[Row, ...]:
        """The rows of `level` in one record: one for DICOM; for FHIR the study, its series or its instances.

        None of one that the mapping leaves out. `study` and `series` are the UIDs asked under: they stand in for those a
        DICOM row leaves out, and `series` chooses among those of a FHIR study. FHIR's STUDY row carries its series as
        children, which hold their own attributes and the patient. Raises Unmappable, naming keywords only.
        """
        if self.as_sent and (sent := getattr(record, "dataset", None)) is not None:
            return (row_of(level, self.node, sent, self.issuer, study=study, series=series),)
        if self._is_left_out and self._is_left_out(record):
            return ()
        if self.mapping.protocol == "dicom":
            return (self._row(level, self._dicom(record, level), study=study, series=series),)
        attributes = _read(self._study, record)
        if level is Level.STUDY:
            return (self._row(level, attributes, children=self._children(record, attributes)),)
        return tuple(self._below(record, attributes, level, series))

    def row(self, record: Record, level: Level, *, study: str = "", series: str = "") -> Row:
        """The one row of a record that is of `level` itself. Raises Unmappable also where there are none or several."""
        found = self.rows(record, level, study=study, series=series)
        if len(found) != 1:
            raise Unmappable(f"a record holds {len(found)} rows of level {level}")
        return found[0]

    def bearer(self, record: Record) -> Row:
        """Whose a FHIR resource is that has its patient where a study has it: a row that says this and nothing of a study."""
        attributes = _read({tag_: self._study[tag_] for tag_ in _OF_A_PATIENT if tag_ in self._study}, record)
        if self.mapping.issuers:
            attributes = self._with_canonical_issuers(attributes)
        patient = patient_of(attributes, self.issuer)
        attributes = {**attributes, ISSUER: attribute(ISSUER, [patient.issuer])}
        return Row(
            Level.STUDY, self.node, patient, "", attributes=attributes, linked=other_keys(attributes) - {patient}
        )

    def patient(self, dataset: Dataset, default: str) -> PatientKey:
        """Whose data set this is, its issuer under the name that rows bear; `default` is the issuer of one without."""
        found = patient_of(dataset, default)
        return PatientKey(self.mapping.canonical_issuer(found.issuer), found.id)

    def _dicom(self, record: Record, level: Level) -> Dataset:
        """The record's own data set. Every entry takes the place of its attribute: empty where its source is empty, and
        absent where its source is absent."""
        base: Dataset | None = getattr(record, "dataset", None)
        if base is None:
            raise Unmappable("a record is not a DICOM data set")
        entries = self._dicom_entries[level]
        if not entries:
            return base
        attributes = dict(base)
        for tag_, source, read in entries:
            found = read(record)
            if found is not None:
                attributes[tag_] = found
            elif source in base:
                attributes[tag_] = attribute(tag_, [])
            else:
                attributes.pop(tag_, None)
        return attributes

    def _children(self, record: Record, attributes: Dataset) -> tuple[Row, ...]:
        if not self.mapping.children:
            return ()
        kept = {tag_: attributes[tag_] for tag_ in _OF_A_CHILD if tag_ in attributes}
        return tuple(self._below(record, kept, Level.SERIES, ""))

    def _below(self, record: Record, above: Dataset, level: Level, wanted: str) -> Iterable[Row]:
        paths = self.mapping.children
        for child in record.children(paths.series) if paths else ():
            row = self._row(Level.SERIES, _under(above, _read(self._series, child)))
            if wanted and row.series != wanted:
                continue
            if level is Level.SERIES:
                yield row
            elif paths and paths.instance:
                for instance in child.children(paths.instance):
                    yield self._row(level, {**row.attributes, **_read(self._instance, instance)})

    def _row(self, level: Level, attributes: Dataset, **known: Any) -> Row:
        if self.mapping.issuers:
            attributes = self._with_canonical_issuers(attributes)
        return row_of(level, self.node, attributes, self.issuer, **known)

    def _with_canonical_issuers(self, attributes: Dataset) -> Dataset:
        attributes = self._with_issuer(attributes, self.issuer)
        others = items(attributes, OTHER_PATIENT_IDS)
        if others:
            named = [self._with_issuer(item, "") for item in others]
            attributes[OTHER_PATIENT_IDS] = {"vr": "SQ", "Value": named}
        return attributes

    def _with_issuer(self, dataset: Dataset, default: str) -> Dataset:
        issuer = self.mapping.canonical_issuer(issuer_of(dataset, default))
        return {**dataset, ISSUER: attribute(ISSUER, [issuer], "LO")} if issuer else dict(dataset)


def _leaving_out(out: LeaveOut) -> Callable[[Record], bool]:
    native, values = _native(out.path, None), frozenset(out.values)
    return lambda record: not values.isdisjoint(map(as_text, native(record)))


def _read(entries: Table[str, _ReadAttribute], record: Record) -> Dataset:
    found = ((tag_, read(record)) for tag_, read in entries.items())
    return {tag_: value for tag_, value in found if value is not None}


def _under(above: Dataset, own: Dataset) -> Dataset:
    """What a series says, with what is said above it. A row has one offset: a series of another is put at that of its study."""
    zone, offset = parse_offset(text(above, TIMEZONE_OFFSET)), text(own, TIMEZONE_OFFSET)
    if zone is None or offset in ("", text(above, TIMEZONE_OFFSET)):
        return {**above, **own}
    return {**above, **own, **moved(own, zone, None), TIMEZONE_OFFSET: above[TIMEZONE_OFFSET]}


def _prepare(mapping: Mapping, entries: Table[str, Entry], *, defaults: bool = True) -> dict[str, _ReadAttribute]:
    return {tag(name): _reading(mapping, name, entry, defaults) for name, entry in entries.items()}


def _prepare_dicom(mapping: Mapping, level: Level) -> list[tuple[str, str, _ReadAttribute]]:
    """(tag, first tag of the source, function) of the entries of a level and those above, which a row may hold as well.

    Defaults count at their own level only: a row of a lower level that leaves an attribute out has not lost it.
    """
    prepared = []
    for above in list(Level)[: list(Level).index(level) + 1]:
        entries = mapping.entries(above)
        for name, entry in entries.items():
            read = _reading(mapping, name, entry, above is level)
            prepared.append((tag(name), path_of(entry.path or name)[0], read))
    return prepared


def _reading(mapping: Mapping, name: str, entry: Entry, defaults: bool) -> _ReadAttribute:
    """The function that reads one attribute from a record; None where the record does not have it."""
    tag_ = tag(name)
    if entry.fixed is not None:
        fixed = attribute(tag_, _listed(entry.fixed))
        return lambda record: fixed
    path = name if entry.path is None else entry.path
    if entry.item is not None:
        return _sequence(tag_, path, _prepare(mapping, entry.item))
    default = attribute(tag_, _listed(entry.default)) if defaults and entry.default is not None else None
    codes = mapping.codes[entry.codes] if entry.codes else None
    native = _native(path, entry.using)

    def read(record: Record) -> Attribute | None:
        found = native(record)
        if codes is not None:
            found = _coded(codes, found, keep=entry.default is None)
        if not found:
            return default
        return {"vr": "SQ", "Value": found} if isinstance(found[0], dict) else attribute(tag_, found, _vr(record, tag_))

    return read


def _vr(record: Record, tag_: str) -> str | None:
    """A private attribute keeps the VR that the node gave it."""
    if vr(tag_) != "UN":
        return None
    return getattr(record, "dataset", {}).get(tag_, {}).get("vr")  # type: ignore[no-any-return]


def _native(path: str, using: str | None) -> Callable[[Record], list[Any]]:
    """The native values at a path after their transform, empty ones left out."""
    transform = TRANSFORMS[using] if using else None
    read_record = transform.read_record if transform else None
    if read_record is not None:
        return lambda record: [made for child in record.children(path) if (made := read_record(child))]
    if using is None:
        return lambda record: [value for value in _listed(record.value(path)) if value not in ("", None)]
    return lambda record: read_all(using, map(as_text, _listed(record.value(path))))


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _coded(codes: Table[str, str | Code], found: list[Any], *, keep: bool) -> list[Any]:
    """Each value by its table. One that is not listed stays as it is or makes room for a default."""
    made: list[Any] = []
    for value in found:
        term = codes.get(as_text(value), value if keep else None)
        if isinstance(term, Code):
            made.append({_CODE[name]: attribute(_CODE[name], [part]) for name, part in term if part})
        elif term not in (None, "") and term not in made:
            made.append(term)
    return made


def _sequence(tag_: str, path: str, inner: Table[str, _ReadAttribute]) -> _ReadAttribute:
    def read(record: Record) -> Attribute | None:
        found = [item for child in record.children(path) if (item := _read(inner, child))]
        return {"vr": "SQ", "Value": found} if found else None

    return read
