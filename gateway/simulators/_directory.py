"""An in-memory index over a directory of DICOM files, for the simulators that speak HTTP; pixels stay on disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import BaseTag
from pydicom.uid import ImplicitVRLittleEndian

Json = dict[str, Any]
BulkUri = Callable[[str], str | None]

BULK_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
BULK_THRESHOLD = 1024
PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, OverflowError, LookupError)

STUDY_UID, SERIES_UID, INSTANCE_UID, SOP_CLASS_UID = "0020000D", "0020000E", "00080018", "00080016"
PATIENT_ID, ISSUER = "00100020", "00100021"


@dataclass(frozen=True)
class Instance:
    """One DICOM file. `attributes` is its header in the DICOM JSON model (PS3.18 Annex F) without the bulk data."""

    path: Path
    transfer_syntax: str
    attributes: Json

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def text(self, tag: str) -> str:
        return first_text(self.attributes, tag)

    @property
    def uid(self) -> str:
        return self.text(INSTANCE_UID)

    @property
    def series_uid(self) -> str:
        return self.text(SERIES_UID)

    @property
    def study_uid(self) -> str:
        return self.text(STUDY_UID)


@dataclass(frozen=True)
class Series:
    uid: str
    instances: list[Instance]

    def text(self, tag: str) -> str:
        return self.instances[0].text(tag)

    @property
    def attributes(self) -> Json:
        return self.instances[0].attributes


@dataclass(frozen=True)
class Study:
    """The instances of one study of one patient: two patients under one UID are two studies, as Orthanc keeps them."""

    uid: str
    patient_id: str
    issuer: str
    instances: list[Instance]

    def text(self, tag: str) -> str:
        return self.instances[0].text(tag)

    @property
    def attributes(self) -> Json:
        return self.instances[0].attributes

    @cached_property
    def series(self) -> list[Series]:
        groups: dict[str, list[Instance]] = {}
        for instance in self.instances:
            groups.setdefault(instance.series_uid, []).append(instance)
        return [Series(uid, members) for uid, members in sorted(groups.items())]

    def distinct(self, tag: str) -> list[str]:
        """The values that an attribute takes among the instances, each once."""
        return sorted({text for instance in self.instances if (text := instance.text(tag))})


@dataclass
class Directory:
    """Every readable instance below `root`, one per UID. Files that are no DICOM or lack a UID are skipped."""

    root: Path
    _by_uid: dict[tuple[str, str], Instance] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = Path(self.root)
        for path in sorted(p for p in self.root.rglob("*") if p.is_file()):
            self.add(path)

    def add(self, path: Path) -> Instance | None:
        """Takes one file into the index; None when it is no DICOM file or lacks one of its three UIDs."""
        try:
            dataset = dcmread(path, defer_size=BULK_THRESHOLD)
        except (InvalidDicomError, EOFError, OSError, *UNREADABLE):
            return None
        instance = Instance(path, str(transfer_syntax(dataset)), to_json(dataset))
        if not (instance.uid and instance.series_uid and instance.study_uid):
            return None
        self._by_uid[instance.study_uid, instance.uid] = instance
        self.__dict__.pop("studies", None)
        return instance

    @cached_property
    def studies(self) -> list[Study]:
        """In the order of their UIDs."""
        groups: dict[tuple[str, str, str], list[Instance]] = {}
        for instance in self._by_uid.values():
            key = (instance.study_uid, instance.text(PATIENT_ID).strip(), instance.text(ISSUER))
            groups.setdefault(key, []).append(instance)
        return [Study(*key, sorted(members, key=_position)) for key, members in sorted(groups.items())]

    def instances(self, study: str, series: str | None = None, instance: str | None = None) -> list[Instance]:
        """The instances below a study, series or instance UID, in the order of series and Instance Number."""
        return [
            found
            for held in self.studies
            if held.uid == study
            for found in held.instances
            if series in (None, found.series_uid) and instance in (None, found.uid)
        ]


def transfer_syntax(dataset: Dataset) -> str:
    """The Transfer Syntax UID of the File Meta Information; Implicit VR Little Endian where the file does not say."""
    return str(dataset.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian))


def read_dataset(path: Path) -> Dataset:
    """The data set with its long values left on disk."""
    return dcmread(path, defer_size=BULK_THRESHOLD)


def first_text(attributes: Json, tag: str) -> str:
    """The first value as text ('' when there is none); a PN as its component groups joined by '='."""
    return next(iter(texts(attributes, tag)), "")


def texts(attributes: Json, tag: str) -> list[str]:
    """Every non-empty value as text."""
    return [text for value in attributes.get(tag, {}).get("Value", []) if (text := value_text(value))]


def value_text(value: Any) -> str:
    """A value without the padding that values inside a list keep in JSON (PS3.5 6.2)."""
    if isinstance(value, dict):
        groups = [value.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")]
        return "=".join(groups).rstrip("=")
    return "" if value is None else str(value).strip(" ")


def to_json(dataset: Dataset, bulk_uri: BulkUri = lambda path: None, path: str = "") -> Json:
    """The data set in the DICOM JSON model.

    `bulk_uri` turns the path of a long value into its address, or None to leave it out. A path
    is tags and item numbers: '7FE00010', '54000100/0/54001010'.
    """
    found = {}
    for tag in dataset.keys():  # noqa: SIM118 - iterating a Dataset would read the deferred values
        if tag.element == 0:
            continue
        attribute = _attribute(dataset, tag, bulk_uri, path)
        if attribute is not None:
            found[f"{tag:08X}"] = attribute
    if not path:
        found["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    return dict(sorted(found.items()))


def _attribute(dataset: Dataset, tag: BaseTag, bulk_uri: BulkUri, path: str) -> Json | None:
    raw = raw_element(dataset, tag)
    vr = element_vr(raw, tag)
    here = f"{path}{tag:08X}"
    if is_bulk(raw, tag, vr):
        uri = bulk_uri(here)
        return {"vr": vr, "BulkDataURI": uri} if uri else None
    try:
        element = dataset[tag]
        if element.VR == "SQ":
            return _sequence(element, bulk_uri, here)
        return _finite(element.to_json_dict(None, 1 << 62))
    except UNREADABLE:
        return {"vr": vr}


def _sequence(element: DataElement, bulk_uri: BulkUri, path: str) -> Json:
    items = [to_json(item, bulk_uri, f"{path}/{number}/") for number, item in enumerate(element.value or [])]
    return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}


def _finite(attribute: Json) -> Json:
    """NaN and the infinities are not JSON: they go as text (PS3.18 F.2.3.1)."""
    if "Value" in attribute:
        attribute["Value"] = [
            str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for value in attribute["Value"]
        ]
    return attribute


def raw_element(dataset: Dataset, tag: BaseTag) -> DataElement | RawDataElement:
    """The element as it was read; a value left on disk is not fetched."""
    return dataset.get_item(tag, keep_deferred=True)


def element_vr(element: DataElement | RawDataElement, tag: BaseTag) -> str:
    """The VR in the file, else that of PS3.6 (the first where it lists several), else UN."""
    vr = element.VR
    if not vr:
        try:
            vr = dictionary_VR(tag)
        except KeyError:
            return "UN"
    return vr.split(" or ")[-1] if tag in PIXELS else vr.split(" or ")[0]


def is_bulk(element: DataElement | RawDataElement, tag: BaseTag, vr: str) -> bool:
    """Whether a value is given by address: pixel data always, other binary values when long."""
    if tag in PIXELS:
        return True
    if vr not in BULK_VRS:
        return False
    length = element.length if isinstance(element, RawDataElement) else len(element.value or b"")
    return length > BULK_THRESHOLD


def _position(instance: Instance) -> tuple[str, int, str]:
    number = instance.text("00200013")
    return instance.series_uid, int(number) if number.lstrip("-").isdigit() else 0, instance.uid


def chunks_of(path: Path, start: int = 0, length: int | None = None, size: int = 1 << 18) -> Iterator[bytes]:
    """A span of a file in pieces of at most `size` bytes."""
    with path.open("rb") as file:
        file.seek(start)
        left = path.stat().st_size - start if length is None else length
        while left > 0 and (chunk := file.read(min(size, left))):
            left -= len(chunk)
            yield chunk
