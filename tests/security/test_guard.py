"""What the gateway refuses to start with."""

import pytest

from gateway.errors import SettingsError
from gateway.security.guard import check_start, is_exposed
from gateway.settings import Settings, is_loopback

ISSUER = {"oidc_issuer": "https://login.example.eu/realms/imaging"}
TLS = {"tls_certificate": "/etc/gateway/chain.pem", "tls_key": "/etc/gateway/key.pem"}


def settings(**changes):
    return Settings(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"host": "localhost"},
        {"host": "::1"},
        {"public_root": "http://localhost:8081"},
        {"public_root": "http://localhost:8081/imaging/"},
        {"public_root": "https://imaging.example.eu:8443/gateway/"} | ISSUER | TLS,
        ISSUER,
        {"oidc_issuer": "http://127.0.0.1:9400"},
        {"oidc_issuer": "http://localhost:9400/"},
        {"host": "0.0.0.0"} | ISSUER | TLS,
        {"host": "0.0.0.0", "trusted_proxies": ("10.0.0.5",)} | ISSUER,
        {"trusted_proxies": ("127.0.0.1",)} | ISSUER,
        {"cors_origins": ("https://viewer.example", "http://localhost:3000")},
        {"cors_origins": ("*",)} | ISSUER,
        {"secret": "0123456789abcdef"},
    ],
)
def test_a_gateway_that_is_locked_or_on_loopback_starts(changes):
    check_start(settings(**changes))


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"host": "0.0.0.0"}, "GATEWAY_OIDC_ISSUER"),
        ({"host": "0.0.0.0"} | TLS, "GATEWAY_OIDC_ISSUER"),
        ({"host": ""}, "GATEWAY_OIDC_ISSUER"),
        ({"host": "::"}, "GATEWAY_OIDC_ISSUER"),
        ({"host": "gateway.example.eu"}, "GATEWAY_OIDC_ISSUER"),
        ({"trusted_proxies": ("127.0.0.1",)}, "GATEWAY_OIDC_ISSUER"),
        ({"public_root": "https://imaging.example.eu"}, "GATEWAY_OIDC_ISSUER"),
        ({"public_root": "imaging.example.eu"}, "GATEWAY_PUBLIC_ROOT"),
        ({"secret": "x"}, "GATEWAY_SECRET"),
        ({"secret": ""}, "GATEWAY_SECRET"),
        ({"cors_origins": ("https://viewer.example/",)}, "GATEWAY_CORS_ORIGINS"),
        ({"cors_origins": ("viewer.example",)}, "GATEWAY_CORS_ORIGINS"),
        ({"cors_origins": ("https://Viewer.example",)}, "GATEWAY_CORS_ORIGINS"),
        ({"cors_origins": ("https://*.example",)}, "GATEWAY_CORS_ORIGINS"),
        ({"public_root": "imaging.example.eu:8443"}, "GATEWAY_PUBLIC_ROOT"),
        ({"public_root": "https:/imaging.example.eu"}, "GATEWAY_PUBLIC_ROOT"),
        ({"public_root": "https://imaging.example.eu/?a=b"}, "GATEWAY_PUBLIC_ROOT"),
        ({"public_root": "https://[::1"}, "GATEWAY_PUBLIC_ROOT"),
        ({"public_root": "https://imaging.example.eu:port"} | ISSUER, "GATEWAY_PUBLIC_ROOT"),
        ({"host": "0.0.0.0"} | ISSUER, "GATEWAY_TLS_CERTIFICATE"),
        ({"public_root": "https://imaging.example.eu"} | ISSUER, "GATEWAY_TLS_CERTIFICATE"),
        ({"tls_certificate": "/etc/gateway/chain.pem"}, "GATEWAY_TLS_KEY"),
        ({"tls_key": "/etc/gateway/key.pem"}, "GATEWAY_TLS_CERTIFICATE"),
        ({"oidc_issuer": "http://login.example.eu"}, "GATEWAY_OIDC_ISSUER"),
        ({"oidc_issuer": "http://127.0.0.1.example.eu"}, "GATEWAY_OIDC_ISSUER"),
        ({"oidc_issuer": "http://127.0.0.1@example.eu"}, "GATEWAY_OIDC_ISSUER"),
        ({"oidc_issuer": "https://login.example.eu?realm=x"}, "GATEWAY_OIDC_ISSUER"),
        ({"oidc_issuer": "https://"}, "GATEWAY_OIDC_ISSUER"),
        ({"oidc_issuer": "https://[::1"}, "GATEWAY_OIDC_ISSUER"),
        ({"oidc_issuer": "login.example.eu"}, "GATEWAY_OIDC_ISSUER"),
        ({"public_root": "//imaging.example.eu"} | ISSUER | TLS, "GATEWAY_PUBLIC_ROOT"),
        ({"public_root": "https://imaging.example.eu/?x=1"} | ISSUER | TLS, "GATEWAY_PUBLIC_ROOT"),
        ({"cors_origins": ("*",)}, "GATEWAY_CORS_ORIGINS"),
        ({"cors_origins": ("https://viewer.example", "null")}, "GATEWAY_CORS_ORIGINS"),
    ],
)
def test_a_gateway_that_would_be_open_or_in_plain_text_names_the_variable_to_set(changes, variable):
    with pytest.raises(SettingsError) as caught:
        check_start(settings(**changes))
    assert caught.value.parameter == variable
    assert caught.value.detail.startswith(variable)


def test_a_proxy_in_front_of_loopback_makes_it_exposed():
    assert not is_exposed(settings())
    assert is_exposed(settings(trusted_proxies=("127.0.0.1",)))


def test_names_and_addresses_of_this_machine():
    assert all(map(is_loopback, ("localhost", "a.localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("", "localhost.example.eu", "10.0.0.1", "0.0.0.0", "::", "xlocalhost")))
