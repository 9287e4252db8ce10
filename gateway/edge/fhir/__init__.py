"""FHIR over HTTP, R4 and R5: what is asked, the resources that answer it, and their pages."""
