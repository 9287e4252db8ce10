"""Nodes that are a directory of DICOM files."""

from gateway.adapters.files.adapter import FilesAdapter

__all__ = ["FilesAdapter"]
