"""Every fault on every adapter during every operation: what is told, what is not, how soon, and what is left afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest

from tests.faults.cells import ADAPTERS, FAULTS, OPERATIONS, Row, cells, why_not
from tests.faults.certificates import Authority
from tests.faults.leftovers import Watched, eventually, own_threads
from tests.faults.ward import BOTH, DAY, DECOY, IMPATIENT, INSTANCES, PATIENT, PATIENTS, SICK, WELL, Ward, ward

SLACK = 4.0
"""Seconds for a machine that is busy with other tests."""
BACK_WITHIN = 15.0
"""Seconds after the end of a fault in which the node is itself again."""
WHOLE_DOCUMENT = 100_000_000
PARTS = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@dataclass
class Patient:
    """One ward with what its gateway held before any fault; `deadline` is its sick node's, in seconds."""

    ward: Ward
    gateway: Watched
    deadline: float
    tasks: int


class Wards:
    """Each adapter's wards, made when a first cell comes, and kept for all of its cells."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders, self._stack = folders, ExitStack()
        self._made: dict[tuple[str, bool, float], Patient] = {}
        self.threads_before = len(own_threads())

    def of(self, adapter: str, row: Row) -> Patient:
        deadline = IMPATIENT if row.is_silence else PATIENT
        key = (adapter, row.over_tls, deadline)
        if key not in self._made:
            folder = self._folders.mktemp(adapter)
            authority = Authority(folder) if row.over_tls else None
            sick, gateway = self._stack.enter_context(ward(adapter, folder, deadline, authority))
            assert eventually(lambda: is_well(gateway), 20), gateway.get("/nodes").text
            self._made[key] = Patient(sick, gateway, deadline, gateway.tasks())
        return self._made[key]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def wards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wards]:
    made = Wards(tmp_path_factory)
    yield made
    made.close()


def test_every_cell_is_tried_or_has_a_reason_why_it_cannot_exist() -> None:
    tried = set(cells(over_tls=False)) | set(cells(over_tls=True))
    for adapter in ADAPTERS:
        for fault, row in FAULTS.items():
            for operation in OPERATIONS:
                assert ((adapter, fault, operation) in tried) != bool(why_not(fault, adapter, operation))
                assert (adapter, fault, operation) not in tried or adapter in row.by


@pytest.mark.parametrize(("adapter", "fault", "operation"), cells(over_tls=False) + cells(over_tls=True))
def test_a_fault_is_named_and_nothing_more(adapter: str, fault: str, operation: str, wards: Wards) -> None:
    row = FAULTS[fault]
    patient = wards.of(adapter, row)
    with row.by[adapter](patient.ward, operation):
        began = time.monotonic()
        ASKED[operation](patient, row)
        assert time.monotonic() - began < 3 * patient.deadline + SLACK
        assert eventually(patient.gateway.is_idle), "a permit, an association or a half-written file is still out"
        for proxy in patient.ward.proxies.values():
            # What a slow peer answered whole may be kept for the next question.
            assert not row.codes or eventually(lambda proxy=proxy: proxy.held == 0), "a connection is still open"
    assert eventually(lambda: is_well(patient.gateway), BACK_WITHIN), "the node is not back"
    assert eventually(patient.gateway.is_idle)
    assert eventually(lambda: patient.gateway.tasks() <= patient.tasks), "a task is still there"


def test_after_the_whole_matrix_no_thread_is_left(wards: Wards) -> None:
    wards.close()
    assert eventually(lambda: len(own_threads()) <= wards.threads_before, 10), own_threads()


# --- what is asked


def search(patient: Patient, row: Row) -> None:
    gateway, before = patient.gateway, psutil.Process().memory_info().rss
    paths = (f"/dicom-web/studies?StudyDate={DAY}", f"/fhir/ImagingStudy?started={as_date(DAY)}&_count=50")
    web, fhir, alone = at_once(*(lambda path=path: gateway.get(path) for path in (*paths, f"/nodes/sick{paths[0]}")))
    assert psutil.Process().memory_info().rss - before < 2 * WHOLE_DOCUMENT
    assert web.status_code == fhir.status_code == 200, (web.text, fhir.text)
    expected = [BOTH, WELL] if row.codes else [BOTH, SICK, WELL]
    assert sorted(one["0020000D"]["Value"][0] for one in web.json()) == expected
    assert sorted(studies_of(fhir.json())) == expected
    assert_own_patients(web.json())
    codes = {issue["details"]["coding"][0]["code"] for issue in issues_of(fhir.json())}
    if row.codes:
        assert "node sick:" in web.headers["warning"]
        assert web.headers["cache-control"] == "no-store"
        assert codes <= row.codes
        assert codes
        assert_refused(alone, row)
    else:
        assert "warning" not in web.headers
        assert codes == set()
        assert sorted(one["0020000D"]["Value"][0] for one in alone.json()) == [BOTH, SICK]


def metadata(patient: Patient, row: Row) -> None:
    def ask(study: str) -> httpx.Response:
        return patient.gateway.get(f"/dicom-web/studies/{study}/metadata")

    both, sick, well = at_once(lambda: ask(BOTH), lambda: ask(SICK), lambda: ask(WELL))
    for study, answer in ((BOTH, both), (WELL, well)):
        assert answer.status_code == 200, answer.text
        assert {one["00080018"]["Value"][0] for one in answer.json()} == INSTANCES[study]
        assert_own_patients(answer.json())
    if row.codes:
        assert_refused(sick, row)
    else:
        assert {one["00080018"]["Value"][0] for one in sick.json()} == INSTANCES[SICK]


def retrieve(patient: Patient, row: Row) -> None:
    def ask(study: str) -> Retrieved:
        return retrieved(patient.gateway, study)

    both, sick, well = at_once(lambda: ask(BOTH), lambda: ask(SICK), lambda: ask(WELL))
    assert well.is_whole(WELL)
    assert both.is_whole(BOTH) or (row.breaks and both.is_broken), both
    if not row.codes:
        assert sick.is_whole(SICK)
    elif not (row.breaks and sick.is_broken):
        assert_refused(sick.answer, row, sick.body)


ASKED: dict[str, Callable[[Patient, Row], None]] = {
    "search": search,
    "metadata": metadata,
    "retrieve": retrieve,
    "locate": retrieve,
}


def at_once(*asked: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(asked)) as callers:
        return [future.result() for future in [callers.submit(one) for one in asked]]


@dataclass
class Retrieved:
    """What came of a retrieve; `is_broken`: the connection ended before the answer did."""

    answer: httpx.Response
    body: bytes
    is_broken: bool

    def is_whole(self, study: str) -> bool:
        boundary = self.answer.headers.get("content-type", "").partition("boundary=")[2].strip('"').encode()
        if self.is_broken or self.answer.status_code != 200 or not self.body.endswith(b"--" + boundary + b"--\r\n"):
            return False
        assert_nobody_else(self.body, study)
        return self.body.count(b"DICM") == 2 and all(uid.encode() in self.body for uid in INSTANCES[study])


def retrieved(gateway: Watched, study: str) -> Retrieved:
    body, is_broken = bytearray(), False
    with gateway.client.stream("GET", f"/dicom-web/studies/{study}", headers={"Accept": PARTS}) as answer:
        try:
            for chunk in answer.iter_raw():
                body += chunk
        except httpx.RemoteProtocolError:
            is_broken = True
    assert_nobody_else(body, study)
    return Retrieved(answer, bytes(body), is_broken)


# --- what must hold


def is_well(gateway: Watched) -> bool:
    """Whether the node gives rows and pixels, and nobody is warned."""
    answer = gateway.get(f"/dicom-web/studies?StudyInstanceUID={BOTH}")
    holders = (
        {name for row in answer.json() for name in row["00080054"]["Value"]} if answer.status_code == 200 else set()
    )
    return "warning" not in answer.headers and holders == {"sick", "well"} and retrieved(gateway, SICK).is_whole(SICK)


def assert_refused(answer: httpx.Response, row: Row, body: bytes | None = None) -> None:
    """An error that names the node and its code; never an empty 200, and no 404 for what a silent node may hold."""
    assert answer.status_code in (502, 503, 504), (answer.status_code, answer.headers)
    told = httpx.Response(answer.status_code, content=answer.content if body is None else body).json()
    assert told["code"] in row.codes | ({"GW201"} if "did not answer" in told["detail"] else set()), told
    assert "node sick:" in told["detail"]
    assert answer.status_code == 502 or "retry-after" in answer.headers
    assert not any(word in str(told) for word in (*PATIENTS.values(), "Name^Of", "Traceback"))


def assert_own_patients(rows: list[dict[str, Any]]) -> None:
    for one in rows:
        assert one["00100020"]["Value"] == [PATIENTS[one["0020000D"]["Value"][0]]]


def assert_nobody_else(body: bytes | bytearray, study: str) -> None:
    for other in {BOTH, SICK, WELL, DECOY} - {study}:
        assert PATIENTS[other].encode() not in body
        assert other.encode() not in body


def studies_of(bundle: dict[str, Any]) -> list[str]:
    return [entry["resource"]["id"] for entry in bundle["entry"] if entry["search"]["mode"] == "match"]


def issues_of(bundle: dict[str, Any]) -> list[dict[str, Any]]:
    outcomes = [one["resource"] for one in bundle["entry"] if one["resource"]["resourceType"] == "OperationOutcome"]
    return [issue for outcome in outcomes for issue in outcome["issue"]]


def as_date(day: str) -> str:
    return f"{day[:4]}-{day[4:6]}-{day[6:]}"
