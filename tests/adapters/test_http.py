from __future__ import annotations

import asyncio
import base64
import gzip
import json
import shutil
import subprocess
import zlib
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path

import certifi
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from gateway.adapters.http.address import AllowList, place
from gateway.adapters.http.auth import Basic, Bearer, ClientCredentials, assertion
from gateway.adapters.http.client import MAX_CHUNK, HttpClient, Timeouts, TlsOptions
from gateway.errors import (
    NodeBusy,
    NodeProtocolError,
    NodeRefused,
    NodeTimeout,
    NodeUnreachable,
    SettingsError,
)

QUICK = Timeouts(connect=1, first_byte=0.3, idle=0.3, total=0.6)


@asynccontextmanager
async def client(base_url: str, **options):
    http = HttpClient("alpha", base_url=base_url, **({"timeouts": QUICK} | options))
    await http.open()
    try:
        yield http
    finally:
        await http.close()


async def answer_with(exchange, document=None):
    await exchange.reply(200, json.dumps(document or {"ok": True}).encode())


# --- what goes out


async def test_a_document_is_asked_for_compressed_unless_it_stays_on_this_machine(scripted):
    peer = await scripted(answer_with)
    async with client(peer.url) as http, client("https://pacs.hospital.example/dicom-web") as far:
        await http.get_json(http.url("studies"))
        assert far.codings == "gzip, deflate"
    assert peer.requests[0].headers["accept-encoding"] == "identity"


async def test_a_query_string_goes_out_exactly_as_it_was_built(scripted):
    peer = await scripted(answer_with)
    raw = "PatientName=M*^J,%5E%2A%20&x=%C3%BC?"
    async with client(peer.url) as http:
        await http.get_json(http.url("studies", raw))
    assert peer.requests[0].target == "/studies?" + raw


async def test_basic_credentials_are_sent_in_utf_8(scripted):
    peer = await scripted(answer_with)
    async with client(peer.url, auth=Basic("jürgen", "pä:ss")) as http:
        await http.get_json(http.url("x"))
    sent = peer.requests[0].headers["authorization"].split()[1]
    assert "authorization" in peer.requests[0].headers
    assert sent == base64.b64encode("jürgen:pä:ss".encode()).decode().lower()


def test_no_secret_shows_in_the_repr_of_credentials():
    shown = [repr(Basic("u", "hush")), repr(Bearer("hush")), repr(ClientCredentials("http://t", "c", "hush"))]
    assert not any("hush" in text for text in shown)


async def test_a_cookie_is_not_kept(scripted):
    async def script(exchange):
        await exchange.reply(200, b"{}", Set_Cookie="session=1; Path=/")

    peer = await scripted(script)
    async with client(peer.url.replace("127.0.0.1", "localhost")) as http:
        await http.get_json(http.url("x"))
        await http.get_json(http.url("x"))
    assert "cookie" not in peer.requests[1].headers


# --- tokens


class TokenNode:
    """A node with a token endpoint: every token works once the endpoint has given it out, until `revoked`."""

    def __init__(self, life=3600, delay=0.0):
        self.given, self.revoked, self.life, self.delay = [], set(), life, delay
        self.forms = []

    async def __call__(self, exchange):
        if exchange.target == "/token":
            self.forms.append(exchange.body.decode())
            await asyncio.sleep(self.delay)
            self.given.append(f"t{len(self.given)}")
            return await answer_with(exchange, {"access_token": self.given[-1], "expires_in": self.life})
        token = exchange.headers.get("authorization", "").removeprefix("bearer ")
        if token not in self.given or token in self.revoked:
            return await exchange.reply(401)
        return await answer_with(exchange)


def credentials(peer, **more):
    return ClientCredentials(f"{peer.url}/token", "me", "secret", scope="system/*.rs", **more)


async def test_many_requests_share_one_token(scripted):
    node = TokenNode(delay=0.05)
    peer = await scripted(node)
    async with client(peer.url, auth=credentials(peer)) as http:
        await asyncio.gather(*(http.get_json(http.url("x")) for _ in range(10)))
    assert len(node.forms) == 1
    assert "grant_type=client_credentials" in node.forms[0]


