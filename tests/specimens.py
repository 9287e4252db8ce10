"""Tiny DICOM files made to order: one secondary capture each, with just the identity that a test is about."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def uid(*of: object) -> str:
    """A UID that is the same for the same words."""
    return f"2.25.{int(hashlib.sha256('/'.join(map(str, of)).encode()).hexdigest()[:24], 16)}"


def linked_to(*keys: tuple[str, str]) -> Sequence:
    """(0010,1002) with these (issuer, id)."""
    items = []
    for issuer, identifier in keys:
        item = Dataset()
        item.PatientID, item.IssuerOfPatientID = identifier, issuer
        items.append(item)
    return Sequence(items)


def specimen(directory: Path, patient: str, study: str, series: str = "1", number: int = 1, **more: Any) -> Dataset:
    """Writes one instance below `directory`; `study`, `series` are words that UIDs are made of. `more` are keywords."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = more.pop("transfer_syntax", ExplicitVRLittleEndian)
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = SECONDARY_CAPTURE
    made.StudyInstanceUID, made.SeriesInstanceUID = uid(study), uid(study, series)
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = uid(study, series, number)
    made.PatientID, made.PatientName = patient, f"Specimen^{patient}"
    made.StudyDate, made.StudyTime, made.Modality = "20260301", "101500", "OT"
    made.SeriesNumber, made.InstanceNumber, made.StudyID, made.AccessionNumber = 1, number, "1", ""
    made.Rows = made.Columns = 4
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation, made.SamplesPerPixel = 7, 0, 1
    made.PhotometricInterpretation, made.PixelData = "MONOCHROME2", bytes(16)
    for keyword, value in more.items():
        setattr(made, keyword, value)
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    directory.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(f"{patient}/{made.SOPInstanceUID}".encode()).hexdigest()[:16]
    made.save_as(directory / f"{name}.dcm", enforce_file_format=True)
    return made
