"""Why a caller asks: the purpose of use as a verified token states it, never as a header claims it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# The code system that a bare code is taken from (HL7 v3 ActReason: TREAT, HRESCH, PUBHLTH ...), by its names.
_ACT_REASON = frozenset(
    {
        "http://terminology.hl7.org/CodeSystem/v3-ActReason",
        "http://hl7.org/fhir/v3/ActReason",
        "urn:oid:2.16.840.1.113883.5.8",
        "2.16.840.1.113883.5.8",
    }
)


def purpose_of(claims: Mapping[str, Any]) -> str:
    """The one purpose of use that the claims state, or ''. Raises ValueError when the claim is not readable.

    It is read from `extensions.ihe_iua.purpose_of_use` (IHE IUA, ITI-71) and from `purpose_of_use`, each a code, a
    coding (`system`, `code`) or a list of these. A code of HL7 v3 ActReason is given bare, another system's as
    'system|code'. A token that states several purposes has none for this request: which of them it serves is not told.
    """
    stated = {purpose for claim in _claims(claims) for purpose in _purposes(claim)}
    return stated.pop() if len(stated) == 1 else ""


def _claims(claims: Mapping[str, Any]) -> Iterator[Any]:
    yield claims.get("purpose_of_use")
    extensions = claims.get("extensions")
    iua = extensions.get("ihe_iua") if isinstance(extensions, dict) else None
    yield iua.get("purpose_of_use") if isinstance(iua, dict) else None


def _purposes(claim: Any) -> Iterator[str]:
    if claim is None:
        return
    for entry in claim if isinstance(claim, list) else [claim]:
        yield _purpose(entry)


def _purpose(entry: Any) -> str:
    system, code = (entry.get("system") or "", entry.get("code")) if isinstance(entry, dict) else ("", entry)
    if not isinstance(code, str) or not code.strip() or not isinstance(system, str):
        raise ValueError("purpose_of_use")
    return code.strip() if not system or system in _ACT_REASON else f"{system}|{code.strip()}"
