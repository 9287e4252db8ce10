"""The demo's hospitals as simulated servers, and the node file that a person would have written for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from gateway.cli.peers import Peer, Peers
from gateway.simulators.corpus import Corpus, Node

DOWN = "it-roma"
_MAPPINGS = {"de-berlin": "mii-bildgebung", "pl-krakow": "dicom-latin2-pl", "gr-athens": "dicom-greek"}
_KVNR = "http://fhir.de/sid/gkv/kvid-10"
_HEADER = """\
# The hospitals of the demo. `imaging-gateway demo` writes this file anew at every start, with that start's ports.
# A hospital of your own is one more block like these: see `imaging-gateway --help`.
"""


def start(corpus: Corpus, peers: Peers) -> dict[str, dict[str, object]]:
    """Starts every hospital's servers; the [[node]] table of each, by node id."""
    pixels = peers.start("de-berlin-dicomweb", "dicomweb", corpus.nodes["de-berlin"].directory)
    starting = {node.id: _start(node, peers) for node in corpus.nodes.values() if node.id in _STARTS}
    pixels_url = pixels.address()
    berlin = _start_fhir(corpus.nodes["de-berlin"], peers, pixels_url)
    addresses = {node: peer.address() for node, peer in {**starting, "de-berlin": berlin}.items()}
    addresses[DOWN] = f"http://127.0.0.1:{peers.hold_silent_port()}/dicom-web"
    tables = {node.id: _table(node, addresses.get(node.id, "")) for node in corpus.nodes.values()}
    tables["de-berlin"]["allow"] = [pixels_url]
    return tables


_STARTS = {"fr-lyon": "dimse", "pl-krakow": "dimse", "gr-athens": "dimse", "es-madrid": "dicomweb"}


def _start(node: Node, peers: Peers) -> Peer:
    more = ("--ae-title", node.hospital.ae_title) if _STARTS[node.id] == "dimse" else ()
    return peers.start(node.id, _STARTS[node.id], node.directory, *more)


def _start_fhir(node: Node, peers: Peers, pixels_url: str) -> Peer:
    switches = {
        "profile": "mii",
        "dicomweb_url": pixels_url,
        "organization": node.hospital.organisation,
        "time_zone": node.hospital.time_zone,
        "patient_system": _system(node),
        "issuer_systems": json.dumps({"KVNR": _KVNR}),
        "service_requests": "true",
    }
    return peers.start(node.id, "fhir", node.directory, *(f"--with={name}={value}" for name, value in switches.items()))


def _system(node: Node) -> str:
    """The identifier system of the hospital's own patient numbers, as its FHIR server writes it."""
    return f"https://{node.id}.example/fhir/sid/patient-number"


def _table(node: Node, address: str) -> dict[str, object]:
    hospital = node.hospital
    table: dict[str, object] = {
        "id": node.id,
        "name": hospital.organisation,
        "country": hospital.country,
        "organisation": hospital.organisation,
        "adapter": hospital.adapter,
        "patient_id_issuer": hospital.patient_id_issuer,
        "time_zone": hospital.time_zone,
        "connection": _connection(node, address),
    }
    if node.id in _MAPPINGS:
        table["mapping"] = _MAPPINGS[node.id]
    if hospital.adapter == "fhir":
        table["issuers"] = [{"issuer": hospital.patient_id_issuer, "uri": _system(node)}]
    else:
        table["character_set"] = hospital.character_set
    return table | ({"connect_deadline": 1.0} if node.id == DOWN else {})


def _connection(node: Node, address: str) -> Mapping[str, object]:
    adapter = node.hospital.adapter
    if adapter == "files":
        return {"directory": str(node.directory)}
    if adapter == "dimse":
        place = urlsplit(f"//{address}")
        return {"host": place.hostname, "port": place.port, "called_ae_title": node.hospital.ae_title}
    return {"url": address} | ({"version": "R4"} if adapter == "fhir" else {})


def write(path: Path, tables: Mapping[str, Mapping[str, object]]) -> None:
    """The node file, one [[node]] block per hospital."""
    blocks = ["\n[[node]]\n" + "\n".join(_lines(table)) + "\n" for table in tables.values()]
    path.write_text(_HEADER + "".join(blocks), encoding="utf-8")


def _lines(table: Mapping[str, object]) -> Iterator[str]:
    for key, value in table.items():
        yield f"{key} = {_toml(value)}"


def _toml(value: object) -> str:
    """One value of a TOML file; tables are written inline. A JSON string is a TOML string too."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_lines(value)) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)
