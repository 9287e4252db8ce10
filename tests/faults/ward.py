"""A gateway over a healthy node and a sick one: four studies of four patients, and the faults that the sick one can have."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pydicom
from pydicom.data import get_testdata_file

from gateway.simulators.dicomweb import DicomwebSimulator
from gateway.simulators.dimse import DimseOptions, DimseSimulator
from gateway.simulators.fhir import FhirOptions, FhirSimulator
from tests.faults.certificates import Authority
from tests.faults.leftovers import Watched
from tests.faults.proxy import Fault, FaultProxy
from tests.running import files_node

IMPATIENT, PATIENT = 0.5, 10.0
"""Seconds of every deadline of the sick node: for faults that are silence; and for those that are not, on a busy machine."""
ISSUER = "WARD"
DAY, OTHER_DAY = "20240102", "20200101"
BOTH, SICK, WELL, DECOY = "1.2.826.7.1", "1.2.826.7.2", "1.2.826.7.3", "1.2.826.7.4"
PATIENTS = {BOTH: "P-BOTH", SICK: "P-SICK", WELL: "P-WELL", DECOY: "P-DECOY"}
INSTANCES = {study: {f"{study}.1.{number}" for number in (1, 2)} for study in PATIENTS}

_GET = r"1\.2\.840\.10008\.5\.1\.4\.1\.2\.2\.3"
_PATHS = {
    "metadata": r"/metadata[? ]",
    "retrieve": r"GET \S*/studies/[0-9.]+(/series/[0-9.]+(/instances/[0-9.]+)?)?[? ]",
    "locate": r"_include=ImagingStudy(%3A|:)endpoint|/Endpoint/",
    "search": "",
}
_OPERATIONS = {
    "metadata": {"study_metadata", "series_metadata", "instance_metadata"},
    "retrieve": {"retrieve_study", "retrieve_series", "retrieve_instance"},
}


def fill(directory: Path, *studies: str) -> Path:
    """Two instances of each study, of its own patient; the decoy has another date than the others."""
    directory.mkdir(parents=True)
    for study in studies:
        for number in (1, 2):
            day = OTHER_DAY if study == DECOY else DAY
            made(study, PATIENTS[study], directory / f"{study}.{number}.dcm", number, day)
    return directory


def made(study: str, patient: str, path: Path, number: int = 1, day: str = DAY) -> Path:
    """One CT image of 128 x 128."""
    instance = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    instance.PatientID, instance.PatientName = patient, f"Name^Of^{patient}"
    instance.StudyDate, instance.InstanceNumber = day, number
    instance.StudyInstanceUID, instance.SeriesInstanceUID = study, f"{study}.1"
    instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = f"{study}.1.{number}"
    instance.save_as(path)
    return path


@dataclass
class Ward:
    """`node` is the [[node]] of the sick one, behind `proxies`; `simulators` are what is behind those."""

    adapter: str
    directory: Path
    node: dict[str, Any]
    proxies: Mapping[str, FaultProxy] = field(default_factory=dict)
    simulators: Mapping[str, Any] = field(default_factory=dict)
    elsewhere: Any = None
    authority: Authority | None = None

    def place(self, operation: str) -> str:
        """Whose fault it is: the server that is searched, or the one that a FHIR server's Endpoint leads to."""
        return "pixels" if "pixels" in self.proxies and operation in ("metadata", "retrieve") else "front"

    @contextmanager
    def on_the_wire(self, fault: Fault, operation: str) -> Iterator[FaultProxy]:
        """The proxy with the fault; for metadata and retrieves, with the searches before them left alone."""
        only = _PATHS[operation]
        if self.adapter == "dimse":
            only = "" if operation == "search" else _GET
        proxy = self.proxies[self.place(operation)]
        with proxy.by(replace(fault, only=only)):
            yield proxy

    @contextmanager
    def in_the_peer(self, options: Mapping[str, Any], operation: str) -> Iterator[None]:
        peer = self.simulators[self.place(operation)]
        if isinstance(peer, DicomwebSimulator) and operation in _OPERATIONS:
            options = {**options, "faulty_operations": frozenset(_OPERATIONS[operation])}
        healthy, peer.options = peer.options, replace(peer.options, **options)
        try:
            yield
        finally:
            peer.options = healthy

    @contextmanager
    def with_redirect(self, operation: str = "search") -> Iterator[None]:
        """Every answer leads to another address of this machine, where somebody else's server stands."""
        before = sum(self.elsewhere.operations.values())
        with self.in_the_peer({"redirect_to": self.elsewhere.url}, operation):
            yield
        assert sum(self.elsewhere.operations.values()) == before, "the other server was asked"

    @contextmanager
    def with_expired_certificate(self) -> Iterator[None]:
        context = self.proxies["front"].tls
        assert self.authority is not None
        assert context is not None
        self.authority.loaded(context, "expired")
        self.proxies["front"].set(Fault())  # connections that are open would be none of the fault's
        try:
            yield
        finally:
            self.authority.loaded(context, "good")

    @contextmanager
    def without_directory(self) -> Iterator[None]:
        away = self.directory.with_name("away")
        self.directory.rename(away)
        try:
            yield
        finally:
            away.rename(self.directory)

    @contextmanager
    def with_unreadable_directory(self) -> Iterator[None]:
        """A link to itself: unreadable for root, too."""
        with self.without_directory():
            self.directory.symlink_to(self.directory)
            try:
                yield
            finally:
                self.directory.unlink()

    @contextmanager
    def without_file(self, study: str = SICK) -> Iterator[None]:
        file, away = self.directory / f"{study}.2.dcm", self.directory.with_name("away.dcm")
        file.rename(away)
        try:
            yield
        finally:
            away.rename(file)

    @contextmanager
    def with_truncated_file(self, study: str = SICK) -> Iterator[None]:
        file = self.directory / f"{study}.2.dcm"
        whole, status = file.read_bytes(), file.stat()
        os.truncate(file, len(whole) // 2)
        try:
            yield
        finally:
            file.write_bytes(whole)
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@contextmanager
def ward(
    adapter: str, folder: Path, deadline: float, authority: Authority | None = None
) -> Iterator[tuple[Ward, Watched]]:
    """With an authority the sick node is reached over TLS, with a certificate that is good until it is changed."""
    well, sick = fill(folder / "well", BOTH, WELL), fill(folder / "sick", BOTH, SICK, DECOY)
    with ExitStack() as stack:
        of_adapter = _ADAPTERS[adapter](sick, stack, authority)
        of_adapter.authority = authority
        of_adapter.node |= {f"{name}_deadline": deadline for name in ("connect", "search", "first_byte", "idle")}
        healthy = files_node("well", well, patient_id_issuer=ISSUER, time_zone="Europe/Warsaw")
        (folder / "spool").mkdir()
        # Neither cache nor spool: what was well before a fault would hide it.
        settings = {"cache": False, "spool": folder / "spool", "spool_seconds": 0.0}
        gateway = stack.enter_context(Watched([healthy, of_adapter.node], **settings))
        yield of_adapter, gateway


def _node(adapter: str, connection: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": "sick", "name": "sick", "adapter": adapter, "connection": connection, "patient_id_issuer": ISSUER,
        "time_zone": "Europe/Warsaw", "priority": 1, "breaker": {"open": 1.0}, **more,
    }  # fmt: skip


def _server_context(authority: Authority | None) -> ssl.SSLContext | None:
    return authority.loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "good") if authority else None


