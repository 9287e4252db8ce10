"""One archive that does not look at a key by which a crowded day is cut: how much it is asked, and how long the answer's head is."""

import http.server
import re
import socket

import pytest

from tests.handmade import dicomweb_node, given, server
from tests.running import Gateway

MOST, COUNT, FEWER = 60, 210, 100


class Careless:
    """210 studies of one day without times; at most 60 an answer, which it says; does not look at `ignored`."""

    def __init__(self, ignored, patients):
        self.ignored, self.asked = ignored, []
        self.studies = [
            {
                "0020000D": {"vr": "UI", "Value": [f"1.2.3.{n}"]},
                "00100020": {"vr": "LO", "Value": [patients[n % len(patients)]]},
                "00080020": {"vr": "DA", "Value": ["20240301"]},
                "00080030": {"vr": "TM"},
                "00080061": {"vr": "CS", "Value": [("CT", "MR")[n % 2]]},
                "00201206": {"vr": "IS", "Value": [1]},
                "00201208": {"vr": "IS", "Value": [1]},
            }
            for n in range(COUNT)
        ]

    def __call__(self, method, path, query, body, port):
        flat = {name: values[0] for name, values in query.items() if name != self.ignored}
        self.asked.append(flat)
        low, dash, high = flat.get("StudyDate", "-").partition("-")
        found = [
            one
            for one in self.studies
            if low <= "20240301" <= (high or ("99999999" if dash else low))
            and "StudyTime" not in flat
            and flat.get("ModalitiesInStudy", one["00080061"]["Value"][0]) == one["00080061"]["Value"][0]
            and one["00100020"]["Value"][0].startswith(flat.get("PatientID", "").rstrip("*"))
        ]
        more = {"Warning": f'299 n "There are {len(found) - MOST} additional results that can be requested"'}
        return given(found[:MOST], {"Content-Type": "application/dicom+json", **(more if len(found) > MOST else {})})


FEW = ["8503121234", "8503121299", "7701015678"]
MANY = [f"{n * 7919 % 1000:03}{n:04}" for n in range(COUNT)]


@pytest.fixture(params=[("PatientID", FEW), ("ModalitiesInStudy", MANY)], ids=["PatientID", "ModalitiesInStudy"])
def asked(request, monkeypatch):
    """The node after one search, the head of its answer, and the seconds that it took. The deadline is a node's default."""
    monkeypatch.setattr(
        "gateway.federation.walk.MOST_DEEP_QUESTIONS", FEWER
    )  # so that the deadline does not come first
    monkeypatch.setattr(http.server.ThreadingHTTPServer, "request_queue_size", 128)
    node = Careless(*request.param)
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
