"""The row of reports and orders, shown at a FHIR node beside nodes that have none."""

from __future__ import annotations

import tempfile
from pathlib import Path

from conformance_table import shows
from small_hospital import Small

from gateway.simulators.fhir import FhirOptions, FhirSimulator
from tests.running import Gateway, files_node
from tests.specimens import specimen

KINDS = ("DiagnosticReport", "ServiceRequest")


@shows("F20")
def reports_and_orders(hospital: Small) -> None:
    for root in ("/fhir/r4", "/fhir/r5"):
        for kind in KINDS:  # this hospital has no FHIR node
            answer = hospital.gateway.get(f"{root}/{kind}?patient.identifier=urn:small|P1")
            assert answer.status_code == 404
            assert "only FHIR nodes" in answer.json()["issue"][0]["diagnostics"]
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        specimen(directory, "12345", "ct", AccessionNumber="A1")
        options = FhirOptions(patient_system="urn:north", reports=True, service_requests=True)
        with FhirSimulator(directory, "R4", options) as simulator:
            connection = {"url": simulator.url, "version": "R4"}
            more = {"adapter": "fhir", "mapping": "fhir-r4", "patient_id_issuer": "urn:north", "connection": connection}
            tables = [
                {"id": "north", "name": "north", **more},
                files_node("disk", directory, patient_id_issuer="urn:b"),
            ]
            with Gateway(tables) as gateway:
                _shown(gateway)


def _shown(gateway: Gateway) -> None:
    for root in ("/fhir/r4", "/fhir/r5"):
        for kind in KINDS:
            for query in ("patient.identifier=urn:north|12345", "identifier=A1"):
                (entry,) = gateway.get(f"{root}/{kind}?{query}").json()["entry"]
                assert entry["resource"]["subject"]["identifier"] == {"system": "urn:north", "value": "12345"}
            read = gateway.get(f"{root}/{kind}/{entry['resource']['id']}")
            assert read.json() == entry["resource"]
            assert gateway.get(f"{root}/{kind}?patient.identifier=12345").status_code == 409
            assert gateway.get(f"{root}/{kind}?status=final").status_code == 400
