"""The common model: frozen values in DICOM terms. It does no I/O and knows no HTTP, no protocol and no nation."""