async def test_a_caller_who_leaves_does_not_stop_the_token_for_the_others(scripted):
    node = TokenNode(delay=0.1)
    peer = await scripted(node)
    async with client(peer.url, auth=credentials(peer)) as http:
        first = asyncio.create_task(http.get_json(http.url("x")))
        await asyncio.sleep(0.03)
        second = asyncio.create_task(http.get_json(http.url("x")))
        await asyncio.sleep(0.01)
        first.cancel()
        assert (await second).document == {"ok": True}
    assert len(node.forms) == 1


async def test_who_waits_for_a_token_of_a_node_that_is_taken_out_is_told_so_and_not_cancelled(scripted):
    peer = await scripted(TokenNode(delay=5))
    async with client(peer.url, auth=credentials(peer), timeouts=Timeouts()) as http:
        waiting = asyncio.create_task(http.get_json(http.url("x")))
        await asyncio.sleep(0.1)
    with pytest.raises(NodeBusy):
        await waiting


async def test_who_comes_to_a_node_that_was_taken_out_is_told_so(scripted):
    peer = await scripted(answer_with)
    async with client(peer.url) as http:
        pass
    with pytest.raises(NodeBusy):
        await http.get_json(http.url("x"))
    assert not peer.requests


async def test_a_token_is_replaced_shortly_before_it_expires(scripted):
    node = TokenNode(life=20)
    peer = await scripted(node)
    async with client(peer.url, auth=credentials(peer)) as http:
        await http.get_json(http.url("x"))
        await http.get_json(http.url("x"))
    assert len(node.forms) == 2


async def test_a_401_is_answered_once_with_a_new_token(scripted):
    node = TokenNode()
    peer = await scripted(node)
    async with client(peer.url, auth=credentials(peer)) as http:
        await http.get_json(http.url("x"))
        node.revoked.add("t0")
        assert (await http.get_json(http.url("x"))).status == 200
        node.revoked.update({"t1", "t2"})
        with pytest.raises(NodeRefused):
            await http.get_json(http.url("x"))
    assert len(node.forms) == 3


async def test_a_token_endpoint_that_refuses_is_a_refusal_without_its_words(scripted):
    async def script(exchange):
        await exchange.reply(400, b'{"error_description":"patient Doe"}')

    peer = await scripted(script)
    async with client(peer.url, auth=credentials(peer)) as http:
        with pytest.raises(NodeRefused) as refused:
            await http.get_json(http.url("x"))
    assert "Doe" not in str(refused.value)


@pytest.mark.parametrize(("kind", "algorithm"), [("RSA", "RS384"), ("EC", "ES384")])
def test_private_key_jwt_is_signed_with_the_key_of_the_file(tmp_path, kind, algorithm):
    key = RSAKey.generate_key(2048) if kind == "RSA" else ECKey.generate_key("P-384")
    path = tmp_path / "key.pem"
    path.write_bytes(key.as_pem(private=True))
    token = assertion(ClientCredentials("https://as/token", "me", private_key=path, key_id="k1"), now=1000)
    decoded = jwt.decode(token, key, algorithms=[algorithm])
    assert decoded.header["kid"] == "k1"
    assert decoded.claims["iss"] == decoded.claims["sub"] == "me"
    assert decoded.claims["aud"] == "https://as/token"
    assert decoded.claims["exp"] == 1300


@pytest.mark.parametrize("content", [b"secret words", b'{"kty":"oct","k":"c2VjcmV0"}', b"{"])
def test_a_private_key_file_without_a_private_key_is_a_settings_error(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(SettingsError):
        assertion(ClientCredentials("https://as/token", "me", private_key=path), now=1000)


# --- where a node may lead us


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example/x",
        "//evil.example/x",
        "https://home.example/x",
        "http://home.example:81/x",
        "http://home.example@evil.example/",
        "http://user@home.example/",
        "http://home.example\\@evil.example/",
        "http://home.example .evil.example/",
        "http://home.example../",
        "http://evil.example#home.example",
        "file:///etc/passwd",
        "ftp://home.example/",
        "gopher://home.example/",
        "http://[::1/",
        "http://home.example:notaport/",
        "https://pixels.example/wado2/x",
        "https://pixels.example/wado/../admin",
        "https://pixels.example/wado/%2e%2e/admin",
        "https://pixels.example/wado/..;/admin",
        "https://pixels.example/wado/..;x=1/admin",
        "https://pixels.example/wado/..%5cadmin",
        "https://pixels.example/wado/%252e%252e/admin",
        "http://home.example/\r\nX-Evil: 1",
    ],
)
def test_an_address_outside_the_allow_list_is_refused(url):
    allowed = AllowList("alpha", "http://home.example/dicom-web", ["https://pixels.example/wado"])
    with pytest.raises(NodeRefused):
        allowed.check(url, "http://home.example/dicom-web/")


