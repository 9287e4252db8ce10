"""An OpenID provider and one caller's token: what a gateway under measurement checks with every request."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

_CLIENT = "bench"
_REDIRECT = "http://localhost/callback"


@dataclass(frozen=True)
class Identity:
    """`settings` are the gateway's; the token is the one of a caller who may see everything."""

    issuer: str
    token: str

    @property
    def settings(self) -> Mapping[str, object]:
        return {"oidc_issuer": self.issuer, "oidc_audience": _CLIENT}


@contextmanager
def identity() -> Iterator[Identity]:
    """oidc-provider-mock in a thread; its signed id token stands in for an access token, since those are opaque."""
    with contextlib.redirect_stderr(io.StringIO()):  # its libraries warn of each other, whatever the filters say
        import oidc_provider_mock
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    user = oidc_provider_mock.User(sub="bench", claims={"purpose_of_use": "TREAT", "scp": "system/*.rs"})
    with oidc_provider_mock.run_server_in_thread(user_claims=[user]) as server:
        issuer = f"http://localhost:{server.server_port}"
        yield Identity(issuer, _token(issuer))


def _token(issuer: str) -> str:
    asked = {"response_type": "code", "client_id": _CLIENT, "redirect_uri": _REDIRECT, "scope": "openid"}
    with httpx.Client(trust_env=False) as http:
        allowed = http.post(f"{issuer}/oauth2/authorize", params=asked, data={"sub": "bench"})
        code = httpx.URL(allowed.headers["location"]).params["code"]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": _REDIRECT}
        answer = http.post(f"{issuer}/oauth2/token", data=form, auth=(_CLIENT, "secret"))
    return str(answer.json()["id_token"])