def _trust(authority: Authority | None) -> dict[str, Any]:
    return {"tls": {"ca_bundle": str(authority.bundle)}} if authority else {}


def _somewhere_else(peer: Any, stack: ExitStack) -> Any:
    """On another address of this machine, so that it is another host."""
    peer.start(host="127.0.0.2")
    stack.callback(peer.stop)
    return peer


def _dicomweb(sick: Path, stack: ExitStack, authority: Authority | None) -> Ward:
    peer = stack.enter_context(DicomwebSimulator(sick))
    elsewhere = _somewhere_else(DicomwebSimulator(sick), stack)
    front = stack.enter_context(FaultProxy(peer.port, "http", _server_context(authority)))
    url = f"{'https' if authority else 'http'}://127.0.0.1:{front.port}/dicom-web"
    node = _node("dicomweb", {"url": url, **_trust(authority)})
    return Ward("dicomweb", sick, node, {"front": front}, {"front": peer}, elsewhere)


def _dimse(sick: Path, stack: ExitStack, authority: Authority | None) -> Ward:
    peer = stack.enter_context(DimseSimulator(sick, options=DimseOptions()))
    front = stack.enter_context(FaultProxy(peer.port, "dimse", _server_context(authority)))
    address = {"host": "127.0.0.1", "port": front.port, "called_ae_title": "SIMULATOR", "retrieve": "get"}
    return Ward("dimse", sick, _node("dimse", address | _trust(authority)), {"front": front}, {"front": peer})


class _BehindProxy(FhirSimulator):
    """Its answers hold the addresses that callers see: those of the proxy before it."""

    seen_as = ""

    @property
    def url(self) -> str:
        return self.seen_as or super().url


def _fhir(sick: Path, stack: ExitStack, authority: Authority | None) -> Ward:
    pixels = stack.enter_context(DicomwebSimulator(sick))
    behind = stack.enter_context(FaultProxy(pixels.port, "http"))
    address = f"http://127.0.0.1:{behind.port}/dicom-web"
    peer = stack.enter_context(_BehindProxy(sick, "R4", FhirOptions(dicomweb_url=address)))
    front = stack.enter_context(FaultProxy(peer.port, "http", _server_context(authority)))
    elsewhere = _somewhere_else(FhirSimulator(sick, "R4", FhirOptions(dicomweb_url=address)), stack)
    url = peer.seen_as = f"{'https' if authority else 'http'}://127.0.0.1:{front.port}/fhir"
    issuers = [{"issuer": ISSUER, "uri": "https://hospital.example/patients"}]
    node = _node("fhir", {"url": url, **_trust(authority)}, allow=[address], issuers=issuers)
    return Ward("fhir", sick, node, {"front": front, "pixels": behind}, {"front": peer, "pixels": pixels}, elsewhere)


def _files(sick: Path, stack: ExitStack, authority: Authority | None) -> Ward:
    address = {"directory": str(sick), "rescan": 0.001}
    return Ward("files", sick, _node("files", address))


_ADAPTERS = {"dicomweb": _dicomweb, "dimse": _dimse, "fhir": _fhir, "files": _files}