@pytest.mark.parametrize(
    ("url", "absolute"),
    [
        ("studies/1.2", "http://home.example/dicom-web/studies/1.2"),
        ("/bulk/7#part", "http://home.example/bulk/7"),
        ("http://HOME.example:80/x", "http://HOME.example:80/x"),
        ("http://home.example./x", "http://home.example./x"),
        ("https://pixels.example:443/wado/rs?x=1", "https://pixels.example:443/wado/rs?x=1"),
        ("https://pixels.example/wado/a..b/%2525;v=1/...", "https://pixels.example/wado/a..b/%2525;v=1/..."),
    ],
)
def test_an_address_inside_the_allow_list_becomes_absolute(url, absolute):
    allowed = AllowList("alpha", "http://home.example/dicom-web", ["https://pixels.example/wado"])
    assert allowed.check(url, "http://home.example/dicom-web/") == absolute


@given(
    st.text(max_size=40),
    st.sampled_from(["", "http://", "https://", "//", "http://home.example", "http://home.example@"]),
)
def test_whatever_passes_the_allow_list_is_a_request_to_an_allowed_host(tail, start):
    import httpx

    allowed = AllowList("alpha", "http://home.example/dicom-web", [])
    try:
        address = allowed.check(start + tail, "http://home.example/dicom-web/")
    except NodeRefused:
        return
    try:
        sent_to = httpx.URL(address)
    except httpx.InvalidURL:
        return
    assert (sent_to.scheme, sent_to.host.removesuffix("."), sent_to.port) == ("http", "home.example", None)
    assert not sent_to.userinfo


def test_the_refusal_names_the_host_and_nothing_else_of_the_address():
    with pytest.raises(NodeRefused) as refused:
        AllowList("alpha", "http://home/", []).check("http://evil.example/patients/Doe?id=7", "http://home/")
    assert "evil.example" in str(refused.value)
    assert "Doe" not in str(refused.value)


@pytest.mark.parametrize("entry", ["evil.example", "ftp://x", "http://user:pw@x/", ""])
def test_an_allow_entry_that_is_no_address_does_not_start(entry):
    with pytest.raises(SettingsError):
        place(entry)


async def test_a_redirect_inside_the_allow_list_is_followed_without_the_credentials(scripted):
    target = await scripted(answer_with)

    async def script(exchange):
        await exchange.reply(307, Location=f"{target.url}/moved")

    peer = await scripted(script)
    async with client(peer.url, auth=Bearer("hush"), allow=[target.url]) as http:
        assert (await http.get_json(http.url("x"))).url == f"{target.url}/moved"
    assert "authorization" not in target.requests[0].headers


async def test_a_trusted_place_is_sent_the_credentials(scripted):
    target = await scripted(answer_with)

    async def script(exchange):
        await exchange.reply(302, Location=f"{target.url}/moved")

    peer = await scripted(script)
    async with client(peer.url, auth=Bearer("hush"), trusted=[target.url]) as http:
        await http.get_json(http.url("x"))
    assert target.requests[0].headers["authorization"] == "bearer hush"


async def test_a_redirect_outside_the_allow_list_is_refused_before_anything_is_sent(scripted):
    target = await scripted(answer_with)

    async def script(exchange):
        await exchange.reply(302, Location=f"{target.url}/moved")

    peer = await scripted(script)
    async with client(peer.url) as http:
        with pytest.raises(NodeRefused, match=r"127\.0\.0\.1"):
            await http.get_json(http.url("x"))
    assert not target.requests


async def test_redirects_in_a_circle_end(scripted):
    async def script(exchange):
        await exchange.reply(301, Location="/again")

    peer = await scripted(script)
    async with client(peer.url) as http:
        with pytest.raises(NodeProtocolError):
            await http.get_json(http.url("x"))
    assert len(peer.requests) == 4


# --- deadlines


async def silent(exchange):
    await asyncio.sleep(30)


