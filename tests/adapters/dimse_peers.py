"""Real DIMSE peers for the tests, each a process of its own on a free port: DCMTK's dcmqrscp and Debian's Orthanc."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tests.peers import free_port

MOVE_DESTINATION = "GWSTORE"
NAMES = {"ISO_IR 101": "Žižka^Jan", "ISO_IR 126": "Παπαδόπουλος^Γιώργος", "ISO_IR 144": "Йорданов^Пётр"}
CODECS = {"ISO_IR 101": "iso8859_2", "ISO_IR 126": "iso8859_7", "ISO_IR 144": "iso8859_5"}
CT = "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"


@dataclass(frozen=True)
class DimsePeer:
    product: str
    port: int
    ae_title: str

    @property
    def address(self) -> dict[str, object]:
        return {"host": "127.0.0.1", "port": self.port, "called_ae_title": self.ae_title}

    def load(self, *paths: Path | str, option: str = "-xe") -> None:
        command = ["storescu", option, "-aec", self.ae_title, "127.0.0.1", str(self.port), *map(str, paths)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


@contextmanager
def dcmqrscp(directory: Path, destination_port: int) -> Iterator[DimsePeer]:
    port = free_port()
    (directory / "QR").mkdir(parents=True)
    (directory / "qr.cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 32\n"
        f"HostTable BEGIN\ngw = ({MOVE_DESTINATION}, localhost, {destination_port})\nHostTable END\n"
        f"VendorTable BEGIN\nVendorTable END\nAETable BEGIN\nQR {directory}/QR RW (500, 1024mb) ANY\nAETable END\n"
    )
    with _running(["dcmqrscp", "+xw", "-c", str(directory / "qr.cfg"), str(port)], directory, port):
        yield DimsePeer("dcmqrscp", port, "QR")


@contextmanager
def orthanc(directory: Path, destination_port: int) -> Iterator[DimsePeer]:
    directory.mkdir(parents=True)
    port = free_port()
    settings = {
        "StorageDirectory": str(directory), "IndexDirectory": str(directory), "DicomAet": "ORTHANC", "DicomPort": port,
        "HttpServerEnabled": False, "DicomCheckCalledAet": False, "DicomAlwaysAllowGet": True, "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowMove": True, "DicomAlwaysAllowStore": True, "Plugins": [],
        # Its default, Latin1, drops every other letter from C-FIND answers.
        "DefaultEncoding": "Utf8",
        "DicomModalities": {"gw": [MOVE_DESTINATION, "127.0.0.1", destination_port]},
    }  # fmt: skip
    (directory / "orthanc.json").write_text(json.dumps(settings))
    with _running(["Orthanc", str(directory / "orthanc.json")], directory, port):
        yield DimsePeer("Orthanc", port, "ORTHANC")


@contextmanager
def _running(command: list[str], directory: Path, port: int) -> Iterator[None]:
    if not shutil.which(command[0]):
        reason = f"{command[0]} is not installed"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(port, process)
        yield
    finally:
        process.kill()  # nothing of it is kept
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("the peer did not start")


def named_file(directory: Path, character_set: str) -> Path:
    """CT_small under a name in raw bytes of a character set, with UIDs of its own."""
    raw = NAMES[character_set].encode(CODECS[character_set])
    placeholder = b"N" * len(raw)
    dataset = _copy_of_ct()
    dataset.SpecificCharacterSet = character_set
    dataset.PatientName = placeholder.decode()
    dataset.PatientID = character_set.replace(" ", "")
    path = directory / f"{dataset.SOPInstanceUID}.dcm"
    dataset.save_as(path)
    content = path.read_bytes()
    assert content.count(placeholder) == 1
    path.write_bytes(content.replace(placeholder, raw))
    return path


def _copy_of_ct() -> Dataset:
    import pydicom

    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(dataset, keyword, generate_uid())
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def multi_frame(directory: Path, megabytes: int) -> tuple[Path, str, str]:
    """A multi-frame secondary capture of that size: its path, StudyInstanceUID and SOPInstanceUID."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7.2"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.Modality = "BIG^MULTIFRAME", "BIG", "OT"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20240101", "120000", "1"
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.AccessionNumber = "1", "1", ""
    dataset.Rows = dataset.Columns = 1024
    dataset.NumberOfFrames = megabytes
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 7, 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = numpy.random.default_rng(1).integers(0, 256, megabytes << 20, numpy.uint8).tobytes()
    path = directory / "big.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path, dataset.StudyInstanceUID, dataset.SOPInstanceUID
