"""One gateway over every real peer at once, a directory, and a node that is down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests import peers
from tests.running import Gateway, files_node
from tests.shelf import Shelf

ISSUER = "ALLIANCE"
# Who names an issuer in the files is known by it where the node gives it, and by the node's own where it does not.
DOMAIN = [ISSUER, "PESEL", "SU-KRAKOW", "EU-SCREEN-TRIAL", "EE-ISIKUKOOD", "CHU-LYON-IPP", "CIP-SNS"]


def node(identifier: str, adapter: str, connection: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": identifier, "name": identifier, "adapter": adapter, "connection": connection, "patient_id_issuer": ISSUER,
        "time_zone": "Europe/Warsaw", "connect_deadline": 5, "search_deadline": 20, **more,
    }  # fmt: skip


FHIR_ISSUERS = [
    {"issuer": ISSUER, "uri": "https://hospital.example/patients"},
    {"issuer": "PESEL", "oid": "2.16.840.1.113883.3.4424.1.1.616"},
    {"issuer": "CIP-SNS", "oid": "2.16.724.4.40"},
]
HOLDERS = ["web", "pacs", "qr", "fhir", "disk"]


@pytest.fixture(scope="session")
def real_nodes(
    shelf: Shelf, orthanc_peer: peers.Orthanc, dcmqrscp_peer: peers.DimsePeer, sekmet_peer: str
) -> list[dict[str, Any]]:
    """Every kind of node, all of them holding the shelf; and one that nobody answers for."""
    return [
        node("web", "dicomweb", {"url": orthanc_peer.dicomweb}),
        node("pacs", "dimse", orthanc_peer.address),
        node("qr", "dimse", dcmqrscp_peer.address),
        node("fhir", "fhir", {"url": sekmet_peer}, allow=[orthanc_peer.dicomweb], issuers=FHIR_ISSUERS),
        files_node("disk", shelf.directory, patient_id_issuer=ISSUER, time_zone="Europe/Warsaw"),
        node("dead", "dicomweb", {"url": f"http://127.0.0.1:{peers.free_port()}/dicom-web"}),
    ]


@pytest.fixture(scope="session")
def gateway(real_nodes: list[dict[str, Any]]) -> Iterator[Gateway]:
    with Gateway(real_nodes, file={"same_patient_domain": [{"issuers": DOMAIN}]}) as running:
        yield running