async def test_a_node_that_accepts_and_never_answers_is_a_timeout(scripted):
    peer = await scripted(silent)
    async with client(peer.url) as http:
        start = asyncio.get_running_loop().time()
        with pytest.raises(NodeTimeout, match="begin to answer"):
            await http.get_json(http.url("x"))
        assert asyncio.get_running_loop().time() - start < 5


async def test_a_token_endpoint_that_never_answers_costs_no_more_than_a_search(scripted):
    peer = await scripted(silent)
    patient = Timeouts(connect=1, first_byte=20, idle=20, total=0.3)
    async with client(peer.url, auth=credentials(peer), timeouts=patient) as http:
        with pytest.raises(NodeTimeout, match="no token"):
            async with asyncio.timeout(10), http.stream("GET", http.url("x")):
                pass


async def test_the_first_byte_of_a_body_may_take_as_long_as_the_head(scripted):
    async def script(exchange):
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")
        await asyncio.sleep(0.6)
        await exchange.send(b"abc")

    peer = await scripted(script)
    patient = Timeouts(connect=1, first_byte=20, idle=0.2, total=20)
    async with client(peer.url, timeouts=patient) as http, http.stream("GET", http.url("x")) as answer:
        assert await anext(answer.body) == b"abc"


async def test_a_body_that_stops_is_a_timeout(scripted):
    async def script(exchange):
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        await silent(exchange)

    peer = await scripted(script)
    async with client(peer.url) as http, http.stream("GET", http.url("x")) as answer:
        assert await anext(answer.body) == b"abc"
        with pytest.raises(NodeTimeout, match="silent"):
            await anext(answer.body)


async def test_a_search_answer_that_trickles_meets_the_total_deadline(scripted):
    async def script(exchange):
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        for _ in range(50):
            await asyncio.sleep(0.1)
            await exchange.send(b" ")

    peer = await scripted(script)
    async with client(peer.url) as http:
        with pytest.raises(NodeTimeout, match="complete"):
            await http.get_json(http.url("x"))


async def test_a_slow_upload_that_moves_is_not_a_late_answer(scripted):
    peer = await scripted(answer_with)

    async def source():
        for _ in range(5):
            await asyncio.sleep(0.15)
            yield b"x" * 1000

    async with client(peer.url) as http, http.stream("POST", http.url("x"), content=source()) as answer:
        assert answer.status == 200
    assert len(peer.requests[0].body) == 5000


async def test_nobody_listening_is_unreachable():
    async with client("http://127.0.0.1:9") as http:
        with pytest.raises(NodeUnreachable):
            await http.get_json(http.url("x"))


# --- answers


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, NodeRefused),
        (403, NodeRefused),
        (404, NodeProtocolError),
        (429, NodeBusy),
        (500, NodeProtocolError),
        (502, NodeUnreachable),
        (503, NodeBusy),
        (504, NodeTimeout),
    ],
)
async def test_a_refusing_status_is_an_error_of_ours_without_the_nodes_words(scripted, status, error):
    async def script(exchange):
        await exchange.reply(status, b"patient Doe")

    peer = await scripted(script)
    async with client(peer.url) as http:
        with pytest.raises(error) as raised:
            await http.get_json(http.url("x"))
    assert type(raised.value) is error
    assert "Doe" not in str(raised.value)


async def test_an_expected_status_is_handed_to_the_caller(scripted):
    async def script(exchange):
        await exchange.reply(404, b"<html>")

    peer = await scripted(script)
    async with client(peer.url) as http:
        answer = await http.get_json(http.url("x"), expect={404})
    assert (answer.status, answer.document) == (404, None)


@pytest.mark.parametrize(
    ("header", "seconds"), [("17", 17), (formatdate(0, usegmt=True), 0), ("soon", None), ("", None)]
)
async def test_retry_after_is_read_as_seconds_or_as_a_date(scripted, header, seconds):
    async def script(exchange):
        await exchange.reply(503, Retry_After=header)

    peer = await scripted(script)
    async with client(peer.url) as http:
        with pytest.raises(NodeBusy) as busy:
            await http.get_json(http.url("x"))
    assert busy.value.retry_after == seconds


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    ],
)
async def test_an_answer_that_is_cut_or_is_no_json_is_out_of_protocol(scripted, raw):
    async def script(exchange):
        await exchange.send(raw)
        raise ConnectionError

    peer = await scripted(script)
    async with client(peer.url) as http:
        with pytest.raises(NodeProtocolError):
            await http.get_json(http.url("x"))


