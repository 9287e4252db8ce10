"""The DIMSE simulator's archive: an index over a directory of DICOM files, by level, every value's bytes as stored."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import BaseTag, Tag

from gateway.model.vocabulary import RETURNED, SERIES_KEYS, STUDY_KEYS
from gateway.model.vocabulary import Level as StandardLevel

# Patient Root has a level above STUDY that the gateway's own vocabulary does not need.
PATIENT, STUDY, SERIES, IMAGE = LEVELS = ("PATIENT", "STUDY", "SERIES", "IMAGE")
UNIQUE_KEY = {
    PATIENT: Tag("PatientID"),
    STUDY: Tag("StudyInstanceUID"),
    SERIES: Tag("SeriesInstanceUID"),
    IMAGE: Tag("SOPInstanceUID"),
}

SPECIFIC_CHARACTER_SET = Tag("SpecificCharacterSet")
_OF_EVERY_LEVEL = frozenset({SPECIFIC_CHARACTER_SET, Tag("TimezoneOffsetFromUTC"), Tag("InstanceAvailability")})
_IMAGE_KEYS = (
    "AcquisitionDate", "AcquisitionTime", "AcquisitionNumber", "ContentDate", "ContentTime", "InstanceCreationDate",
    "ImageType", "ImageLaterality", "ViewPosition", "PresentationIntentType", "PhotometricInterpretation", "BitsStored",
    "SamplesPerPixel", "PatientOrientation", "SliceLocation", "ContentLabel", "DiffusionBValue",
    "ConceptNameCodeSequence",
)  # fmt: skip


def _tags(names: Iterable[str]) -> frozenset[BaseTag]:
    return frozenset(Tag(int(name, 16)) for name in names)


_SERIES_TAGS = _tags(SERIES_KEYS) | _tags(RETURNED[StandardLevel.SERIES]) - _OF_EVERY_LEVEL
_STUDY_TAGS = _tags(STUDY_KEYS) - _SERIES_TAGS
_IMAGE_TAGS = _tags(RETURNED[StandardLevel.IMAGE]) | {Tag(keyword) for keyword in _IMAGE_KEYS}
_KEPT = sorted(_STUDY_TAGS | _SERIES_TAGS | _IMAGE_TAGS | {Tag("SOPClassUID")})


def level_of(tag: BaseTag) -> str:
    """The level that an attribute belongs to. Raises KeyError for one that this archive does not index."""
    if tag in COMPUTED:
        return COMPUTED[tag][0]
    if tag in _STUDY_TAGS:
        return PATIENT if tag.group == 0x0010 else STUDY
    if tag in _SERIES_TAGS:
        return SERIES
    if tag in _IMAGE_TAGS:
        return IMAGE
    raise KeyError(tag)


def is_of_every_level(tag: BaseTag) -> bool:
    return tag in _OF_EVERY_LEVEL


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """One file: `raw` keeps the values' bytes, `decoded` is the same read as text and numbers."""

    path: Path
    transfer_syntax: str
    raw: Dataset
    decoded: Dataset

    def unique(self, level: str) -> str:
        return str(self.decoded.get(UNIQUE_KEY[level], DataElement(UNIQUE_KEY[level], "LO", "")).value or "")

    @property
    def sop_class(self) -> str:
        return str(self.decoded.SOPClassUID)


Group = list[StoredInstance]


