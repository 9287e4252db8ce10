"""Instances to store, and the multipart bodies that carry them (PS3.18 10.5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import httpx
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

BOUNDARY = "between-the-parts"
DICOM = 'multipart/related; type="application/dicom"; boundary=' + BOUNDARY
STORED, FAILED, OTHERS = "00081199", "00081198", "0008119A"


def instance(
    study: str = "", *, patient: str = "12345", issuer: str = "", syntax: str = ExplicitVRLittleEndian, **more: Any
) -> Dataset:
    """A small CT image of a patient; UIDs that are not given are new."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, generate_uid()
    made.StudyInstanceUID, made.SeriesInstanceUID = study or generate_uid(), generate_uid()
    made.PatientID, made.PatientName, made.Modality, made.StudyDate = patient, "Sent^In", "CT", "20260301"
    if issuer:
        made.IssuerOfPatientID = issuer
    made.Rows, made.Columns, made.BitsAllocated, made.BitsStored, made.HighBit = 4, 4, 16, 16, 15
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.PixelData = bytes(range(32))
    for keyword, value in more.items():
        setattr(made, keyword, value)
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.TransferSyntaxUID = syntax
    return made


def encoded(made: Dataset) -> bytes:
    """The Part 10 file."""
    buffer = BytesIO()
    dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


def body(*files: bytes, kind: str = "application/dicom", closed: bool = True) -> bytes:
    parts = b"".join(
        b"\r\n--%b\r\nContent-Type: %b\r\n\r\n%b" % (BOUNDARY.encode(), kind.encode(), one) for one in files
    )
    return parts[2:] + (b"\r\n--%b--\r\n" % BOUNDARY.encode() if closed else b"")


@dataclass
class Answer:
    """A store response: each instance's outcome, in the order of its sequence."""

    status: int
    body: dict[str, Any]
    headers: httpx.Headers
    stored: list[str] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    warned: dict[str, int] = field(default_factory=dict)
    others: list[int] = field(default_factory=list)


def read(response: httpx.Response) -> Answer:
    """The response taken apart; a problem has no outcomes."""
    answer = Answer(response.status_code, response.json(), response.headers)
    answer.stored = [uid for uid, _ in _items(answer.body, STORED)]
    answer.failed = {uid: item["00081197"]["Value"][0] for uid, item in _items(answer.body, FAILED)}
    answer.warned = {
        uid: item["00081196"]["Value"][0] for uid, item in _items(answer.body, STORED) if "00081196" in item
    }
    others = answer.body.get(OTHERS, {"Value": []})["Value"]
    answer.others = [item["00081197"]["Value"][0] for item in others]
    return answer


def _items(response: dict[str, Any], sequence: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for item in response.get(sequence, {"Value": []})["Value"]:
        yield item["00081155"]["Value"][0], item


def send(client: httpx.Client, *instances: Dataset | bytes, at: str = "/dicom-web/studies", **options: Any) -> Answer:
    """POST of the instances in one request."""
    files = [one if isinstance(one, bytes) else encoded(one) for one in instances]
    headers = {"Content-Type": DICOM, "Accept": "application/dicom+json", **options.pop("headers", {})}
    return read(client.post(at, content=body(*files), headers=headers, **options))


def uids(instances: Sequence[Dataset]) -> list[str]:
    return [str(one.SOPInstanceUID) for one in instances]
