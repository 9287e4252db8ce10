"""A hospital of three studies, small enough to know by heart, behind three protocols: what QIDO-RS says of it is written down
here by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from gateway.simulators.dicomweb import DicomwebSimulator
from gateway.simulators.dimse import DimseSimulator
from tests.running import Gateway, files_node
from tests.specimens import specimen, uid

NODES = ("files", "web", "pacs")
MULLER, LOPEZ, YAMADA = "muller", "lopez", "yamada"
CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
ACCESSION_ISSUER = "2.16.840.1.113883.19.5"
UNICODE = {"SpecificCharacterSet": "ISO_IR 192"}
OF_MULLER: dict[str, Any] = {
    "PatientName": "Müller^Hans", "IssuerOfPatientID": "urn:small", "PatientBirthDate": "19600229", "PatientSex": "M",
    "AccessionNumber": "ACC-1", "ReferringPhysicianName": "Weiß^Jörg", "StudyID": "S1", "StudyDescription": "Thorax",
    "TimezoneOffsetFromUTC": "+0100", "Modality": "CT", "SOPClassUID": CT, "SeriesDescription": "Lung",
    "SeriesNumber": 7, "PerformedProcedureStepStartDate": "20260301", "PerformedProcedureStepStartTime": "101400",
    "BodyPartExamined": "CHEST", "NumberOfFrames": "1", "FrameIncrementPointer": 0x00181063,
    "RedPaletteColorLookupTableData": b"\0\1\2\3", "Laterality": "L", "SeriesDate": "20260301", "SeriesTime": "101400",
    **UNICODE,
}  # fmt: skip


def _issued_by(universal: str) -> Sequence:
    item = Dataset()
    item.UniversalEntityID, item.UniversalEntityIDType = universal, "ISO"
    return Sequence([item])


def _requested() -> Sequence:
    item = Dataset()
    item.ScheduledProcedureStepID, item.RequestedProcedureID = "SPS-1", "RP-1"
    return Sequence([item])


def write(directory: Path) -> None:
    """Müller: one CT series of two, the first with something private; López: an MR and a CT series, half an hour after midnight; Yamada: hardly anything."""
    for number in (1, 2):
        sequences = {
            "RequestAttributesSequence": _requested(),
            "IssuerOfAccessionNumberSequence": _issued_by(ACCESSION_ISSUER),
        }
        made = specimen(directory, "P1", MULLER, number=number, **sequences, **OF_MULLER)
        if number == 1:
            block = made.private_block(0x0009, "MAKER 1.0", create=True)
            block.add_new(0x01, "LO", "secret of the maker")
            (file,) = (each for each in directory.iterdir() if dcmread(each).SOPInstanceUID == made.SOPInstanceUID)
            made.save_as(file, enforce_file_format=True)
    lopez = {
        "PatientName": "García-López^María José", "StudyDate": "20260302", "StudyTime": "003000", "StudyID": "S2",
        "TimezoneOffsetFromUTC": "+0100", "AccessionNumber": "ACC-2", "StudyDescription": "", **UNICODE,
    }  # fmt: skip
    specimen(directory, "P2", LOPEZ, series="mr", Modality="MR", SOPClassUID=MR, **lopez)
    specimen(directory, "P2", LOPEZ, series="ct", Modality="CT", SOPClassUID=CT, **lopez)
    yamada = {
        "PatientName": "Yamada^Tarou=山田^太郎",
        "StudyDate": "20260401",
        "StudyTime": "",
        "StudyID": "",
        **UNICODE,
    }
    specimen(directory, "P3", YAMADA, Modality="OT", **yamada)


@dataclass(frozen=True)
class Small:
    """The gateway over the hospital; `get` and `found` ask one node's own root."""

    gateway: Gateway

    def get(self, path: str, node: str = "files", **headers: str) -> httpx.Response:
        return self.gateway.get(f"/nodes/{node}/dicom-web/{path}", headers={"Cache-Control": "no-cache", **headers})

    def rows(self, path: str, node: str = "files") -> list[dict[str, Any]]:
        answer = self.get(path, node)
        assert answer.status_code == 200, answer.text
        rows: list[dict[str, Any]] = answer.json()
        return rows

    def found(self, path: str, node: str = "files") -> set[str]:
        """The studies found, by the words they are made of."""
        words = {uid(word): word for word in (MULLER, LOPEZ, YAMADA)}
        return {words[row["0020000D"]["Value"][0]] for row in self.rows(path, node)}


@contextlib.contextmanager
def small(directory: Path, *, pacs: dict[str, Any] | None = None, **settings: Any) -> Iterator[Small]:
    """The hospital as files, as a DICOMweb node and as a PACS; with `pacs`, more keys of the PACS, there are two of it."""
    write(directory)
    web, archive = DicomwebSimulator(directory), DimseSimulator(directory, ae_title="PACS")
    hints = {"patient_id_issuer": "urn:small"}
    tables = [files_node("files", directory, **hints)]
    with contextlib.ExitStack() as stack:
        web.start()
        stack.callback(web.stop)
        tables.append({"id": "web", "name": "web", "adapter": "dicomweb", "connection": {"url": web.url}, **hints})
        connection = {"host": "127.0.0.1", "port": archive.start(), "called_ae_title": "PACS"}
        stack.callback(archive.stop)
        dimse = {"adapter": "dimse", "character_set": "ISO_IR 192", "connection": connection}
        tables.append({"id": "pacs", "name": "pacs", **dimse, **hints, **(pacs or {})})
        tables += [{**tables[-1], "id": "twin", "name": "twin"}] if pacs else []
        yield Small(stack.enter_context(Gateway(tables, **settings)))
