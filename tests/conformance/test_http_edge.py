"""HTTP as browsers, proxies and viewers use it: compression, HEAD, ranges, isolation, addresses behind a proxy."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from small_hospital import MULLER, Small
from starlette.requests import Request
from starlette.routing import BaseRoute, Mount, Route

from gateway.edge import routes
from gateway.edge.context import base_of
from gateway.edge.dicomweb import ranges
from gateway.edge.encoding import coding_for
from gateway.edge.proxies import Proxies
from tests.running import Gateway
from tests.specimens import uid

SERIES, INSTANCE = uid(MULLER, "1"), uid(MULLER, "1", 1)
OF_INSTANCE = f"studies/{uid(MULLER)}/series/{SERIES}/instances/{INSTANCE}"
PIXELS = f"{OF_INSTANCE}/bulkdata/7FE00010"
XML = 'multipart/related; type="application/dicom+xml"'
TEXTS = [
    ("/nodes/files/dicom-web/studies", "application/dicom+json"),
    ("/nodes/files/dicom-web/studies", XML),
    (f"/nodes/files/dicom-web/studies/{uid(MULLER)}/metadata", "application/dicom+json"),
    (f"/nodes/files/dicom-web/studies/{uid(MULLER)}/metadata", XML),
    ("/fhir/ImagingStudy?node=files", "application/fhir+json"),
    ("/", "text/html"),
]


def raw(hospital: Small, path: str, method: str = "GET", **headers: str) -> tuple[httpx.Response, bytes]:
    """The answer with its bytes as they came, not unpacked."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with hospital.gateway.client.stream(method, path, headers=named) as answer:
        return answer, b"".join(answer.iter_raw())


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize(("path", "accept"), TEXTS)
def test_texts_go_out_compressed(hospital: Small, path: str, accept: str, coding: str) -> None:
    unpack = (
        gzip.decompress
        if coding == "gzip"
        else lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)
    )
    plain, body = raw(hospital, path, Accept=accept, Accept_Encoding="identity")
    for _ in range(2):  # made, and kept
        packed, small_body = raw(hospital, path, Accept=accept, Accept_Encoding=coding)
        assert packed.headers["content-encoding"] == coding
        assert unpack(small_body) == body
        assert len(small_body) < len(body)
    assert "content-encoding" not in plain.headers
    for answer in (plain, packed):
        assert "Accept-Encoding" in answer.headers["vary"]
    if "etag" in plain.headers:
        assert packed.headers["etag"] == f"W/{plain.headers['etag']}"
        for etag in (plain.headers["etag"], packed.headers["etag"]):
            again, nothing = raw(hospital, path, Accept=accept, Accept_Encoding=coding, If_None_Match=etag)
            assert (again.status_code, nothing) == (304, b"")
            assert again.headers["etag"] == etag
    head, nothing = raw(hospital, path, "HEAD", Accept=accept, Accept_Encoding=coding)
    assert (head.headers["content-encoding"], nothing) == (coding, b"")


def test_pixels_and_small_texts_go_out_as_they_are(hospital: Small) -> None:
    for path in (OF_INSTANCE, f"{OF_INSTANCE}/frames/1", PIXELS, "studies?PatientID=nobody"):
        answer, _ = raw(hospital, f"/nodes/files/dicom-web/{path}", Accept="*/*", Accept_Encoding="gzip, zstd")
        assert answer.status_code == 200
        assert "content-encoding" not in answer.headers


def test_compression_can_be_turned_off() -> None:
    with Gateway([], compress=False) as gateway:
        assert "content-encoding" not in gateway.get("/", headers={"Accept-Encoding": "gzip"}).headers


CODINGS = [
    ("", ""), ("gzip", "gzip"), ("zstd", "zstd"), ("gzip, deflate, br, zstd", "zstd"), ("gzip;q=1.0, zstd;q=0.5", "gzip"),
    ("br", ""), ("*", "zstd"), ("*;q=0", ""), ("zstd;q=0, *", "gzip"), ("identity", ""), ("GZIP", "gzip"),
    ("gzip;q=0", ""), ("gzip;q=x", ""), ("gzip; q=0.001", "gzip"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "coding"), CODINGS)
def test_the_coding_is_the_one_liked_best(asked: str, coding: str) -> None:
    assert coding_for(asked.encode()) == coding


@given(st.binary(max_size=60))
def test_any_accept_encoding_is_understood_somehow(asked: bytes) -> None:
    assert coding_for(asked) in ("", "gzip", "zstd")


def every_get(given: list[BaseRoute]) -> Iterator[Route]:
    for route in given:
        if isinstance(route, Mount):
            yield from every_get(list(route.routes))
        elif isinstance(route, Route) and "GET" in (route.methods or ()):
            yield route


def test_head_is_answered_wherever_get_is(hospital: Small) -> None:
    assert all("HEAD" in (route.methods or ()) for route in every_get(routes.table()))
    for path in ("studies", OF_INSTANCE, f"{OF_INSTANCE}/metadata", f"{OF_INSTANCE}/frames/1", PIXELS):
        got = hospital.get(path)
        head = hospital.gateway.client.head(f"/nodes/files/dicom-web/{path}")
        assert (head.status_code, head.content) == (200, b"")
        alike = (got.headers["content-type"], head.headers["content-type"])
        assert len({each.partition("boundary")[0] for each in alike}) == 1


