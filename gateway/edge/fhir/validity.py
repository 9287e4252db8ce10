"""Holds our FHIR bodies against the published models before they leave, where that is asked for (GATEWAY_VALIDATE_FHIR)."""

from __future__ import annotations

from importlib import import_module

from pydantic import ValidationError

from gateway.edge.fhir.imagingstudy import Resource
from gateway.errors import GatewayError

# R4B has the structure of R4 for the resources served here; R5 is the package's root.
_PACKAGES = {False: "fhir.resources.R4B", True: "fhir.resources"}


def check(resource: Resource, *, is_r5: bool) -> None:
    """Raises GatewayError naming the first element at fault, never its value. Slow: some 10 ms for a study of 600 instances."""
    kind = resource["resourceType"]
    model = getattr(import_module(f"{_PACKAGES[is_r5]}.{kind.lower()}"), kind)
    try:
        model.model_validate(resource)
    except ValidationError as error:
        where = ".".join(str(step) for step in error.errors(include_input=False)[0]["loc"])
        raise GatewayError(f"the answer is not a valid {kind}: {where}; please report it") from None
