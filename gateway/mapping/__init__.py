"""Mapping files at work: a node's own format in DICOM terms, and queries back. It talks to no node."""
