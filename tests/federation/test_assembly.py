"""A node's credentials stay with it, whatever addresses it hands out."""

from __future__ import annotations

from pathlib import Path

import httpx
from running import Gateway

from gateway.simulators import corpus
from gateway.simulators.dicomweb import DicomwebOptions, DicomwebSimulator
from gateway.simulators.fhir import FhirOptions, FhirSimulator


def test_credentials_do_not_follow_an_endpoint_to_another_origin(tmp_path: Path) -> None:
    directory = corpus.build(tmp_path, scale="small").nodes["de-berlin"].directory
    with DicomwebSimulator(directory, DicomwebOptions()) as pixels:
        options = FhirOptions(profile="mii", dicomweb_url=pixels.url, basic=("gateway", "secret"))
        with FhirSimulator(directory, version="R4", options=options) as server:
            auth = {"kind": "basic", "username": "gateway", "password": "secret"}
            node = {
                "id": "de-berlin",
                "name": "Berlin",
                "adapter": "fhir",
                "mapping": "mii-bildgebung",
                "allow": [pixels.url],
                "connection": {"url": server.url, "version": "R4", "auth": auth},
            }
            with Gateway([node]) as gateway:
                study = gateway.get("/dicom-web/studies").json()[0]["0020000D"]["Value"][0]
                assert gateway.get(f"/dicom-web/studies/{study}").status_code == 200
        assert any("authorization" in {name.lower() for name in seen.headers} for seen in server.seen)
        assert pixels.seen
        assert not any("authorization" in {name.lower() for name in seen.headers} for seen in pixels.seen)


def test_an_endpoint_outside_the_allow_list_is_not_followed(tmp_path: Path) -> None:
    directory = corpus.build(tmp_path, scale="small").nodes["de-berlin"].directory
    with DicomwebSimulator(directory, DicomwebOptions()) as pixels:
        options = FhirOptions(profile="mii", dicomweb_url=pixels.url)
        with FhirSimulator(directory, version="R4", options=options) as server:
            connection = {"url": server.url, "version": "R4"}
            node = {"id": "de-berlin", "name": "Berlin", "adapter": "fhir", "mapping": "mii-bildgebung"}
            with Gateway([{**node, "connection": connection}]) as gateway:
                study = gateway.get("/dicom-web/studies").json()[0]["0020000D"]["Value"][0]
                answer: httpx.Response = gateway.get(f"/dicom-web/studies/{study}")
        assert (answer.status_code, answer.json()["code"]) == (502, "GW204")
        assert not pixels.seen
