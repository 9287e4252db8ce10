"""OpenTelemetry: what one federated search looks like at a real OTLP/HTTP receiver, and that nothing else depends on it."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import settings
from gateway.app import create_app
from gateway.errors import SettingsError
from gateway.federation.nodes import NodeFile
from gateway.simulators import corpus as corpora
from gateway.simulators.corpus import Corpus
from gateway.simulators.dicomweb import DicomwebSimulator
from gateway.telemetry import LOGGABLE, STAGES
from tests.running import Gateway, files_node
from tests.telemetry.collector import Collector, Span

INTERNAL, SERVER, CLIENT = 1, 2, 3
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpora.build(tmp_path_factory.mktemp("corpus"), scale="small")


@pytest.fixture(scope="module")
def web(corpus: Corpus) -> Iterator[DicomwebSimulator]:
    with DicomwebSimulator(corpus.nodes["es-madrid"].directory) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(corpus: Corpus, web: DicomwebSimulator, collector: Collector) -> Iterator[Gateway]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        nodes = [
            {"id": "web", "name": "web", "adapter": "dicomweb", "connection": {"url": web.url}},
            files_node("disk", corpus.nodes["ee-tartu"].directory),
            {"id": "dead", "name": "dead", "adapter": "dicomweb", "connection": {"url": "http://127.0.0.1:9/x"}},
        ]
        with Gateway(nodes, otel_endpoint=collector.url) as running:
            running.get("/dicom-web/studies")  # what the adapters ask once is asked
            yield running


def one(spans: list[Span], **wanted: object) -> Span:
    (found,) = [span for span in spans if all(getattr(span, name) == value for name, value in wanted.items())]
    return found


def test_one_federated_search_is_one_trace_down_to_each_node(
    gateway: Gateway, collector: Collector, web: DicomwebSimulator
) -> None:
    web.seen.clear()
    answer = gateway.get(
        "/dicom-web/studies?PatientName=Garc*&StudyDate=20200101-", headers={"Accept-Encoding": "identity"}
    )
    spans = collector.trace(answer.headers["x-request-id"])
    root = one(spans, kind=SERVER)
    assert (root.name, root.above, root.failed) == ("GET search", "", False)
    assert root.attributes == {
        "route": "search", "method": "GET", "status": 200, "bytes": len(answer.content), "nodes": 3, "cache": "miss",
        "outcome": "whole",
    }  # fmt: skip
    by_id = {span.id: span for span in spans}
    assert all(span.above in by_id for span in spans if span is not root)
    assert all(span.begun <= span.ended for span in spans)
    assert {span.name for span in spans if span.kind == INTERNAL} == set(STAGES)
    operations = {span.attributes["node"]: span for span in spans if span.kind == CLIENT}
    assert {node: span.attributes["outcome"] for node, span in operations.items()} == {
        "web": "ok", "disk": "ok", "dead": "NodeUnreachable",
    }  # fmt: skip
    assert {node: span.failed for node, span in operations.items()} == {"web": False, "disk": False, "dead": True}
    assert {span.name for span in operations.values()} == {"node find"}
    sent = {seen.headers["traceparent"] for seen in web.seen}
    assert sent == {f"00-{root.trace}-{operations['web'].id}-01"}


def test_no_span_has_an_address_a_uid_a_value_or_a_text_of_an_error(gateway: Gateway, collector: Collector) -> None:
    uid = "1.2.840.99999.4711"
    paths = (
        f"/dicom-web/studies/{uid}",
        f"/dicom-web/studies/{uid}/series/{uid}.1/instances/{uid}.1.1/frames/1",
        "/fhir/ImagingStudy?patient.identifier=urn:oid:1.2|4711-GARCIA",
        "/dicom-web/studies?PatientName=GARCIA^MARIA&limit=x",
        "/nodes/GARCIA/dicom-web/studies",
    )
    for path in paths:
        for span in collector.trace(gateway.get(path).headers["x-request-id"]):
            assert set(span.attributes) <= LOGGABLE
            assert (span.events, span.message) == (0, "")
            for word in (uid, "GARCIA", "4711", "http", "/", "?", "="):
                assert word not in span.name
                assert word not in str(span.attributes)


def test_the_caller_s_span_is_above_the_request_s(gateway: Gateway, collector: Collector) -> None:
    answer = gateway.get("/dicom-web/studies", headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
    assert answer.headers["x-request-id"] == TRACE
    assert one(collector.trace(TRACE), kind=SERVER).above == CALLER


def test_what_the_caller_does_not_record_is_not_recorded_here(
    gateway: Gateway, collector: Collector, web: DicomwebSimulator
) -> None:
    trace = "1" * 32
    web.seen.clear()
    gateway.get("/dicom-web/studies?StudyDate=19990101", headers={"traceparent": f"00-{trace}-{CALLER}-00"})
    collector.trace(gateway.get("/live").headers["x-request-id"])  # what was to come before has come
    assert [span for span in collector.spans if span.trace == trace] == []
    for seen in web.seen:
        assert seen.headers["traceparent"].startswith(f"00-{trace}-")
        assert seen.headers["traceparent"].endswith("-00")
        assert CALLER not in seen.headers["traceparent"]


def test_an_answer_that_fails_is_marked(gateway: Gateway, collector: Collector) -> None:
    root = one(collector.trace(gateway.get("/nodes/dead/dicom-web/studies").headers["x-request-id"]), kind=SERVER)
    assert (root.failed, root.attributes["status"]) == (True, 503)


def test_the_receiver_is_told_who_sends_and_at_the_standard_path(gateway: Gateway, collector: Collector) -> None:
    collector.trace(gateway.get("/live").headers["x-request-id"])
    assert collector.paths == {"/v1/traces"}
    for resource in collector.resources:
        assert resource["service.name"] == "imaging-gateway"
        assert resource["deployment.environment.name"] == "test"


def test_the_standard_s_own_variable_is_read_where_ours_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert settings.read().otel_endpoint == "http://collector:4318"
    monkeypatch.setenv("GATEWAY_OTEL_ENDPOINT", "https://other:4318")
    assert settings.read().otel_endpoint == "https://other:4318"
    monkeypatch.setenv("GATEWAY_OTEL_ENDPOINT", "collector:4317")
    with pytest.raises(SettingsError, match="GATEWAY_OTEL_ENDPOINT"):
        settings.read()


def test_without_the_extra_the_setting_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    file = NodeFile.model_validate({"node": [files_node("disk", tmp_path)]})
    with pytest.raises(SettingsError, match=r"pip install imaging-gateway\[otel\]"):
        create_app(settings.read(otel_endpoint="http://127.0.0.1:4318"), file)
    create_app(settings.read(otel_endpoint=""), file)


def test_a_collector_that_is_not_there_costs_no_request_and_little_at_the_end(corpus: Corpus) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with Gateway([files_node("disk", corpus.nodes["ee-tartu"].directory)], otel_endpoint=nobody) as gateway:
            assert [gateway.get("/dicom-web/studies").status_code for _ in range(20)] == [200] * 20
            began = time.monotonic()
    assert time.monotonic() - began < 20
