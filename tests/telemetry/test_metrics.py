"""The metrics: documented one by one, with labels from closed sets, counted once, and cheap enough for every request."""

from __future__ import annotations

import re
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Histogram
from prometheus_client.parser import text_string_to_metric_families

from gateway import metrics, telemetry
from gateway.edge import routes
from gateway.simulators import corpus as corpora
from gateway.simulators.corpus import Corpus
from gateway.simulators.dicomweb import DicomwebSimulator
from gateway.simulators.dimse import DimseSimulator
from tests.running import Gateway, files_node
from tests.telemetry.registry import registered

MAP = (Path(__file__).parents[2] / "gateway" / "README.md").read_text(encoding="utf-8")
ROW = re.compile(r"\| `(gateway_\w+)` \| (counter|gauge|histogram) \| ([\w, -]+) \| ([^|]+) \| ([^|]+) \|")


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Each metric of the table in gateway/README.md: its kind and its labels."""
    table = MAP[MAP.index("## Metrics") : MAP.index("## Decisions")]
    rows = [row for row in table.splitlines() if row.startswith("| `")]
    found = [ROW.fullmatch(row) for row in rows]
    assert None not in found, [row for row, match in zip(rows, found, strict=True) if match is None]
    return {m[1]: (m[2], () if m[3] == "-" else tuple(m[3].split(", "))) for m in found if m}


def test_the_table_and_the_registry_are_equal() -> None:
    assert documented() == registered()


def test_names_say_their_unit() -> None:
    for name, (kind, _) in registered().items():
        assert name.endswith("_total") == (kind == "counter"), name
        assert kind != "histogram" or name.endswith("_seconds"), name


def test_every_time_has_buckets_from_a_millisecond_to_a_minute() -> None:
    assert (metrics.BUCKETS[0], metrics.BUCKETS[-1]) == (0.001, 60.0)
    for metric in vars(metrics).values():
        if isinstance(metric, Histogram):
            assert metric._kwargs["buckets"] == metrics.BUCKETS


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpora.build(tmp_path_factory.mktemp("corpus"), scale="small")


@pytest.fixture(scope="module")
def gateway(corpus: Corpus) -> Iterator[Gateway]:
    """Over one directory by three protocols, and one node that cannot be reached."""
    directory = corpus.nodes["es-madrid"].directory
    with DicomwebSimulator(directory) as web, DimseSimulator(directory) as pacs:
        dimse = {"host": "127.0.0.1", "port": pacs.port, "called_ae_title": "SIMULATOR"}
        connections = {
            "m-web": ("dicomweb", {"url": web.url}),
            "m-dimse": ("dimse", dimse),
            "m-dead": ("dicomweb", {"url": "http://127.0.0.1:9/dicom-web"}),
        }
        nodes = [
            {"id": name, "name": name, "adapter": adapter, "connection": connection}
            for name, (adapter, connection) in connections.items()
        ]
        with Gateway([files_node("m-disk", directory), *nodes]) as running:
            yield running


def samples(gateway: Gateway) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = gateway.get("/metrics").text
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for one in found}


def grown(gateway: Gateway, *paths: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """By how much each of our samples is larger after these requests."""
    before = samples(gateway)
    for path in paths:
        gateway.get(path)
    after = samples(gateway)
    return {
        sample: value - before.get(sample, 0.0)
        for sample, value in after.items()
        if sample[0].startswith("gateway_") and value != before.get(sample, 0.0)
    }


def key(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def test_one_search_is_counted_once_everywhere(gateway: Gateway) -> None:
    more = grown(gateway, "/dicom-web/studies?StudyDate=20250101-20251231&PatientSex=F")
    assert more[key("gateway_requests_total", route="search", method="GET", status="200")] == 1
    for name in ("gateway_request_seconds_count", "gateway_request_duration_seconds_count"):
        assert more[key(name, route="search")] == 1
    for stage in telemetry.STAGES:
        assert more[key("gateway_stage_seconds_count", stage=stage)] >= 1, stage
    assert more[key("gateway_partial_answers_total", action="search")] == 1
    assert more[key("gateway_node_operations_total", node="m-disk", operation="find", outcome="ok")] >= 1
    assert more[key("gateway_node_operations_total", node="m-dead", operation="find", outcome="NodeUnreachable")] >= 1
    assert more[key("gateway_node_rows_total", node="m-disk")] > 0
    now = samples(gateway)
    assert (now[key("gateway_node_up", node="m-disk")], now[key("gateway_node_up", node="m-dead")]) == (1, 0)
    assert now[key("gateway_node_in_flight", node="m-disk")] == 0
    assert now[key("gateway_requests_in_flight")] == 1  # the one that asks


@pytest.mark.parametrize("node", ["m-disk", "m-web", "m-dimse"])
def test_what_a_node_gives_and_what_a_caller_gets_is_counted_in_bytes(
    gateway: Gateway, corpus: Corpus, node: str
) -> None:
    study = corpus.nodes["es-madrid"].studies[0]
    series, instance = study.series[0], study.series[0].instances[0]
    path = f"/nodes/{node}/dicom-web/studies/{study.study_uid}"
    gateway.get(f"{path}/series")  # where it is, is known from here on
    more = grown(gateway, f"{path}/series/{series.series_uid}/instances/{instance.sop_instance_uid}")
    size = instance.path.stat().st_size
    # A DIMSE node sends the data set alone, a DICOMweb node a multipart body around the file.
    assert size - 2000 < more[key("gateway_node_bytes_total", node=node, direction="in")] < size + 2000
    assert more[key("gateway_response_bytes_total", route="retrieve")] > size


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "made anew"])
def test_an_answer_to_head_counts_no_byte_of_the_body_that_it_does_not_have(gateway: Gateway, is_kept: bool) -> None:
    path, headers = "/dicom-web/studies?node=m-disk&PatientSex=F", {"Accept-Encoding": "identity"}
    gateway.get(path)
    headers |= {} if is_kept else {"Cache-Control": "no-cache"}
    bytes_sent = key("gateway_response_bytes_total", route="search")
    before = samples(gateway)[bytes_sent]
    answer = gateway.client.head(path, headers=headers)
    assert int(answer.headers["content-length"]) > 0
    assert samples(gateway)[bytes_sent] == before


def test_no_caller_can_make_a_label(gateway: Gateway) -> None:
    """Unknown nodes, paths, methods and ids: whatever is sent, only names that are known here come out."""
    for path in (
        "/nodes/ZIZKA/dicom-web/studies",
        "/ZIZKA",
        "/dicom-web/studies?node=ZIZKA",
        "/fhir/Patient/ZIZKA",
        "/dicom-web/ZIZKA",
    ):
        gateway.get(path)
    for method in ("ZIZKA", "PROPFIND", "DELETE"):
        gateway.client.request(method, "/dicom-web/studies/1.2.3")
    found = [(name, dict(labels)) for name, labels in samples(gateway) if name.startswith("gateway_")]
    assert "ZIZKA" not in str(found)
    assert {labels["route"] for _, labels in found if "route" in labels} <= names_of(routes.table()) | {"none"}
    assert {labels["method"] for _, labels in found if "method" in labels} <= {*metrics._METHODS, "OTHER"}
    assert {labels["stage"] for _, labels in found if "stage" in labels} <= set(telemetry.STAGES)


def names_of(table: list) -> set[str]:
    inner = (names_of(route.routes) for route in table if getattr(route, "routes", None))
    return {route.name for route in table}.union(*inner)


def test_counting_a_request_costs_little() -> None:
    """Measured at 7 microseconds; the bar is far enough off for a machine that does other things."""

    def one() -> None:
        metrics.requests_in_flight.inc()
        metrics.first_byte_of("search").observe(0.002)
        for stage in telemetry.STAGES:
            metrics.stage_of(stage).observe(0.0002)
        metrics.last_byte_of("search").observe(0.002)
        metrics.answered("search", "GET", "200").inc()
        metrics.bytes_of("search").inc(100)
        metrics.requests_in_flight.dec()

    best = min(timeit.repeat(one, number=500, repeat=20)) / 500
    print(f"metrics of one request: {best * 1e6:.1f} microseconds")
    assert best < 50e-6
