"""`$export` over HTTP: FHIR Bulk Data Access 2.0.0."""
