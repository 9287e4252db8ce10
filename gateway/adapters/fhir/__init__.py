"""Nodes that speak FHIR: ImagingStudy search, and Endpoint to where the pixels are."""

from gateway.adapters.fhir.adapter import FhirAdapter

__all__ = ["FhirAdapter"]
