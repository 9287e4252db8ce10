"""Nodes that fail and quote patients while they do: in status lines, headers, bodies, addresses, comments and half answers."""

from __future__ import annotations

import itertools
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)

from gateway.simulators._dimse_serving import shut_down

NAME, IDENTIFIER, ACCESSION = "ZEMLJAKOVA^GRUSHENKA", "QX-774411-Z", "ACC-889900-Q"
PLANTED = ("ZEMLJAKOVA", "GRUSHENKA", IDENTIFIER, ACCESSION)
_QUOTE = f"{NAME} ({IDENTIFIER}, {ACCESSION})"
_ROW: dict[str, Any] = {
    "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": NAME}]},
    "00100020": {"vr": "LO", "Value": [IDENTIFIER]},
    "00080050": {"vr": "SH", "Value": [ACCESSION]},
}
# Status, headers, body: each is served in its turn.
_ANSWERS: list[tuple[int, dict[str, str], bytes]] = [
    (500, {"Content-Type": "text/plain"}, f"no luck with {_QUOTE}".encode()),
    (400, {"Content-Type": "application/json"}, json.dumps({"error": _QUOTE}).encode()),
    (503, {"Retry-After": NAME, "Warning": f'299 x "{_QUOTE}"'}, b""),
    (401, {"WWW-Authenticate": f'Basic realm="{NAME}"'}, _QUOTE.encode()),
    (302, {"Location": f"http://{IDENTIFIER}.example/{NAME}"}, b""),
    (302, {"Location": f"http://[{NAME}"}, b""),
    (200, {"Content-Type": f"application/{IDENTIFIER}; x={NAME}"}, _QUOTE.encode()),
    (200, {"Content-Type": "application/dicom+json"}, json.dumps([_ROW]).encode()[:-20]),
    (200, {"Content-Type": "application/dicom+json"}, json.dumps([{**_ROW, "0020000D": {"vr": "UI", "Value": [NAME]}}]).encode()),
    (200, {"Content-Type": "application/dicom+json"}, json.dumps([{**_ROW, "00100020": {"vr": "LO", "Value": [{"x": NAME}]}}]).encode()),
    (200, {"Content-Type": "application/dicom+json"}, json.dumps([[NAME], {"00100010": NAME}, NAME]).encode()),
    (200, {"Content-Type": "application/dicom+json"}, json.dumps({NAME: IDENTIFIER}).encode()),
    (200, {"Content-Type": "application/dicom+json", "Content-Encoding": "gzip"}, _QUOTE.encode()),
    (200, {"Content-Type": f'multipart/related; type="application/dicom"; boundary="{IDENTIFIER}"'}, f"--{IDENTIFIER}\r\n{NAME}".encode()),
    (200, {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}, f"--b\r\nContent-Type: {NAME}\r\n\r\n{_QUOTE}\r\n--b--".encode()),
    (200, {"Content-Type": "application/fhir+json"}, json.dumps({"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "exception", "diagnostics": _QUOTE}]}).encode()),
    (200, {"Content-Type": "application/fhir+json"}, json.dumps({"resourceType": "Bundle", "type": "searchset", "link": [{"relation": "next", "url": f"http://{IDENTIFIER}.example/?name={NAME}"}], "entry": [{"resource": {"resourceType": "ImagingStudy", "id": NAME}}]}).encode()),
    (200, {"Content-Type": "application/fhir+json"}, json.dumps({"resourceType": "Bundle", "entry": [NAME, {"resource": NAME}, {"fullUrl": NAME}]}).encode()),
]  # fmt: skip


@contextmanager
def http() -> Iterator[str]:
    """An HTTP server that answers each request with the next of its failures; its address."""
    turn, lock = itertools.cycle(_ANSWERS), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                status, headers, body = next(turn)
            self.send_response(status, NAME.replace("^", " "))
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name that the library calls

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/x"
    finally:
        shut_down(server)
        server.server_close()


@contextmanager
def no_http() -> Iterator[str]:
    """A port that answers HTTP with a line that is none, quoting, and then resets the connection."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.recv(100)
            client.sendall(f"{NAME} {IDENTIFIER}\r\n{NAME}: {ACCESSION}\r\n\r\n{_QUOTE}".encode())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x"
    finally:
        listener.close()


@contextmanager
def dimse() -> Iterator[int]:
    """A PACS that fails each operation in turn, with an Error Comment (0000,0902) that quotes; its port."""
    turn = itertools.cycle(range(4))

    def found(_: evt.Event) -> Iterator[tuple[Any, Dataset | None]]:
        row = Dataset()
        row.QueryRetrieveLevel, row.PatientName, row.PatientID = "STUDY", NAME, IDENTIFIER
        case = next(turn)
        if case == 0:
            status = Dataset()
            status.Status, status.ErrorComment = 0xC000, _QUOTE[:64]
            yield status, None
        elif case == 1:
            yield 0xFF00, row  # without a Study Instance UID
            yield 0x0000, None
        elif case == 2:
            row.StudyInstanceUID = "1.2.3"
            row.add_new(0x00080020, "LO", NAME)
            yield 0xFF00, row
            yield 0xA700, None
        else:
            raise ValueError(_QUOTE)

    def got(_: evt.Event) -> Iterator[Any]:
        yield 1
        status = Dataset()
        status.Status, status.ErrorComment = 0xC000, _QUOTE[:64]
        yield status, None

    entity = AE("GOSSIP")
    for context in (
        Verification,
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
    ):
        entity.add_supported_context(context)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, found), (evt.EVT_C_GET, got)]
    )
    try:
        yield server.socket.getsockname()[1]
    finally:
        shut_down(server)
