"""Builds the DICOM files of the demo's nodes below one folder, and says what lies where, planted cases included."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from gateway.simulators import breast, examinations, packaged
from gateway.simulators.bulk import ct_series, large_multiframe
from gateway.simulators.contours import contours
from gateway.simulators.examinations import SCALES, Setting
from gateway.simulators.hospitals import EXAMINATIONS, HOSPITALS, Examination, Hospital
from gateway.simulators.iod import study_uid

VERSION = "2"
_STAMP = "corpus-version"

ScaleName = Literal["demo", "small"]

_MAKERS: dict[str, Callable[[Setting], Iterator[tuple[str, Dataset]]]] = {
    "mammography": breast.mammography,
    "tomosynthesis": breast.tomosynthesis,
    "colonography": examinations.colonography,
    "planning": examinations.planning,
    "cervix": examinations.cervix,
    "contours": contours,
}


@dataclass(frozen=True, slots=True)
class HeldInstance:
    """One file at one node."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    number_of_frames: int


@dataclass(frozen=True, slots=True)
class HeldSeries:
    series_uid: str
    modality: str
    series_description: str
    instances: tuple[HeldInstance, ...]


@dataclass(frozen=True, slots=True)
class HeldStudy:
    """One study as one node holds it. `issuer` is (0010,0021) of the files, '' when they have none.

    `is_generated` tells the corpus's own studies from the real files of the pydicom wheel.
    """

    node: str
    study_uid: str
    patient_id: str
    issuer: str
    patient_name: str
    study_date: str
    accession_number: str
    study_description: str
    character_set: str
    timezone_offset: str
    is_generated: bool
    series: tuple[HeldSeries, ...]

    @property
    def instances(self) -> tuple[HeldInstance, ...]:
        return tuple(instance for series in self.series for instance in series.instances)

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(sorted({series.modality for series in self.series if series.modality}))


@dataclass(frozen=True, slots=True)
class Node:
    """One node's folder, with the hospital's hints for a node file."""

    hospital: Hospital
    directory: Path
    studies: tuple[HeldStudy, ...]

    @property
    def id(self) -> str:
        return self.hospital.id

    def study(self, study_uid: str) -> HeldStudy:
        return next(study for study in self.studies if study.study_uid == study_uid)


@dataclass(frozen=True, slots=True)
class Case:
    """A planted case: every holding that belongs to it, in the order of the nodes."""

    name: str
    studies: tuple[HeldStudy, ...]

    @property
    def study_uids(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(study.study_uid for study in self.studies))

    @property
    def study_uid(self) -> str:
        """The one study UID of the case. Raises ValueError when it has several."""
        (only,) = self.study_uids
        return only

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(study.node for study in self.studies)


@dataclass(frozen=True, slots=True)
class Corpus:
    """What was built: `nodes` by id (the one that is down has an empty folder)."""

    root: Path
    nodes: dict[str, Node]
    cases: dict[str, Case]

    def case(self, name: str) -> Case:
        """'shared-study', 'split-study', 'uid-clash', 'unlinked', 'shared-patient-id', 'no-patient-id', 'no-date'."""
        return self.cases[name]

    def studies(self) -> Iterator[HeldStudy]:
        """Every holding of every node; a study that two nodes hold comes twice."""
        for node in self.nodes.values():
            yield from node.studies


def build(root: Path, *, scale: ScaleName = "demo") -> Corpus:
    """Writes root/<node id>/*.dcm unless this version at this scale is already there; the same bytes every time."""
    stamp, content = root / _STAMP, f"{VERSION} {scale}"
    if not stamp.exists() or stamp.read_text() != content:
        stamp.unlink(missing_ok=True)
        for hospital in HOSPITALS.values():
            shutil.rmtree(root / hospital.id, ignore_errors=True)
            (root / hospital.id).mkdir(parents=True)
        for examination in EXAMINATIONS:
            _write(root, examination, scale)
        for node, name, source in packaged.copies(small=scale == "small"):
            shutil.copyfile(source, root / node / name)
        stamp.write_text(content)
    return describe(root)