@pytest.mark.parametrize("node", ["files", "web", "pacs"])
def test_a_range_of_a_value_is_sent_and_nothing_else(hospital: Small, node: str) -> None:
    octets = {"Accept": "application/octet-stream; transfer-syntax=*"}
    whole = hospital.get(PIXELS, node, **octets)
    assert (whole.status_code, len(whole.content), whole.headers["accept-ranges"]) == (200, 16, "bytes")
    for asked, first, last in (("0-3", 0, 3), ("4-", 4, 15), ("-5", 11, 15), ("10-99", 10, 15), ("-99", 0, 15)):
        part = hospital.get(PIXELS, node, Range=f"bytes={asked}", **octets)
        if part.status_code == 200 and node == "web":
            continue  # a node that does not say how long a value is: the whole is a right answer
        assert part.status_code == 206
        assert part.headers["content-range"] == f"bytes {first}-{last}/16"
        assert part.content == whole.content[first : last + 1]
    anything = hospital.get(PIXELS, Range="bytes=2-3", Accept="*/*")
    assert (anything.status_code, anything.content) == (206, whole.content[2:4])
    beyond = hospital.get(PIXELS, Range="bytes=16-", **octets)
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */16")
    for headers in ({"Range": "bytes=0-1,4-5"}, {"Range": "rows=1-2"}, {"Range": "bytes=0-1", "If-Range": '"old"'}):
        assert hospital.get(PIXELS, **octets, **headers).status_code == 200


@given(st.text("bytes=0123456789-, ", max_size=24), st.none() | st.integers(0, 100))
def test_any_range_is_within_the_value_or_refused(text: str, size: int | None) -> None:
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"range", text.encode())]}
    found = ranges.asked(Request(scope), size)
    if found is not None and found.is_satisfiable:
        assert 0 <= found.first <= found.last < found.size == size


def test_a_page_may_be_isolated_from_other_origins() -> None:
    asked: dict[str, Any] = {
        "cross_origin_resource_policy": "cross-origin",
        "cross_origin_embedder_policy": "require-corp",
        "cross_origin_opener_policy": "same-origin",
    }
    with Gateway([], **asked) as gateway:
        for path in ("/", "/dicom-web/studies", "/no/such/path"):
            headers = gateway.get(path).headers
            assert {name: headers[name.replace("_", "-")] for name in asked} == asked
    with Gateway([]) as gateway:
        assert not [name for name in gateway.get("/").headers if name.startswith("cross-origin")]


def test_a_viewer_of_another_origin_may_ask_for_ranges() -> None:
    with Gateway([], cors_origins=("https://viewer.example",)) as gateway:
        asked = {
            "Origin": "https://viewer.example",
            "Access-Control-Request-Method": "GET",
            "Access-Control-Request-Headers": "range,if-range",
        }
        assert gateway.client.options("/dicom-web/studies", headers=asked).status_code == 200


PROXIED = [
    ({"Forwarded": "proto=https;host=imaging.example.eu"}, "https://imaging.example.eu"),
    ({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "a.eu"}, "https://a.eu"),
    ({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "a.eu", "X-Forwarded-Port": "8443"}, "https://a.eu:8443"),
    ({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "a.eu", "X-Forwarded-Port": "443"}, "https://a.eu"),
    ({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "a.eu:1", "X-Forwarded-Port": "8443"}, "https://a.eu:1"),
    (
        {"X-Forwarded-Host": "a.eu", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/imaging/"},
        "https://a.eu/imaging",
    ),
    ({"X-Forwarded-Host": "a.eu", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "//evil.eu"}, "https://a.eu"),
]


def seen_from(headers: dict[str, str], public_root: str = "") -> str:
    """The root that a request through a trusted proxy is answered with."""
    sent = [(b"host", b"gateway:8000"), *((name.lower().encode(), value.encode()) for name, value in headers.items())]
    scope = {"type": "http", "method": "GET", "scheme": "http", "path": "/", "query_string": b"", "headers": sent}
    scope |= {"client": ("127.0.0.1", 5), "server": ("10.0.0.1", 8000)}
    scope = dict(Proxies(["127.0.0.1"]).applied(scope))
    state = SimpleNamespace(settings=SimpleNamespace(public_root=public_root))
    return base_of(Request({**scope, "app": SimpleNamespace(state=state)}))


@pytest.mark.parametrize(("headers", "root"), PROXIED)
def test_addresses_are_those_that_the_caller_of_a_trusted_proxy_sees(headers: dict[str, str], root: str) -> None:
    assert seen_from(headers) == root


def test_a_configured_root_is_believed_whatever_is_said() -> None:
    assert (
        seen_from({"X-Forwarded-Host": "evil.eu", "X-Forwarded-Prefix": "/x"}, "https://x.eu/gw/") == "https://x.eu/gw"
    )


def test_the_word_of_a_caller_who_is_no_proxy_changes_no_address(hospital: Small) -> None:
    said = {"X-Forwarded-Host": "evil.eu", "Forwarded": "host=evil.eu", "X-Forwarded-Prefix": "/evil"}
    for row in hospital.get("studies", **said).json():
        assert row["00081190"]["Value"][0].startswith(f"{hospital.gateway.url}/nodes/files/dicom-web/")