class Archive:
    """All instances below a directory, one per SOP Instance UID. Safe to use from several threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._instances: dict[str, StoredInstance] = {}
        self._lock = threading.Lock()

    def scan(self) -> None:
        """Reads the directory anew; files that are not DICOM or lack their UIDs are passed over."""
        found = [read for path in sorted(self.directory.rglob("*")) if path.is_file() and (read := _read(path))]
        with self._lock:
            self._instances = {stored.unique(IMAGE): stored for stored in found}

    def add(self, path: Path) -> bool:
        """Takes in one file; False when it cannot be read."""
        stored = _read(path)
        if stored is None:
            return False
        with self._lock:
            self._instances[stored.unique(IMAGE)] = stored
        return True

    def instances(self) -> list[StoredInstance]:
        with self._lock:
            return list(self._instances.values())

    def groups(self, level: str) -> Iterator[Group]:
        """The entities of a level: each is the instances that belong to it, in the order of the files.

        Two patients under one Study Instance UID are two studies, as in Orthanc.
        """
        grouped: dict[tuple[str, ...], Group] = {}
        for stored in self.instances():
            path = () if level == PATIENT else _path(stored, level)
            path += (stored.unique(PATIENT),) if level in (PATIENT, STUDY) else ()
            grouped.setdefault(path, []).append(stored)
        yield from grouped.values()

    def transfer_syntaxes(self) -> Mapping[str, list[str]]:
        """For each SOP class the stored transfer syntaxes, the most frequent first."""
        counted: dict[str, Counter[str]] = {}
        for stored in self.instances():
            counted.setdefault(stored.sop_class, Counter())[stored.transfer_syntax] += 1
        return {sop_class: [syntax for syntax, _ in count.most_common()] for sop_class, count in counted.items()}


def _path(stored: StoredInstance, level: str) -> tuple[str, ...]:
    return tuple(stored.unique(step) for step in LEVELS[1 : LEVELS.index(level) + 1])


def _read(path: Path) -> StoredInstance | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = dcmread(path, stop_before_pixels=True, specific_tags=list(_KEPT))
            transfer_syntax = str(raw.file_meta.TransferSyntaxUID)
            decoded = _decoded(raw)
    except (InvalidDicomError, AttributeError, ValueError, OSError, EOFError):
        return None
    stored = StoredInstance(path, transfer_syntax, raw, decoded)
    return stored if all(stored.unique(level) for level in LEVELS[1:]) and "SOPClassUID" in decoded else None


def _decoded(raw: Dataset) -> Dataset:
    """A copy whose values are read, because reading a value gives up its bytes."""
    decoded = Dataset({tag: raw.get_item(tag) for tag in raw.keys()})  # noqa: SIM118 - a Dataset iterates over elements
    implicit, little = raw.original_encoding
    decoded.set_original_encoding(implicit, little, raw.original_character_set)
    for tag in list(decoded.keys()):
        try:
            _ = decoded[tag].value
        except (ValueError, KeyError, NotImplementedError):
            # A real file may hold a value that its VR forbids: it can be sent, but not matched.
            del decoded[tag]
    return decoded


def _distinct(keyword: str) -> Callable[[Group], list[str]]:
    return lambda group: sorted({str(stored.decoded.get(keyword) or "") for stored in group} - {""})


def _count(level: str) -> Callable[[Group], str]:
    return lambda group: str(len({_path(stored, level) for stored in group}))


# Attributes that no file holds: they are told from all instances of the entity (PS3.4 C.3.4, C.6.1.1).
COMPUTED: dict[BaseTag, tuple[str, str, Callable[[Group], Any]]] = {
    Tag("ModalitiesInStudy"): (STUDY, "CS", _distinct("Modality")),
    Tag("SOPClassesInStudy"): (STUDY, "UI", _distinct("SOPClassUID")),
    Tag("NumberOfPatientRelatedStudies"): (PATIENT, "IS", _count(STUDY)),
    Tag("NumberOfStudyRelatedSeries"): (STUDY, "IS", _count(SERIES)),
    Tag("NumberOfStudyRelatedInstances"): (STUDY, "IS", _count(IMAGE)),
    Tag("NumberOfSeriesRelatedInstances"): (SERIES, "IS", _count(IMAGE)),
    Tag("InstanceAvailability"): (IMAGE, "CS", lambda group: "ONLINE"),
    Tag("AvailableTransferSyntaxUID"): (IMAGE, "UI", lambda group: group[0].transfer_syntax),
}


def computed(tag: BaseTag, group: Group) -> DataElement:
    _, vr, compute = COMPUTED[tag]
    return DataElement(tag, vr, compute(group))


def raw_element(tag: BaseTag, vr: str, value: bytes) -> RawDataElement:
    """An element whose bytes go out as they are, padded to an even length (PS3.5 6.2)."""
    padded = value + (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    return RawDataElement(tag, vr, len(padded), padded, 0, False, True)
