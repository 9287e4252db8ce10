"""Servers made by hand, for what no product at hand does: a function answers each request of one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Given = tuple[int, Mapping[str, str], bytes]
Respond = Callable[..., Given]

DICOM_JSON = {"Content-Type": "application/dicom+json"}
FHIR_JSON = {"Content-Type": "application/fhir+json"}
STUDY = {"0020000D": {"vr": "UI", "Value": ["1.2.3"]}, "00100020": {"vr": "LO", "Value": ["P"]}}
SERIES = {**STUDY, "0020000E": {"vr": "UI", "Value": ["1.2.3.4"]}}
INSTANCE = {**SERIES, "00080018": {"vr": "UI", "Value": ["1.2.3.4.5"]}}


@contextmanager
def server(respond: Respond) -> Iterator[int]:
    """Its port. `respond(method, path, query, body, port)` gives status, headers and body of each answer."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            address = urlsplit(self.path)
            status, headers, body = respond(self.command, address.path, parse_qs(address.query), asked, port)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _answer  # noqa: N815 - as http.server names them

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        port = listening.server_address[1]
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield port
        listening.shutdown()


def given(body: object, headers: Mapping[str, str] = DICOM_JSON, status: int = 200) -> Given:
    return status, headers, json.dumps(body).encode()


def dicomweb_node(
    identifier: str, port: int, *, connection: Mapping[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    url = {"url": f"http://127.0.0.1:{port}", **(connection or {})}
    return _node(identifier, "dicomweb", url) | {"quirks": []} | more


def fhir_node(identifier: str, port: int, **more: Any) -> dict[str, Any]:
    return _node(identifier, "fhir", {"url": f"http://127.0.0.1:{port}/fhir", "version": "R4"}) | more


def _node(identifier: str, adapter: str, connection: Mapping[str, Any]) -> dict[str, Any]:
    named = {"id": identifier, "name": identifier, "adapter": adapter, "patient_id_issuer": "I", "retries": 0}
    return {**named, "connection": connection}


def archive(*studies: Mapping[str, Any], address: str = "/bulk", bulk: Given | None = None) -> Respond:
    """A DICOMweb archive: these studies, or one of one instance whose pixels lie at `address`."""
    one = {**INSTANCE, "7FE00010": {"vr": "OW", "BulkDataURI": address}}
    below = {"metadata": [one], "instances": [INSTANCE], "series": [SERIES]}

    def respond(method: str, path: str, *_: object) -> Given:
        if bulk is not None and path == "/bulk":
            return bulk
        return given(below.get(path.rpartition("/")[2], list(studies) or [STUDY]))

    return respond


def capabilities(*parameters: str, includes: list[str] | None = None) -> dict[str, Any]:
    """A CapabilityStatement of a server that searches ImagingStudy by these parameters."""
    searched: dict[str, Any] = {
        "type": "ImagingStudy",
        "searchParam": [{"name": n, "type": "token"} for n in parameters],
    }
    if includes is not None:
        searched["searchInclude"] = includes
    rest = [{"mode": "server", "resource": [searched]}]
    return {"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1", "rest": rest}


def imaging_study(number: int, subject: Mapping[str, Any]) -> dict[str, Any]:
    """ImagingStudy/s{number}, of the study 1.2.3.{number}."""
    named = {"resourceType": "ImagingStudy", "id": f"s{number}", "status": "available", "started": "2024-01-01"}
    identifier = [{"system": "urn:dicom:uid", "value": f"urn:oid:1.2.3.{number}"}]
    modality = {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "MG"}
    series = [{"uid": f"1.2.3.{number}.1", "modality": modality}]
    return {**named, "identifier": identifier, "subject": subject, "series": series}


def patient(identifier: str, value: str) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": identifier, "identifier": [{"value": value}]}


def searchset(*entries: tuple[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A Bundle of resources, each with its fullUrl."""
    listed = [{"fullUrl": url, "resource": resource} for url, resource in entries]
    return {"resourceType": "Bundle", "type": "searchset", "entry": listed}


def facade(count: int, broken: Collection[int] = (), **other: Mapping[str, Any]) -> Respond:
    """A small FHIR server without includes, and without a search by patient: as many studies as patients. It fails to give
    those patients that are `broken`, and `other` ones in the place of some."""

    def respond(method: str, path: str, query: object, body: bytes, port: int) -> Given:
        name = path.rpartition("/")[2]
        if path == "/fhir/metadata":
            return given(capabilities("identifier", "started", includes=[]), FHIR_JSON)
        if path == "/fhir/ImagingStudy":
            base = f"http://127.0.0.1:{port}/fhir/ImagingStudy"
            studies = [(f"{base}/s{n}", imaging_study(n, {"reference": f"Patient/p{n}"})) for n in range(count)]
            return given(searchset(*studies), FHIR_JSON)
        if not path.startswith("/fhir/Patient/p"):
            return given({}, FHIR_JSON, 404)
        if int(name[1:]) in broken:
            return given({}, FHIR_JSON, 500)
        return given(other.get(name) or patient(name, f"ID{name[1:]}"), FHIR_JSON)

    return respond
