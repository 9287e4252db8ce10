"""What a page of another origin, such as a viewer, is told by the gateway."""

import logging

import pytest

from tests.running import Gateway

VIEWER = "https://viewer.example"


@pytest.fixture
def gateway():
    with Gateway([], cors_origins=(VIEWER,)) as running:
        yield running


def ask(gateway, path, origin=VIEWER):
    return gateway.get(path, headers={"Origin": origin})


def test_a_listed_origin_may_read_answers_and_refusals(gateway):
    for path, status in (("/live", 200), ("/dicom-web/studies?limit=x", 400), ("/nothing/here", 404)):
        answer = ask(gateway, path)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, VIEWER)


def test_another_origin_may_not(gateway):
    assert "access-control-allow-origin" not in ask(gateway, "/live", "https://elsewhere.example").headers


def test_a_fault_of_ours_is_told_to_a_listed_origin_with_its_request_id(gateway, caplog):
    gateway.app.state.estate = None
    caplog.set_level(logging.CRITICAL, "uvicorn.error")
    answer = ask(gateway, "/dicom-web/studies")
    assert (answer.status_code, answer.json()["code"]) == (500, "GW000")
    assert answer.headers["access-control-allow-origin"] == VIEWER
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


def test_a_viewer_may_send_a_token_what_it_accepts_and_that_it_wants_no_kept_answer(gateway):
    asked = {
        "Origin": VIEWER,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "accept,authorization,cache-control",
    }
    answer = gateway.client.options("/dicom-web/studies", headers=asked)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, VIEWER)
