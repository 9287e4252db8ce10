"""Real peers for the tests: Debian's Orthanc, DCMTK's dcmqrscp, sekmet-fhir and redis-server.

Each is a process of its own on free ports of loopback, with its own settings and storage, gone at the end of its context.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.valuerep import PN_DELIMS
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet

from gateway.simulators.fhir import FhirOptions, FhirSimulator

PACKAGES = {
    "Orthanc": "Debian package orthanc",
    "dcmqrscp": "Debian package dcmtk",
    "findscu": "Debian package dcmtk",
    "redis-server": "Debian package redis-server",
    "sekmet": "PyPI package sekmet-fhir",
}
DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
Destinations = Mapping[str, tuple[str, int]]
"""AE title -> (host, port) for C-MOVE."""


def needs(program: str) -> str:
    """The path of a program. Skips the test where it is missing, and fails it where CI promises that nothing is skipped."""
    places = [None, "/usr/sbin:/usr/local/bin", str(Path(sys.executable).parent)]
    found = next((path for place in places if (path := shutil.which(program, path=place))), None)
    if found is None:
        _missing(f"{program} is not installed ({PACKAGES.get(program, 'no known package')})")
    return str(found)


def _missing(reason: str) -> None:
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


_PORTS = range(15_000, 32_000)
"""Below those that Linux gives out by itself (ip_local_port_range): no connection or server takes one by chance."""
_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, for a process that will; none is given twice."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if port not in _given and _can_be_bound(probe, port):
                _given.add(port)
                return port


def _can_be_bound(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


@contextmanager
def home() -> Iterator[Path]:
    """A directory in memory where there is one: Orthanc waits for the disk at every instance it takes."""
    fast = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="gw-peer-", dir=fast if os.access(fast, os.W_OK) else None))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def running(
    command: Sequence[str], directory: Path, port: int, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that listens on the port once this is entered, and has ended, children included, once it is left."""
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait(process, port)
        yield process
    finally:
        # Nothing of it is kept, so that nothing has to be put in order first: Orthanc takes its time for that.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not start")


@dataclass(frozen=True)
class DimsePeer:
    product: str
    port: int
    ae_title: str

    @property
    def address(self) -> dict[str, Any]:
        """The connection of a node of the adapter `dimse`."""
        return {"host": "127.0.0.1", "port": self.port, "called_ae_title": self.ae_title}


