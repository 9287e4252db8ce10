"""Nodes that speak DICOMweb (PS3.18)."""

from gateway.adapters.dicomweb.adapter import DicomwebAdapter

__all__ = ["DicomwebAdapter"]
