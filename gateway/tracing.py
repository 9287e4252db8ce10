"""The trace a request belongs to: W3C Trace Context in and out, and OpenTelemetry spans where there is an endpoint for them.

Names and attributes of spans come from closed sets: no address, no query and no UID is ever in one, no text of an error.
Neither `tracestate` nor `baggage` is read or passed on: a caller may put anything into them, and hospitals would get it.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

# W3C Trace Context Level 1, 3.2: two hexadecimal digits each of version and flags, and room for what later versions add.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN, _FORBIDDEN_VERSION = "0" * 32, "0" * 16, "ff"
_SAMPLED = 1
_PATH = "/v1/traces"
_CLOSING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Position:
    """Where in a trace the work of this context is. `span_id` is '' where no span has begun; `flags` are 0 or 1 (sampled)."""

    trace_id: str
    span_id: str = ""
    flags: int = 0
    context: Context | None = None


_position: ContextVar[Position | None] = ContextVar("trace_position", default=None)
_tracer: Tracer | None = None


def accepted(sent: Sequence[str]) -> Position | None:
    """What a caller's `traceparent` says; None where there is not exactly one that is valid (W3C Trace Context 3.2.2)."""
    match = _TRACEPARENT.fullmatch(sent[0]) if len(sent) == 1 else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == _FORBIDDEN_VERSION or trace_id == _NO_TRACE or span_id == _NO_SPAN or (more and version == "00"):
        return None
    return Position(trace_id, span_id, int(flags, 16) & _SAMPLED)


def begin(sent: Sequence[str]) -> str:
    """Puts this context into the caller's trace, or into a new one. Gives the trace id: 32 hexadecimal digits."""
    # Unique, not secret, and without a system call; the generator seeds itself from the system, and anew in each fork.
    position = accepted(sent) or Position(f"{random.getrandbits(128) or 1:032x}")
    _position.set(position)
    return position.trace_id


def outgoing() -> dict[str, str]:
    """The header that a request to a node carries, with a span id of its own; none outside a request."""
    position = _position.get()
    if position is None:
        return {}
    # A span that is recorded has an id of its own already, and is what the node's own span hangs below.
    span_id = position.span_id if position.context is not None else f"{random.getrandbits(64) or 1:016x}"
    return {"traceparent": f"00-{position.trace_id}-{span_id}-{position.flags:02x}"}


class OpenSpan:
    """A span that has begun. What begins meanwhile in its context is below it; `end` it once, in whatever context."""

    __slots__ = ("_before", "_span")

    def __init__(self, span: Span, context: Context, before: Position) -> None:
        self._span, self._before = span, before
        told = span.get_span_context()
        position = Position(before.trace_id, f"{told.span_id:016x}", int(told.trace_flags) & _SAMPLED, context)
        _position.set(position)

    def end(self, *, failed: bool = False, name: str = "", **attributes: str | int | float) -> None:
        """`failed` marks it as an error, without a text: texts may quote what they failed on."""
        from opentelemetry.trace import StatusCode

        # The context may be another one than where it began (a generator closed by another task): no token is used.
        _position.set(self._before)
        if name:
            self._span.update_name(name)
        self._span.set_attributes(attributes)
        if failed:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def start(name: str, kind: str = "INTERNAL", **attributes: str | int) -> OpenSpan | None:
    """Begins a span; None where nothing is traced: without an endpoint, and outside a request. `kind` is a SpanKind."""
    if _tracer is None:
        return None
    before = _position.get()
    return None if before is None else _started(_tracer, before, name, kind, attributes)


def _started(tracer: Tracer, before: Position, name: str, kind: str, attributes: dict[str, Any]) -> OpenSpan:
    from opentelemetry.trace import SpanKind, set_span_in_context

    above = _above(before) if before.context is None else before.context
    span = tracer.start_span(
        name,
        above,
        SpanKind[kind],
        attributes,
        record_exception=False,
        set_status_on_exception=False,
    )
    return OpenSpan(span, set_span_in_context(span, above), before)


def _above(before: Position) -> Context:
    """The context of a request's own span: the caller's span, or nothing."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    if not before.span_id:
        return Context()
    trace_id, span_id = int(before.trace_id, 16), int(before.span_id, 16)
    caller = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(before.flags))
    return set_span_in_context(NonRecordingSpan(caller), Context())


class Export:
    """Sends spans to an OTLP/HTTP endpoint, in a thread of its own, and drops them while nobody takes them.

    `endpoint` is the base URL, as in OTEL_EXPORTER_OTLP_ENDPOINT; '' exports nothing. The SDK's own OTEL_* variables
    (headers, certificate, sampler, batches, resource) hold. Raises SettingsError where the extra is not installed.
    """

    def __init__(self, endpoint: str, version: str) -> None:
        self._endpoint, self._version = endpoint, version
        self._provider: TracerProvider | None = None
        if endpoint:
            _require_extra()

    async def open(self) -> None:
        """Connects to nobody yet."""
        global _tracer
        if self._endpoint:
            self._provider = _provider(self._endpoint, self._version)
            _tracer = self._provider.get_tracer("imaging-gateway", self._version)

    async def close(self) -> None:
        """Sends what waits, for a few seconds at most."""
        global _tracer
        provider, self._provider = self._provider, None
        if provider is not None:
            _tracer = None
            # A thread that nobody has to wait for: without a collector the SDK goes on trying for a while.
            closing = threading.Thread(target=provider.shutdown, name="spans", daemon=True)
            closing.start()
            await asyncio.to_thread(closing.join, _CLOSING_SECONDS)


def _require_extra() -> None:
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError:
        raise SettingsError(
            "GATEWAY_OTEL_ENDPOINT: OpenTelemetry is not installed: pip install imaging-gateway[otel]",
            parameter="GATEWAY_OTEL_ENDPOINT",
        ) from None


def _provider(endpoint: str, version: str) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class OfTheRequest(RandomIdGenerator):
        """A trace that begins here has the request's id, so that log, answer and trace are found by one word."""

        def generate_trace_id(self) -> int:
            position = _position.get()
            return int(position.trace_id, 16) if position else super().generate_trace_id()

    about = Resource.create({"service.name": "imaging-gateway", "service.version": version})
    provider = TracerProvider(
        resource=about.merge(OTELResourceDetector().detect()), id_generator=OfTheRequest(), shutdown_on_exit=False
    )
    base = endpoint.rstrip("/")
    exporter = OTLPSpanExporter(endpoint=base if base.endswith(_PATH) else base + _PATH)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
