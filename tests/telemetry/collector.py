"""An OpenTelemetry collector as exporters meet it: OTLP over HTTP, each batch decoded by the protocol's own messages."""

from __future__ import annotations

import gzip
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from gateway.simulators._dimse_serving import shut_down


@dataclass(frozen=True)
class Span:
    """One span; the ids are hexadecimal, `above` is '' for one without a parent."""

    trace: str
    id: str
    above: str
    name: str
    kind: int
    failed: bool
    message: str
    attributes: dict[str, Any]
    events: int
    begun: int
    ended: int


class Collector:
    """Listens on a port of loopback while it is entered."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                request = ExportTraceServiceRequest()
                request.ParseFromString(body)
                outer.paths.add(self.path)
                outer.requests.append(request)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> Collector:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        shut_down(self._server)
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def resources(self) -> list[dict[str, Any]]:
        return [plain(one.resource.attributes) for request in self.requests for one in request.resource_spans]

    @property
    def spans(self) -> list[Span]:
        """All that have come, whatever was sent more than once only once."""
        found = [
            Span(
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.name,
                span.kind,
                span.status.code == 2,
                span.status.message,
                plain(span.attributes),
                len(span.events),
                span.start_time_unix_nano,
                span.end_time_unix_nano,
            )
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return list({span.id: span for span in found}.values())

    def trace(self, identifier: str, seconds: float = 30) -> list[Span]:
        """The spans of one request once its own has come; it is exported with or after all that is below it."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            found = [span for span in self.spans if span.trace == identifier]
            if any(span.kind == 2 for span in found):
                return found
            time.sleep(0.05)
        raise AssertionError(f"no trace {identifier} came")


def plain(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
