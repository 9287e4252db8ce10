"""The lock on the door as a caller meets it: what needs a token, how it may travel, and what a refusal says."""

from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gateway.edge.middleware import Authentication, is_open
from gateway.edge.proxies import Proxies
from gateway.errors import IdentityUnavailable, Unauthenticated
from gateway.security.caller import Caller
from gateway.security.identity import OpenIdentity


class Door:
    """An identity that knows one token, and remembers what it was shown."""

    def __init__(self):
        self.shown = []
        self.fault = None

    async def caller(self, authorization):
        self.shown.append(authorization)
        if self.fault:
            raise self.fault
        if authorization != "Bearer good":
            raise Unauthenticated("the token is no good")
        return Caller("dr-a")


async def show(request: Request) -> JSONResponse:
    caller = request.scope["caller"]
    return JSONResponse({"subject": caller.subject, "open": caller.is_open, "base": str(request.base_url)})


@asynccontextmanager
async def client_of(identity, *, base_url="https://gateway.example.eu", peer="192.0.2.7", proxies=(), **options):
    options = {"require_tls": True} | options
    middleware = Middleware(Authentication, identity, Proxies(proxies), **options)
    app = Starlette(routes=[Route("/{path:path}", show, methods=["GET", "OPTIONS"])], middleware=[middleware])
    transport = httpx.ASGITransport(app, client=(peer, 50_000))
    async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
        yield client


GOOD = {"Authorization": "Bearer good"}


async def test_a_good_token_over_tls_names_the_caller():
    async with client_of(Door()) as client:
        assert (await client.get("/dicom-web/studies", headers=GOOD)).json()["subject"] == "dr-a"


async def test_a_refusal_says_where_to_get_a_token():
    async with client_of(Door()) as client:
        answer = await client.get("/dicom-web/studies")
    assert answer.status_code == 401
    challenge = answer.headers["WWW-Authenticate"]
    metadata = "https://gateway.example.eu/.well-known/oauth-protected-resource"
    assert challenge == f'Bearer realm="imaging-gateway", resource_metadata="{metadata}"'
    assert answer.json()["code"] == "GW103"
    assert answer.headers["Cache-Control"] == "no-store"


async def test_a_bad_token_is_told_apart_from_none():
    async with client_of(Door(), public_root="https://public.example.eu/") as client:
        answer = await client.get("/nodes", headers={"Authorization": "Bearer bad"})
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    assert '"https://public.example.eu/.well-known/' in answer.headers["WWW-Authenticate"]
    assert "bad" not in answer.text


async def test_below_fhir_a_refusal_is_an_operation_outcome():
    async with client_of(Door()) as client:
        answer = await client.get("/fhir/r4/ImagingStudy")
    assert answer.status_code == 401
    assert answer.json()["resourceType"] == "OperationOutcome"
    assert answer.json()["issue"][0]["code"] == "login"


async def test_a_token_over_plain_http_is_refused_before_anyone_looks_at_it():
    door = Door()
    async with client_of(door, base_url="http://gateway.example.eu") as client:
        answer = await client.get("/dicom-web/studies", headers=GOOD)
    assert answer.status_code == 401
    assert "plain HTTP" in answer.json()["detail"]
    assert door.shown == []


async def test_on_loopback_a_token_may_come_over_plain_http():
    async with client_of(Door(), base_url="http://127.0.0.1", require_tls=False) as client:
        assert (await client.get("/nodes", headers=GOOD)).status_code == 200


@pytest.mark.parametrize("header", [("Forwarded", "proto=https;host=a.eu"), ("X-Forwarded-Proto", "https")])
async def test_a_trusted_proxy_vouches_for_tls(header):
    name, value = header
    async with client_of(Door(), base_url="http://10.0.0.1", peer="10.0.0.5", proxies=["10.0.0.5"]) as client:
        answer = await client.get("/nodes", headers=GOOD | {name: value})
    assert answer.status_code == 200
    assert answer.json()["base"].startswith("https://")


@pytest.mark.parametrize("header", [("Forwarded", "proto=https;host=a.eu"), ("X-Forwarded-Proto", "https")])
async def test_an_unnamed_peer_does_not(header):
    name, value = header
    async with client_of(Door(), base_url="http://10.0.0.1", peer="10.0.0.6", proxies=["10.0.0.5"]) as client:
        answer = await client.get("/nodes", headers=GOOD | {name: value})
    assert answer.status_code == 401