async def test_a_connection_closed_without_an_answer_is_unreachable(scripted):
    async def script(exchange):
        raise ConnectionError

    peer = await scripted(script)
    async with client(peer.url) as http:
        with pytest.raises(NodeUnreachable):
            await http.get_json(http.url("x"))


async def test_an_error_does_not_keep_the_document_that_was_no_json(scripted):
    async def script(exchange):
        await exchange.reply(200, b'["' + b"x" * 100_000)

    peer = await scripted(script)
    async with client(peer.url) as http:
        with pytest.raises(NodeProtocolError) as raised:
            await http.get_json(http.url("x"))
    assert raised.value.__context__ is None


async def test_no_more_than_two_ceilings_of_documents_are_read_of_one_node_at_once(scripted):
    half = b'["' + b"x" * 600_000

    async def script(exchange):
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n" + half)
        await asyncio.sleep(10)

    peer = await scripted(script)
    patient = Timeouts(connect=5, first_byte=5, idle=1, total=5)
    async with client(peer.url, json_ceiling=1_000_000, timeouts=patient) as http:
        ends = await asyncio.gather(*(http.get_json(http.url("x")) for _ in range(4)), return_exceptions=True)
        assert any(isinstance(end, NodeBusy) for end in ends)
        assert {type(end) for end in ends} <= {NodeBusy, NodeTimeout}
        assert http._being_read == 0


async def test_json_over_the_ceiling_is_refused_even_when_it_comes_compressed(scripted):
    body = gzip.compress(b" " * 50_000_000 + b"{}")

    async def script(exchange):
        await exchange.reply(200, body, Content_Encoding="gzip")

    peer = await scripted(script)
    async with client(peer.url, json_ceiling=1_000_000) as http:
        with pytest.raises(NodeProtocolError, match="larger"):
            await http.get_json(http.url("x"))


async def test_a_compressed_body_comes_in_chunks_of_at_most_a_mebibyte(scripted):
    body = gzip.compress(b"a" * 5_000_000)

    async def script(exchange):
        await exchange.reply(200, body, Content_Encoding="gzip")

    peer = await scripted(script)
    async with client(peer.url) as http, http.stream("GET", http.url("x")) as answer:
        sizes = [len(chunk) async for chunk in answer.body]
    assert sum(sizes) == 5_000_000
    assert max(sizes) <= MAX_CHUNK


async def test_leaving_a_stream_early_closes_its_connection(scripted):
    async def script(exchange):
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while not exchange.writer.is_closing():
            await exchange.send(b"x" * 65536)
            await asyncio.sleep(0)

    peer = await scripted(script)
    async with client(peer.url, max_connections=1) as http:
        async with http.stream("GET", http.url("x")) as answer:
            await anext(answer.body)
        for _ in range(100):
            if peer.closed_connections:
                break
            await asyncio.sleep(0.01)
        assert peer.closed_connections == 1
        peer.script = answer_with
        assert (await http.get_json(http.url("x"))).document == {"ok": True}


async def test_a_cancelled_request_gives_its_connection_back(scripted):
    peer = await scripted(silent)
    async with client(peer.url, max_connections=2, timeouts=Timeouts(first_byte=30)) as http:
        waiting = [asyncio.create_task(http.get_json(http.url("x"))) for _ in range(20)]
        await asyncio.sleep(0.1)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        peer.script = answer_with
        assert (await http.get_json(http.url("x"))).document == {"ok": True}


async def test_an_upload_whose_source_fails_breaks_off_and_raises_the_sources_error(scripted):
    peer = await scripted(answer_with)

    async def source():
        yield b"x" * 1000
        raise NodeProtocolError("beta", "cut its answer short")

    async with client(peer.url) as http:
        with pytest.raises(NodeProtocolError, match="node beta"):
            async with http.stream("POST", http.url("x"), content=source()):
                pass
    assert not peer.requests or not peer.requests[0].body


# --- TLS


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=test-ca -days 2",
        "req -newkey rsa:2048 -nodes -keyout node.key -out node.csr -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1",
        "x509 -req -in node.csr -CA ca.pem -CAkey ca.key -out node.pem -days 2 -copy_extensions copy",
    ):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


