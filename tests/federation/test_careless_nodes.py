"""One archive that does not look at a key by which a crowded day is cut: how much it is asked, and how long the answer's head is."""

import http.server
import re
import socket

import pytest

from tests.federation.test_cuts import Honest
from tests.federation.test_handmade_pages import study
from tests.handmade import dicomweb_node, server
from tests.running import Gateway

COUNT, FEWER = 210, 100


FEW = ["8503121234", "8503121299", "7701015678"]
MANY = [f"{n * 7919 % 1000:03}{n:04}" for n in range(COUNT)]


def of_patient(number, patient):
    modality = {"00080061": {"vr": "CS", "Value": [("CT", "MR")[number % 2]]}}
    return study(number, patient=patient, **modality)


@pytest.fixture(params=[("PatientID", FEW), ("ModalitiesInStudy", MANY)], ids=["PatientID", "ModalitiesInStudy"])
def asked(request, monkeypatch):
    """The node after one search, of one day without times, and the head of its answer. The deadline is a node's default."""
    # So that the deadline does not come first.
    monkeypatch.setattr("gateway.federation.walk.MOST_DEEP_QUESTIONS", FEWER)
    monkeypatch.setattr(http.server.ThreadingHTTPServer, "request_queue_size", 128)
    ignored, patients = request.param
    node = Honest([of_patient(n, patients[n % len(patients)]) for n in range(COUNT)], ignored)
    with (
        server(node) as port,
        Gateway([dicomweb_node("n", port, search_deadline=10)], cache=False, search_deadline=10) as gateway,
    ):
        host, _, at = gateway.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(at)), timeout=100) as raw:
            line = f"GET /dicom-web/studies?StudyDate=20240229-20240302 HTTP/1.1\r\nHost: {host}:{at}\r\nConnection: close\r\n\r\n"
            raw.sendall(line.encode())
            told = b""
            while more := raw.recv(65536):
                told += more
    head = told.partition(b"\r\n\r\n")[0].decode()
    return node, head


def test_a_walk_asks_a_node_no_more_deep_questions_than_it_may(asked):
    node, _ = asked
    parts = [one for one in node.asked if "offset" not in one]  # what is said to go on is asked on for
    assert len(parts) <= FEWER + 32 + 20


def test_the_head_of_an_answer_stays_one_that_clients_and_proxies_read(asked):
    _, head = asked
    assert head.startswith("HTTP/1.1 200")
    assert len(re.findall(r"(?i)\r\nwarning:", head)) <= 20
    assert len(head) < 8_000
