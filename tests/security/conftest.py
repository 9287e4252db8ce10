"""An issuer of the tests' own: a real HTTP server with metadata and keys, which can rotate, count, lie and go silent."""

import asyncio
import json
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from functools import cache

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

AUDIENCE = "imaging-gateway"
METADATA, KEYS = "/.well-known/openid-configuration", "/jwks"


@cache
def first_key():
    """Made once: making RSA keys is slow."""
    return RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})


class TestIssuer:
    """`keys` are what it signs with and publishes; `asked` counts requests by path; `status` and `silent` are faults."""

    __test__ = False

    def __init__(self):
        self.keys = {"one": first_key()}
        self.asked = {METADATA: 0, KEYS: 0}
        self.status, self.silent, self.metadata_changes, self.jwks = 200, False, {}, None
        self.issuer = ""

    def token(self, kid="one", *, header=None, key=None, **changes):
        """A good token for 5 minutes; `changes` replace claims, None takes one away."""
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": "dr-a",
            "client_id": "viewer",
            "iat": now,
            "exp": now + 300,
        }
        claims |= {"scope": "system/ImagingStudy.rs"} | changes
        claims = {name: value for name, value in claims.items() if value is not None}
        key = key or self.keys[kid]
        algorithm = {"RSA": "RS256", "EC": "ES256", "OKP": "Ed25519"}[key.key_type] if header is None else header["alg"]
        return jwt.encode({"alg": algorithm, "kid": kid} | (header or {}), claims, key, algorithms=[algorithm])

    def bearer(self, *args, **changes):
        return "Bearer " + self.token(*args, **changes)

    def body(self, path):
        if path == METADATA:
            return {"issuer": self.issuer, "jwks_uri": self.issuer + KEYS, "token_endpoint": self.issuer + "/token"} | (
                self.metadata_changes
            )
        return self.jwks or {"keys": [key.as_dict(private=False) for key in self.keys.values()]}

    async def serve(self, reader, writer):
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            path = request.split(b" ", 2)[1].decode()
            self.asked[path] = self.asked.get(path, 0) + 1
            if self.silent:
                await asyncio.sleep(60)
            body = json.dumps(self.body(path)).encode()
            head = f"HTTP/1.1 {self.status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def running(self, port=0):
        server = await asyncio.start_server(self.serve, "127.0.0.1", port)
        self.issuer = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()


@contextmanager
def issuer_beside():
    """An issuer that runs beside the tests, in a thread of its own."""
    made, started, loop = TestIssuer(), threading.Event(), asyncio.new_event_loop()

    async def run():
        async with made.running():
            started.set()
            await asyncio.Event().wait()

    task = loop.create_task(run())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait([task])), daemon=True)
    thread.start()
    assert started.wait(30)
    yield made
    loop.call_soon_threadsafe(task.cancel)
    thread.join(30)


@pytest.fixture
async def issuer():
    async with TestIssuer().running() as running:
        yield running


def ec_key(kid, curve="P-256"):
    return ECKey.generate_key(curve, {"kid": kid})


def okp_key(kid):
    return OKPKey.generate_key("Ed25519", {"kid": kid})
