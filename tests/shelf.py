"""The studies that every adapter and every peer is tested with: a few of the demo's, chosen for what is difficult in them.

Latin-1, Latin-2, Greek, Cyrillic and Japanese names in raw bytes, an empty PatientID, studies without a date, a study of
four modalities, two transfer syntaxes in one study, JPEG, JPEG-LS and JPEG 2000, and multi-frame images.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pydicom

from gateway.simulators import corpus

CHOSEN = {
    "pl-krakow": {"12345", "99990000028"},
    "gr-athens": {"T-0007", "SCSGREEK"},
    "ee-tartu": {"SCSRUSS", "99990000028", "48013990025", "H31EXAMPLE"},
    "fr-lyon": {"8NM1", "4MR1", "8000000033", ""},
    "de-berlin": {"ID1"},
    "es-madrid": {"X1EXAMPLE", "DEMO000000000017"},
}
LEFT_OUT = {"20250226"}  # one patient's second study would only be more of the same


@dataclass(frozen=True)
class HeldFile:
    path: Path

    @cached_property
    def dataset(self) -> pydicom.FileDataset:
        return pydicom.dcmread(self.path)

    @property
    def uid(self) -> str:
        return str(self.dataset.SOPInstanceUID)

    @property
    def series(self) -> str:
        return str(self.dataset.SeriesInstanceUID)

    @property
    def study(self) -> str:
        return str(self.dataset.StudyInstanceUID)

    @property
    def transfer_syntax(self) -> str:
        return str(self.dataset.file_meta.TransferSyntaxUID)

    @property
    def bytes(self) -> bytes:
        return self.path.read_bytes()

    @property
    def dataset_bytes(self) -> bytes:
        """What follows the File Meta Information."""
        meta = pydicom.filereader.read_file_meta_info(self.path)
        return self.bytes[132 + 12 + int(meta.FileMetaInformationGroupLength) :]


@dataclass(frozen=True)
class HeldStudy:
    uid: str
    files: tuple[HeldFile, ...]

    def text(self, keyword: str) -> str:
        value = self.files[0].dataset.get(keyword)
        return "" if value is None else str(value)

    @property
    def name(self) -> str:
        return self.text("PatientName")

    @property
    def modalities(self) -> set[str]:
        return {str(file.dataset.Modality) for file in self.files}

    @property
    def series(self) -> dict[str, tuple[HeldFile, ...]]:
        uids = dict.fromkeys(file.series for file in self.files)
        return {uid: tuple(file for file in self.files if file.series == uid) for uid in uids}


@dataclass(frozen=True)
class Shelf:
    directory: Path
    studies: tuple[HeldStudy, ...]

    @property
    def paths(self) -> list[Path]:
        return [file.path for file in self.files]

    @property
    def files(self) -> list[HeldFile]:
        return [file for study in self.studies for file in study.files]

    @property
    def uids(self) -> frozenset[str]:
        return frozenset(study.uid for study in self.studies)

    def of_patient(self, patient_id: str) -> HeldStudy:
        (found,) = (study for study in self.studies if study.text("PatientID") == patient_id)
        return found


def fill(directory: Path, made: corpus.Corpus) -> Shelf:
    """Copies the chosen studies into a directory of their own."""
    directory.mkdir(parents=True)
    for number, source in enumerate(_chosen(made)):
        shutil.copyfile(source, directory / f"{number:03d}.dcm")
    files = [HeldFile(path) for path in sorted(directory.glob("*.dcm"))]
    uids = dict.fromkeys(file.study for file in files)
    studies = (HeldStudy(uid, tuple(file for file in files if file.study == uid)) for uid in uids)
    return Shelf(directory, tuple(studies))


def _chosen(made: corpus.Corpus) -> Iterator[Path]:
    for node, patients in CHOSEN.items():
        for study in made.nodes[node].studies:
            if study.patient_id in patients and study.study_date not in LEFT_OUT:
                yield from (instance.path for instance in study.instances)