@dataclass(frozen=True)
class Orthanc(DimsePeer):
    """`http` is the root of its own REST interface."""

    http: str

    @property
    def dicomweb(self) -> str:
        return f"{self.http}/dicom-web"

    def upload(self, paths: Sequence[Path]) -> None:
        """Stores the files' exact bytes."""
        with ThreadPoolExecutor(4) as workers:
            list(workers.map(self._upload, paths))

    def _upload(self, path: Path) -> None:
        request = urllib.request.Request(f"{self.http}/instances", path.read_bytes(), method="POST")
        urllib.request.urlopen(request, timeout=60).close()

    def file(self, sop_instance_uid: str) -> bytes:
        """The bytes that it stored, by its own interface."""
        request = urllib.request.Request(f"{self.http}/tools/lookup", sop_instance_uid.encode(), method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = next(one["Path"] for one in json.load(answer) if one["Type"] == "Instance")
        with urllib.request.urlopen(f"{self.http}{found}/file", timeout=60) as answer:
            return bytes(answer.read())


@contextmanager
def orthanc(
    paths: Sequence[Path] = (),
    *,
    default_encoding: str | None = "Utf8",
    destinations: Destinations | None = None,
    most_found: int = 0,
) -> Iterator[Orthanc]:
    """Orthanc with DIMSE and DICOMweb, holding the files. `most_found` is its LimitFindResults, 0 for none.

    `default_encoding` None leaves what Debian ships: Latin1, which drops every other letter from its answers.
    """
    program = needs("Orthanc")
    if not DICOMWEB_PLUGIN.exists():
        _missing("the DICOMweb plugin of Orthanc is not installed (Debian package orthanc-dicomweb)")
    with home() as directory:
        peer = Orthanc("Orthanc", free_port(), "ORTHANC", f"http://127.0.0.1:{free_port()}")
        settings = {
            "StorageDirectory": str(directory / "storage"), "IndexDirectory": str(directory / "storage"),
            "HttpPort": int(peer.http.rpartition(":")[2]), "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
            "DicomAet": peer.ae_title, "DicomPort": peer.port, "DicomCheckCalledAet": False, "SaveJobs": False,
            "DicomAlwaysAllowEcho": True, "DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowMove": True, "DicomAlwaysAllowStore": True, "Plugins": [str(DICOMWEB_PLUGIN)],
            "LimitFindResults": most_found,
            "DicomModalities": {title: [title, *place] for title, place in (destinations or {}).items()},
        }  # fmt: skip
        if default_encoding:
            settings["DefaultEncoding"] = default_encoding
        (directory / "orthanc.json").write_text(json.dumps(settings))
        with running([program, str(directory / "orthanc.json")], directory, peer.port) as process:
            _wait(process, int(peer.http.rpartition(":")[2]))
            peer.upload(paths)
            yield peer


@contextmanager
def dcmqrscp(paths: Sequence[Path] = (), *, destinations: Destinations | None = None) -> Iterator[DimsePeer]:
    """dcmqrscp with the files registered where they lie: it gives their data sets, not copies that a store has made."""
    program = needs("dcmqrscp")
    with home() as directory:
        peer = DimsePeer("dcmqrscp", free_port(), "QR")
        storage = directory / "QR"
        storage.mkdir()
        hosts = "\n".join(
            f"{title} = ({title}, {host}, {port})" for title, (host, port) in (destinations or {}).items()
        )
        (directory / "qr.cfg").write_text(
            f"NetworkTCPPort = {peer.port}\nMaxPDUSize = 131072\nMaxAssociations = 32\n"
            f"HostTable BEGIN\n{hosts}\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\n{peer.ae_title} {storage} RW (500, 1024mb) ANY\nAETable END\n"
        )
        if paths:
            register = [needs("dcmqridx"), str(storage), *map(str, paths)]
            subprocess.run(register, check=True, capture_output=True, timeout=120)
        # +xw: accepts every transfer syntax it is offered, JPEG 2000 among them.
        with running([program, "+xw", "-c", str(directory / "qr.cfg"), str(peer.port)], directory, peer.port):
            yield peer


def findscu(peer: DimsePeer, level: str = "STUDY", **keys: str) -> list[pydicom.Dataset]:
    """What DCMTK's findscu receives, byte for byte: the independent eye on what a DIMSE peer answers."""
    with home() as directory:
        asked = {"QueryRetrieveLevel": level, **keys}
        options = [option for name, value in asked.items() for option in ("-k", f"{name}={value}")]
        command = [needs("findscu"), "-S", "-X", "-od", str(directory), "-aec", peer.ae_title, *options]
        subprocess.run([*command, "127.0.0.1", str(peer.port)], check=True, capture_output=True, timeout=60)
        return [pydicom.dcmread(path, force=True) for path in sorted(directory.glob("rsp*.dcm"))]


def c_get(peer: DimsePeer, instance: pydicom.FileDataset) -> bytes:
    """The data set bytes that a bare pynetdicom C-GET receives, in the transfer syntax that the file is stored in."""
    syntax = instance.file_meta.TransferSyntaxUID
    received: list[bytes] = []

    def store(event: Any) -> int:
        assert event.context.transfer_syntax == syntax
        received.append(event.request.DataSet.getvalue())
        return 0x0000

    entity = AE()
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelGet)
    entity.add_requested_context(instance.SOPClassUID, syntax)
    roles = [build_role(instance.SOPClassUID, scp_role=True)]
    identifier = pydicom.Dataset()
    identifier.QueryRetrieveLevel = "IMAGE"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(identifier, keyword, instance[keyword].value)
    handlers = [(evt.EVT_C_STORE, store)]
    association = entity.associate("127.0.0.1", peer.port, ae_title=peer.ae_title, ext_neg=roles, evt_handlers=handlers)
    assert association.is_established
    try:
        for _ in association.send_c_get(identifier, StudyRootQueryRetrieveInformationModelGet):
            pass
    finally:
        association.release()
    (only,) = received
    return only


