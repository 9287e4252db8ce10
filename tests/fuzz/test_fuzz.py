"""Five thousand generated requests of a fixed seed, and each fault that generated requests have found, by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.faults.leftovers import Watched
from tests.fuzz.grammar import Made
from tests.fuzz.run import Call, fuzz, gateway_over, held_of, told
from tests.shelf import Shelf

SEED, COUNT = 4, 5000
GROWTH = 120e6
"""Bytes that may be resident after the last request beyond those after the first tenth: caches fill up until then."""


@pytest.mark.timeout(600)
def test_no_generated_request_is_a_fault_a_hang_or_a_leak(shelf: Shelf) -> None:
    outcome = fuzz(shelf, SEED, range(COUNT))
    print(told(outcome))
    assert outcome.is_well, told(outcome)
    assert sum(outcome.statuses.values()) == COUNT
    assert outcome.statuses["200"] > COUNT / 20, "most never came past the door"
    assert outcome.memory[-1] - outcome.memory[1] < GROWTH


@pytest.fixture(scope="module")
def gateway(shelf: Shelf) -> Iterator[Watched]:
    with gateway_over(shelf, held_of(shelf), SEED) as running:
        yield running


FOUND = [
    # Raw bytes of a query string are handed on by servers other than httptools.
    (b"/dicom-web/studies", b"PatientName=\xed\xa0\x80", 400),
    (b"/fhir/ImagingStudy", b"_count=\xff", 400),
    (b"/no", b"\xff", 404),
    # What is no sequence has no attributes within it: a C-FIND identifier cannot be made of that.
    (b"/nodes/pacs/dicom-web/studies", b"QueryRetrieveLevel.InstitutionName=9", 400),
    (b"/nodes/pacs/dicom-web/studies", b"PatientID=1&includefield=PatientID.StudyDescription", 400),
    # A node that tries every way to share a name out among all of these stars never comes back.
    (b"/nodes/web/dicom-web/studies", b"PatientName=" + b"*" * 300 + b"x", 200),
    (b"/nodes/pacs/dicom-web/studies", b"PatientName=" + b"*a" * 100 + b"x", 200),
    (b"/nodes/web/dicom-web/studies", b"PatientName=" + b"*a" * 100 + b"x", 200),
    # An alternative of nothing.
    (b"/fhir/ImagingStudy", b"started=,", 400),
    (b"/fhir/ImagingStudy", b"modality=,,", 400),
]


@pytest.mark.parametrize(("path", "query", "status"), FOUND)
def test_what_was_found_once_is_not_found_again(gateway: Watched, path: bytes, query: bytes, status: int) -> None:
    call = Call(Made(0, "GET", path, query, [(b"accept", b"*/*")]), gateway.port)
    asyncio.run_coroutine_threadsafe(gateway.app(call.scope, call.receive, call.send), gateway.loop).result(30)
    assert call.status == status, b"".join(call.body)
