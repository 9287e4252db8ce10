"""One FHIR ImagingStudy and DICOMweb interface over many hospitals' own systems."""

__version__ = "0.1.0"