def _write(root: Path, examination: Examination, scale: ScaleName) -> None:
    setting = Setting(examination, HOSPITALS[examination.node], SCALES[scale])
    for series, made in _MAKERS[examination.kind](setting):
        name = f"{examination.key}-{series}-{made.InstanceNumber:03d}.dcm"
        path = root / examination.node / name
        made.save_as(path, enforce_file_format=True)
        for node in examination.also_at:
            shutil.copyfile(path, root / node / name)


def describe(root: Path) -> Corpus:
    """What lies in a folder that `build` filled, read from the files themselves."""
    nodes = {
        hospital.id: Node(hospital, root / hospital.id, _held(hospital.id, root / hospital.id))
        for hospital in HOSPITALS.values()
    }
    return Corpus(root, nodes, _cases(nodes))


def _cases(nodes: dict[str, Node]) -> dict[str, Case]:
    found: dict[str, list[HeldStudy]] = defaultdict(list)
    for examination in EXAMINATIONS:
        if examination.case:
            for node in (examination.node, *examination.also_at):
                found[examination.case].append(nodes[node].study(study_uid(examination)))
    return {name: Case(name, tuple(studies)) for name, studies in found.items()}


_READ = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "IssuerOfPatientID",
    "PatientName", "StudyDate", "AccessionNumber", "StudyDescription", "SpecificCharacterSet", "TimezoneOffsetFromUTC",
    "Modality", "SeriesDescription", "NumberOfFrames", "InstanceNumber",
)  # fmt: skip


def _held(node: str, directory: Path) -> tuple[HeldStudy, ...]:
    studies: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    for path in sorted(directory.glob("*.dcm")):
        head = dcmread(path, stop_before_pixels=True, specific_tags=list(_READ))
        studies[head.StudyInstanceUID].append((path, head))
    return tuple(_study(node, uid, files) for uid, files in studies.items())


def _study(node: str, uid: str, files: Sequence[tuple[Path, Dataset]]) -> HeldStudy:
    path, head = files[0]
    series: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    for file in files:
        series[file[1].SeriesInstanceUID].append(file)
    return HeldStudy(
        node=node,
        study_uid=uid,
        patient_id=_text(head, "PatientID"),
        issuer=_text(head, "IssuerOfPatientID"),
        patient_name=_text(head, "PatientName"),
        study_date=_text(head, "StudyDate"),
        accession_number=_text(head, "AccessionNumber"),
        study_description=_text(head, "StudyDescription"),
        character_set=_text(head, "SpecificCharacterSet"),
        timezone_offset=_text(head, "TimezoneOffsetFromUTC"),
        is_generated=not path.name.startswith("pydicom-"),
        series=tuple(_one_series(found, members) for found, members in series.items()),
    )


def _one_series(uid: str, files: Sequence[tuple[Path, Dataset]]) -> HeldSeries:
    head = files[0][1]
    instances = tuple(
        HeldInstance(
            path=path,
            sop_class_uid=str(dataset.SOPClassUID),
            sop_instance_uid=str(dataset.SOPInstanceUID),
            transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
            number_of_frames=int(dataset.get("NumberOfFrames") or 1),
        )
        for path, dataset in files
    )
    return HeldSeries(uid, _text(head, "Modality"), _text(head, "SeriesDescription"), instances)


def _text(head: Dataset, keyword: str) -> str:
    value = head.get(keyword)
    if value is None:
        return ""
    return "\\".join(value) if isinstance(value, MultiValue) else str(value)


__all__ = [
    "Case",
    "Corpus",
    "HeldInstance",
    "HeldSeries",
    "HeldStudy",
    "Node",
    "build",
    "ct_series",
    "describe",
    "large_multiframe",
]
