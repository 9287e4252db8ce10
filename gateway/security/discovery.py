"""What clients may find out without a token: where tokens come from, and which scopes there are. Pure dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.errors import NotFound
from gateway.security.scopes import supported

RESOURCES = ("ImagingStudy", "Patient", "Endpoint", "Organization", "DiagnosticReport", "ServiceRequest")
STORED = ("ImagingStudy",)
# Of the issuer's own metadata (RFC 8414), what SMART App Launch 2 asks a FHIR server to repeat.
_REPEATED = (
    "jwks_uri",
    "authorization_endpoint",
    "token_endpoint",
    "registration_endpoint",
    "introspection_endpoint",
    "revocation_endpoint",
    "grant_types_supported",
    "response_types_supported",
    "token_endpoint_auth_methods_supported",
    "token_endpoint_auth_signing_alg_values_supported",
    "code_challenge_methods_supported",
)


def smart_configuration(issuer: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`.well-known/smart-configuration` (SMART App Launch 2, "Conformance").

    `metadata` is what the issuer says of itself. Raises NotFound when there is no issuer: an open gateway has no
    authorization server to name.
    """
    if not issuer:
        raise NotFound("this gateway is open: there is no authorization server")
    body = {name: metadata[name] for name in _REPEATED if metadata.get(name)}
    methods = metadata.get("token_endpoint_auth_methods_supported") or ()
    asymmetric = ["client-confidential-asymmetric"] if "private_key_jwt" in methods else []
    capabilities = ["permission-v1", "permission-v2", "permission-user", *asymmetric]
    return {"issuer": issuer, **body, "scopes_supported": supported(RESOURCES, STORED), "capabilities": capabilities}


def protected_resource(base: str, issuer: str) -> dict[str, Any]:
    """`/.well-known/oauth-protected-resource` (RFC 9728 2). `base` is the gateway's own URL as the caller sees it."""
    body: dict[str, Any] = {"resource": base, "resource_name": "Imaging gateway"}
    if issuer:
        body |= {"authorization_servers": [issuer], "bearer_methods_supported": ["header"]}
        body["scopes_supported"] = supported(RESOURCES, STORED)
    return body
