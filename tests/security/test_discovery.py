"""What clients are told without a token."""

import pytest

from gateway.errors import NotFound
from gateway.security.discovery import protected_resource, smart_configuration


def test_the_smart_configuration_repeats_the_issuers_endpoints_and_nothing_else_of_it():
    metadata = {"issuer": "https://i", "token_endpoint": "https://i/token", "jwks_uri": "https://i/jwks", "secret": "x"}
    body = smart_configuration("https://i", metadata | {"token_endpoint_auth_methods_supported": ["private_key_jwt"]})
    assert body["issuer"] == "https://i"
    assert body["token_endpoint"] == "https://i/token"
    assert "secret" not in body
    assert "system/ImagingStudy.rs" in body["scopes_supported"]
    assert set(body["capabilities"]) >= {"permission-v1", "permission-v2", "client-confidential-asymmetric"}
    assert "client-confidential-asymmetric" not in smart_configuration("https://i", {})["capabilities"]


def test_an_open_gateway_has_no_smart_configuration():
    with pytest.raises(NotFound):
        smart_configuration("", {})


def test_the_protected_resource_names_its_issuer():
    body = protected_resource("https://gateway.example.eu", "https://i")
    assert body["resource"] == "https://gateway.example.eu"
    assert body["authorization_servers"] == ["https://i"]
    assert body["bearer_methods_supported"] == ["header"]
    assert "authorization_servers" not in protected_resource("http://localhost", "")
