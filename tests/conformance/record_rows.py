"""The rows that need a record of what was seen before (`_lastUpdated`, 410), shown by a gateway with a Redis of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conformance_table import shows
from fhir_rows import ROOTS, matches
from small_hospital import Small

from gateway.simulators._directory import Directory
from gateway.simulators.dicomweb import DicomwebSimulator
from tests import peers
from tests.running import Gateway
from tests.specimens import specimen, uid


@contextmanager
def recorded() -> Iterator[tuple[Gateway, DicomwebSimulator]]:
    """One study before a gateway that keeps no answers."""
    with tempfile.TemporaryDirectory() as directory, peers.redis() as redis:
        specimen(Path(directory), "P", "s")
        with DicomwebSimulator(directory) as web:
            node = {"id": "web", "name": "web", "adapter": "dicomweb", "connection": {"url": web.url}, "quirks": []}
            nothing = {"find_ttl": 0, "location_ttl": 0, "negative_ttl": 0}
            with Gateway([node], redis_url=redis.url, **nothing) as gateway:
                yield gateway, web


@shows("F15")
def last_updated(hospital: Small) -> None:
    with recorded() as (gateway, web):
        for root in ROOTS:
            studies = f"{root}/ImagingStudy?_lastUpdated="
            first = gateway.get(f"{studies}gt1970").json()
            (study,) = matches(first)
            assert gateway.get(f"{root}/ImagingStudy/{study['id']}").json()["meta"] == study["meta"]
            after = gateway.get(f"{studies}gt2999").json()["meta"]["lastUpdated"]
            assert matches(gateway.get(f"{studies}gt{after}").json()) == []
            specimen(web.directory.root, "P", "s", number=2 + ROOTS.index(root))
            web.directory = Directory(web.directory.root)
            (changed,) = matches(gateway.get(f"{studies}gt{after}").json())
            assert changed["meta"]["lastUpdated"] > after
            statement = gateway.get(f"{root}/metadata").json()["rest"][0]["resource"][0]
            (parameter,) = (each for each in statement["searchParam"] if each["name"] == "_lastUpdated")
            assert (parameter["type"], "first saw" in parameter["documentation"]) == ("date", True)


@shows("R4b")
def known_deleted(hospital: Small) -> None:
    with recorded() as (gateway, web):
        path = f"/dicom-web/studies/{uid('s')}"
        assert len(gateway.get("/dicom-web/studies").json()) == 1
        assert "meta" in gateway.get(f"/fhir/r4/ImagingStudy/{uid('s')}").json()  # it is written down by now
        for file in web.directory.root.iterdir():
            file.unlink()
        web.directory = Directory(web.directory.root)
        for one in (path, f"{path}/metadata", f"{path}/series/{uid('s', '1')}", f"/fhir/r4/ImagingStudy/{uid('s')}"):
            assert gateway.get(one).status_code == 410, one
        assert gateway.get("/dicom-web/studies/1.2.3").status_code == 404
