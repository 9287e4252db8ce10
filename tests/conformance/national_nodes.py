"""A federation like the demo's: six nodes over four protocols and one that is down, with what they hold."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import httpx
from pydicom import Dataset, dcmread

from gateway.simulators.corpus import Corpus, HeldInstance, HeldStudy
from gateway.simulators.dicomweb import DicomwebSimulator
from gateway.simulators.dimse import DimseSimulator
from gateway.simulators.fhir import FhirOptions, FhirSimulator
from tests.running import Gateway, files_node

DIMSE_NODES = ("fr-lyon", "pl-krakow", "gr-athens")
DEAD = "it-roma"


@dataclass
class Demo:
    """The running gateway and what its nodes hold."""

    gateway: Gateway
    corpus: Corpus
    tables: list[dict[str, Any]]

    @property
    def url(self) -> str:
        return self.gateway.url

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        """A path of the gateway, or one of the full URLs that it gave out."""
        return self.gateway.get(path.removeprefix(self.url), **kwargs)

    def holdings(self) -> list[HeldStudy]:
        """Every study at every node, but for those whose UID names two patients."""
        twice = {uid for name in ("uid-clash", "unlinked") for uid in self.corpus.case(name).study_uids}
        return [study for study in self.corpus.studies() if study.study_uid not in twice]


def attribute(row: dict[str, Any], tag: str) -> list[Any]:
    """The values of a tag in a DICOM JSON object, [] for none."""
    return row.get(tag, {}).get("Value", [])


def read(instance: HeldInstance) -> Dataset:
    return dcmread(instance.path)


def node_tables(corpus: Corpus, stack: contextlib.ExitStack) -> list[dict[str, Any]]:
    """The [[node]] tables of the federation; its simulators run until the stack is left."""

    def hints(node: str) -> dict[str, Any]:
        hospital = corpus.nodes[node].hospital
        return {
            "id": node,
            "name": hospital.organisation,
            "country": hospital.country,
            "organisation": hospital.organisation,
            "patient_id_issuer": hospital.patient_id_issuer,
            "time_zone": hospital.time_zone,
        }

    def dicomweb(node: str) -> str:
        simulator = DicomwebSimulator(corpus.nodes[node].directory)
        simulator.start()
        stack.callback(simulator.stop)
        return simulator.url

    tables = []
    for node in DIMSE_NODES:
        hospital = corpus.nodes[node].hospital
        simulator = DimseSimulator(corpus.nodes[node].directory, ae_title=hospital.ae_title)
        connection = {"host": "127.0.0.1", "port": simulator.start(), "called_ae_title": hospital.ae_title}
        stack.callback(simulator.stop)
        mapping = {"pl-krakow": "dicom-latin2-pl", "gr-athens": "dicom-greek"}.get(node, "dicom")
        more = {
            "adapter": "dimse",
            "mapping": mapping,
            "character_set": hospital.character_set,
            "connection": connection,
        }
        tables.append({**hints(node), **more})
    tables.append({**hints("es-madrid"), "adapter": "dicomweb", "connection": {"url": dicomweb("es-madrid")}})
    pixels = dicomweb("de-berlin")
    options = FhirOptions(profile="mii", dicomweb_url=pixels)
    fhir = FhirSimulator(corpus.nodes["de-berlin"].directory, version="R4", options=options)
    fhir.start()
    stack.callback(fhir.stop)
    connection = {"url": fhir.url, "version": "R4"}
    more = {"adapter": "fhir", "mapping": "mii-bildgebung", "allow": [pixels], "connection": connection}
    tables.append({**hints("de-berlin"), **more})
    tartu = files_node("ee-tartu", corpus.nodes["ee-tartu"].directory)
    tables.append({**tartu, **hints("ee-tartu")})
    dead = {"adapter": "dicomweb", "connection": {"url": "http://127.0.0.1:9/dicom-web"}, "connect_deadline": 1}
    tables.append({**hints(DEAD), **dead})
    return tables