async def test_a_trusted_proxy_that_was_asked_in_plain_text_is_believed_too():
    async with client_of(Door(), base_url="http://10.0.0.1", peer="10.0.0.5", proxies=["10.0.0.5"]) as client:
        assert (await client.get("/nodes", headers=GOOD | {"X-Forwarded-Proto": "http"})).status_code == 401
        assert (await client.get("/nodes", headers=GOOD)).status_code == 401


async def test_two_authorization_headers_are_refused():
    door = Door()
    async with client_of(door) as client:
        headers = [("Authorization", "Bearer good"), ("Authorization", "Bearer other")]
        assert (await client.get("/nodes", headers=headers)).status_code == 401
    assert door.shown == []


async def test_keys_that_cannot_be_had_are_no_fault_of_the_token():
    door = Door()
    door.fault = IdentityUnavailable("the issuer's keys cannot be had")
    async with client_of(door) as client:
        answer = await client.get("/nodes", headers=GOOD)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert "WWW-Authenticate" not in answer.headers


OPEN = ["/live", "/ready", "/.well-known/smart-configuration", "/.well-known/oauth-protected-resource"]
OPEN += ["/fhir/metadata", "/fhir/r4/metadata", "/fhir/r5/metadata", "/fhir/r4/.well-known/smart-configuration"]
LOCKED = ["/", "/nodes", "/metrics", "/dicom-web/studies", "/dicom-web/studies/1.2/metadata", "/fhir/r4/ImagingStudy"]
LOCKED += ["/fhir/Patient/metadata", "/fhir/r6/metadata", "/fhir/metadata/x", "/fhirx/metadata", "/live/x", "//live"]
LOCKED += ["/nodes/.well-known/x", "/x/../live", "/fhir/r4/metadata\n"]


@pytest.mark.parametrize("path", OPEN)
async def test_what_says_nothing_of_patients_needs_no_token_and_gives_no_rights(path):
    async with client_of(Door()) as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.json() == {"subject": "anonymous", "open": False, "base": "https://gateway.example.eu/"}


@pytest.mark.parametrize("path", LOCKED)
def test_everything_else_needs_one(path):
    assert not is_open("GET", path)


async def test_capabilities_and_preflights_need_no_token():
    async with client_of(Door()) as client:
        assert (await client.options("/dicom-web/studies")).status_code == 200


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1:8081", "[::1]:8081"])
async def test_an_open_gateway_answers_as_this_machine(name):
    async with client_of(OpenIdentity(), base_url=f"http://{name}", peer="127.0.0.1", require_tls=False) as client:
        assert (await client.get("/nodes")).json()["open"] is True


@pytest.mark.parametrize("name", ["evil.example", "localhost.evil.example", "192.168.1.7:8081", "[::1"])
async def test_an_open_gateway_is_not_found_under_a_name_that_a_web_page_made_up(name):
    """DNS rebinding: a page's own name, made to lead to 127.0.0.1, would let the page read what is shown here."""
    async with client_of(OpenIdentity(), base_url="http://localhost", peer="127.0.0.1", require_tls=False) as client:
        answer = await client.get("/nodes", headers={"Host": name})
    assert answer.status_code == 403
    assert "GATEWAY_OIDC_ISSUER" in answer.text


@pytest.mark.parametrize("name", ["X-Forwarded-For", "X-Real-IP"])
async def test_an_open_gateway_answers_nobody_else_through_a_proxy_of_this_machine(name):
    """A proxy that nobody named asks as localhost, for whoever reaches it."""
    async with client_of(OpenIdentity(), base_url="http://localhost", peer="127.0.0.1", require_tls=False) as client:
        for asks in ("10.0.0.7", "127.0.0.1, 10.0.0.7", "10.0.0.7, 127.0.0.1", "unknown"):
            answer = await client.get("/nodes", headers={name: asks})
            assert answer.status_code == 403, asks
            assert "GATEWAY_OIDC_ISSUER" in answer.text
        for asks in ("127.0.0.1", "::1", "127.0.0.1, ::1"):
            assert (await client.get("/nodes", headers={name: asks})).json()["open"] is True