@asynccontextmanager
async def tls_peer(folder: Path, *, ask_for_certificate=False):
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "node.pem", folder / "node.key")
    if ask_for_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "ca.pem")

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_an_unknown_certificate_is_refused_and_an_added_ca_bundle_admits_it(certificates):
    async with tls_peer(certificates) as url:
        async with client(url) as http:
            with pytest.raises(NodeRefused, match="certificate"):
                await http.get_json(http.url("x"))
        async with client(url, tls=TlsOptions(ca_bundle=certificates / "ca.pem")) as http:
            assert (await http.get_json(http.url("x"))).document == {}


async def test_a_client_certificate_is_shown_to_a_node_that_asks_for_it(certificates):
    tls = TlsOptions(certificates / "ca.pem", certificates / "node.pem", certificates / "node.key")
    async with tls_peer(certificates, ask_for_certificate=True) as url, client(url, tls=tls) as http:
        assert (await http.get_json(http.url("x"))).document == {}


async def test_a_ca_bundle_that_was_written_anew_counts_for_whoever_connects_from_then_on(certificates, tmp_path):
    bundle = tmp_path / "bundle.pem"
    shutil.copy(certifi.where(), bundle)
    async with tls_peer(certificates) as url:
        async with client(url, tls=TlsOptions(ca_bundle=bundle)) as http:
            with pytest.raises(NodeRefused, match="certificate"):
                await http.get_json(http.url("x"))
        bundle.write_bytes((certificates / "ca.pem").read_bytes())
        async with client(url, tls=TlsOptions(ca_bundle=bundle)) as http:
            assert (await http.get_json(http.url("x"))).document == {}


async def test_an_unreadable_ca_bundle_is_a_settings_error(tmp_path):
    http = HttpClient("alpha", base_url="https://x", tls=TlsOptions(ca_bundle=tmp_path / "none.pem"))
    with pytest.raises(SettingsError):
        await http.open()


# --- compressed bodies


def compressed(body, coding):
    async def script(exchange):
        await exchange.reply(200, body, Content_Encoding=coding)

    return script


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda raw: zlib.compress(raw, wbits=-zlib.MAX_WBITS)),
        ("identity", bytes),
    ],
)
async def test_a_compressed_document_is_read_as_it_was(scripted, coding, compress):
    document = [{"value": "x" * 300_000}, *range(1000)]
    peer = await scripted(compressed(compress(json.dumps(document).encode()), coding))
    async with client(peer.url) as http:
        assert (await http.get_json(http.url("x"))).document == document


@pytest.mark.parametrize("coding", ["gzip, gzip", "br", "zstd", "gzip, deflate"])
async def test_a_coding_that_was_not_asked_for_is_refused(scripted, coding):
    """Each of several would swell what the one before it gave, beyond any ceiling."""
    peer = await scripted(compressed(gzip.compress(gzip.compress(b"[]")), coding))
    async with client(peer.url) as http:
        with pytest.raises(NodeProtocolError, match="was not asked for"):
            await http.get_json(http.url("x"))


@pytest.mark.parametrize("end", [-9, -1, 12])
async def test_a_compressed_body_that_is_cut_short_does_not_pass_for_whole(scripted, end):
    peer = await scripted(compressed(gzip.compress(b"[1, 2, 3]")[:end], "gzip"))
    async with client(peer.url) as http:
        with pytest.raises(NodeProtocolError, match="cut its answer short"):
            await http.get_json(http.url("x"))


async def test_a_compressed_body_that_comes_in_single_bytes_is_whole(scripted):
    body = gzip.compress(b"[1, 2, 3]")

    async def script(exchange):
        await exchange.send(b"HTTP/1.1 200 X\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body))
        for one in body:
            await exchange.send(bytes([one]))
            await asyncio.sleep(0.001)

    peer = await scripted(script)
    async with client(peer.url) as http:
        assert (await http.get_json(http.url("x"))).document == [1, 2, 3]


async def test_what_lies_behind_the_end_of_a_compressed_body_is_not_dropped_silently(scripted):
    peer = await scripted(compressed(gzip.compress(b"[1]") + gzip.compress(b" "), "gzip"))
    async with client(peer.url) as http:
        with pytest.raises(NodeProtocolError, match="cannot be decompressed"):
            await http.get_json(http.url("x"))