def raw_text(dataset: pydicom.Dataset, keyword: str, default: str = "") -> str:
    """The bytes of a PN, decoded by the data set's own (0008,0005), else by `default`."""
    element = dataset.get_item(keyword)
    raw = bytes(element.value or b"") if element is not None else b""
    terms = dataset.get("SpecificCharacterSet") or default
    return decode_bytes(raw, convert_encodings(terms), PN_DELIMS).rstrip(" \0")


@contextmanager
def sekmet(resources: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The base URL of sekmet-fhir (R4) with the resources."""
    program = needs("sekmet")
    with home() as directory:
        port = free_port()
        url = f"http://127.0.0.1:{port}/fhir"
        command = [program, "serve", "--host", "127.0.0.1", "--port", str(port)]
        own = {"SEKMET_BASE_URL": url, "SEKMET_DB": str(directory / "sekmet.db")}
        with running(command, directory, port, **own):
            for resource in resources:
                _put(f"{url}/{resource['resourceType']}/{resource['id']}", resource)
            yield url


def as_fhir(directory: Path, **options: Any) -> list[dict[str, Any]]:
    """The studies of a directory as R4 resources, what they refer to first."""
    options = {"service_requests": True, "page_size": 1000, **options}
    with FhirSimulator(directory, "R4", FhirOptions(**options)) as simulator:
        included = "&".join(f"_include=ImagingStudy:{name}" for name in ("endpoint", "subject", "basedon"))
        bundle = _get(f"{simulator.url}/ImagingStudy?{included}")
        organization = _get(f"{simulator.url}/Organization/hospital")
    order = ["Organization", "Endpoint", "Patient", "ServiceRequest", "ImagingStudy"]
    found = [organization, *(entry["resource"] for entry in bundle["entry"])]
    return sorted(found, key=lambda resource: order.index(resource["resourceType"]))


def _get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return dict(json.load(answer))


def _put(url: str, resource: dict[str, Any]) -> None:
    headers = {"Content-Type": "application/fhir+json"}
    request = urllib.request.Request(url, json.dumps(resource).encode(), headers, method="PUT")
    urllib.request.urlopen(request, timeout=60).close()


@dataclass
class Redis:
    """`kill` ends it as a crash does."""

    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].partition("/")[0])


@contextmanager
def redis(port: int = 0, *options: str) -> Iterator[Redis]:
    """An empty one, on a free port unless one is given; `options` are those of redis-server."""
    program = needs("redis-server")
    with home() as directory:
        port = port or free_port()
        command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(directory)]
        command += ["--repl-diskless-sync-delay", "0"]  # one replica comes, and no other has to be waited for
        with running([*command, *options], directory, port) as process:
            yield Redis(f"redis://127.0.0.1:{port}/0", process)


@contextmanager
def sentinel(master: int, name: str) -> Iterator[Redis]:
    """One that watches the Redis on port `master` as `name`, and fails over after half a second of silence."""
    program = needs("redis-server")
    with home() as directory:
        port = free_port()
        (directory / "sentinel.conf").write_text(
            f"bind 127.0.0.1\nport {port}\ndir {directory}\nsentinel monitor {name} 127.0.0.1 {master} 1\n"
            f"sentinel down-after-milliseconds {name} 500\nsentinel failover-timeout {name} 3000\n"
        )
        command = [program, str(directory / "sentinel.conf"), "--sentinel"]
        with running(command, directory, port) as process:
            # How often it asks; what it decides from that is its own.
            with socket.create_connection(("127.0.0.1", port), 30) as asking:
                asking.sendall(b"SENTINEL DEBUG INFO-PERIOD 1000\r\n")
                assert asking.recv(5) == b"+OK\r\n"
            yield Redis(f"redis://127.0.0.1:{port}/0", process)


class BlackHole:
    """A port that takes connections and never says a word; `address` is (host, port)."""

    def __enter__(self) -> BlackHole:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = int(self._listener.getsockname()[1])
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
