"""W3C Trace Context: which traceparent of a caller is honoured, and what the nodes are sent (Level 1, 3.2 and 4.3)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import pytest

from gateway import tracing
from gateway.simulators._peer import Peer
from gateway.simulators.dicomweb import DicomwebSimulator
from gateway.simulators.fhir import FhirOptions, FhirSimulator
from tests.running import Gateway

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{SPAN}-01"
REFUSED = {
    "nothing": "",
    "no trace": f"00-{'0' * 32}-{SPAN}-01",
    "no span": f"00-{TRACE}-{'0' * 16}-01",
    "the version that is none": f"ff-{TRACE}-{SPAN}-01",
    "more than version 00 has": f"{VALID}-what-the-future-holds",
    "a dash more": f"{VALID}-",
    "upper case": VALID.upper(),
    "a short trace": f"00-{TRACE[1:]}-{SPAN}-01",
    "a long span": f"00-{TRACE}-{SPAN}0-01",
    "no flags": f"00-{TRACE}-{SPAN}",
    "flags that are no number": f"00-{TRACE}-{SPAN}-xx",
    "a later version without its dash": f"cc-{TRACE}-{SPAN}-01.what",
    "a blank before": f" {VALID}",
    "a line after": f"{VALID}\n",
    "digits of another script": f"00-{'٣' * 32}-{SPAN}-01",
}


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
def test_what_is_no_traceparent_begins_a_trace_of_its_own(sent: str) -> None:
    assert tracing.accepted([sent]) is None


@pytest.mark.parametrize(
    ("sent", "flags"),
    [(VALID, 1), (f"00-{TRACE}-{SPAN}-00", 0), (f"00-{TRACE}-{SPAN}-ff", 1), (f"00-{TRACE}-{SPAN}-02", 0)],
)
def test_only_the_flag_that_level_1_knows_is_read(sent: str, flags: int) -> None:
    assert tracing.accepted([sent]) == tracing.Position(TRACE, SPAN, flags)


@pytest.mark.parametrize("sent", [f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-the-future-holds"])
def test_a_later_version_is_read_as_far_as_it_is_known(sent: str) -> None:
    assert tracing.accepted([sent]) == tracing.Position(TRACE, SPAN, 1)


def test_two_of_them_are_none() -> None:
    assert tracing.accepted([VALID, VALID]) is None


def test_outside_a_request_nodes_are_sent_none() -> None:
    assert tracing.outgoing() == {}


FLAGS = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-(0[01])")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, list[Peer]]]:
    """A gateway over one node of each protocol that travels by HTTP; nothing is cached."""
    directory = tmp_path_factory.mktemp("none")
    with DicomwebSimulator(directory) as web, FhirSimulator(directory, "R4", FhirOptions()) as fhir:
        nodes = [
            {"id": "web", "name": "web", "adapter": "dicomweb", "connection": {"url": web.url}},
            {"id": "fhir", "name": "fhir", "adapter": "fhir", "connection": {"url": fhir.url, "version": "R4"}},
        ]
        with Gateway(nodes, cache=False) as gateway:
            gateway.get("/dicom-web/studies")  # what the adapters ask once is asked
            yield gateway, [web, fhir]


def sent_to_nodes(asked: tuple[Gateway, list[Peer]], **headers: str) -> tuple[str, list[Mapping[str, str]]]:
    """The request id of one federated search, and the headers that each node got with its part of it."""
    gateway, peers = asked
    for peer in peers:
        peer.seen.clear()
    answer = gateway.get("/dicom-web/studies?StudyDate=20250101", headers=headers)
    assert answer.status_code == 200
    assert all(peer.seen for peer in peers)
    return answer.headers["x-request-id"], [one.headers for peer in peers for one in peer.seen]


def test_nodes_are_asked_within_the_callers_trace_each_time_with_another_span(
    asked: tuple[Gateway, list[Peer]],
) -> None:
    identifier, received = sent_to_nodes(asked, traceparent=VALID)
    assert identifier == TRACE
    found = [FLAGS.fullmatch(headers["traceparent"]) for headers in received]
    assert {match and match[1] for match in found} == {TRACE}
    assert {match and match[3] for match in found} == {"01"}
    spans = [match[2] for match in found if match]
    assert len(set(spans)) == len(spans)
    assert SPAN not in spans
    assert "0" * 16 not in spans


def test_without_a_caller_s_trace_the_request_id_is_the_trace(asked: tuple[Gateway, list[Peer]]) -> None:
    for headers in ({}, {"traceparent": f"ff-{TRACE}-{SPAN}-01"}):
        identifier, received = sent_to_nodes(asked, **headers)
        assert re.fullmatch(r"[0-9a-f]{32}", identifier)
        assert identifier not in (TRACE, "0" * 32)
        assert {headers["traceparent"][3:35] for headers in received} == {identifier}


def test_neither_tracestate_nor_baggage_reaches_a_hospital(asked: tuple[Gateway, list[Peer]]) -> None:
    more = {"tracestate": "vendor=DOE^JANE", "baggage": "patient=DOE^JANE", "x-request-id": "DOE^JANE"}
    identifier, received = sent_to_nodes(asked, traceparent=VALID, **more)
    assert identifier == TRACE
    for headers in received:
        assert not {"tracestate", "baggage", "x-request-id"} & set(headers)
        assert "DOE" not in str(headers)


def test_every_answer_carries_the_request_id_refusals_too(asked: tuple[Gateway, list[Peer]]) -> None:
    gateway, _ = asked
    for path in ("/live", "/nix", "/dicom-web/nix", "/dicom-web/studies?limit=x", "/fhir/Patient/1", "/nodes"):
        answer = gateway.get(path, headers={"traceparent": VALID})
        assert answer.headers["x-request-id"] == TRACE
        assert "server-timing" in answer.headers
