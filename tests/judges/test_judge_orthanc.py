"""Judge: Orthanc (Debian's, with its DICOMweb plugin) as a client. It searches the gateway and copies studies from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest

from tests import peers
from tests.judges.conftest import Judged, accepted
from tests.running import Gateway, files_node
from tests.shelf import HeldFile

pytestmark = pytest.mark.interop

# The operations of /dicom-web/servers/{name}.
USED = {"get", "qido", "retrieve", "stow"}
NOT_USED = {
    "wado": "a step of retrieve",
}


@dataclass(frozen=True)
class Asking:
    """An Orthanc of its own, without a study; `known_as` names the gateway's roots in it."""

    peer: peers.Orthanc
    client: httpx.Client
    known_as: dict[str, str]

    def qido(self, root: str, uri: str, **arguments: str) -> list[dict[str, Any]]:
        body = {"Uri": uri, "Arguments": arguments}
        return list(accepted(self.client.post(f"{self._server(root)}/qido", json=body)).json())

    def retrieve(self, root: str, *resources: dict[str, str]) -> dict[str, Any]:
        body = {"Resources": resources, "Synchronous": True}
        return dict(accepted(self.client.post(f"{self._server(root)}/retrieve", json=body)).json())

    def stow(self, root: str, study: str) -> dict[str, Any]:
        """Sends a study that it has."""
        (found,) = accepted(self.client.post("/tools/lookup", content=study)).json()
        body = {"Resources": [found["ID"]], "Synchronous": True}
        return dict(accepted(self.client.post(f"{self._server(root)}/stow", json=body)).json())

    def get(self, root: str, uri: str, **arguments: str) -> httpx.Response:
        body = {"Uri": uri, "Arguments": arguments, "HttpHeaders": {"Accept": "application/dicom+json"}}
        return accepted(self.client.post(f"{self._server(root)}/get", json=body))

    def operations(self, root: str) -> set[str]:
        return set(accepted(self.client.get(self._server(root))).json())

    def instances(self) -> set[str]:
        found = accepted(self.client.get("/instances", params={"expand": ""})).json()
        return {one["MainDicomTags"]["SOPInstanceUID"] for one in found}

    def forget(self) -> None:
        for study in self.client.get("/studies").json():
            accepted(self.client.delete(f"/studies/{study}"))

    def _server(self, root: str) -> str:
        if root not in self.known_as:
            name = f"gateway{len(self.known_as)}"
            accepted(self.client.put(f"/dicom-web/servers/{name}", json={"Url": f"{root}/"}))
            self.known_as[root] = name
        return f"/dicom-web/servers/{self.known_as[root]}"


@pytest.fixture(scope="module")
def asking() -> Iterator[Asking]:
    with peers.orthanc() as peer, httpx.Client(base_url=peer.http, timeout=60) as client:
        yield Asking(peer, client, {})


def uids(rows: list[dict[str, Any]], tag: str) -> list[str]:
    """The values of an attribute, in Orthanc's own form of an answer or in the standard's."""
    values = [row[tag]["Value"] for row in rows]
    return [value if isinstance(value, str) else value[0] for value in values]


def test_every_operation_of_the_client_is_used_or_left_out_with_a_reason(asking: Asking, root: str) -> None:
    assert asking.operations(root) == USED | NOT_USED.keys()


def test_it_finds_every_study(asking: Asking, judged: Judged, root: str) -> None:
    found = asking.qido(root, "/studies", includefield="StudyDescription")
    assert judged.named(uids(found, "0020000D")) == sorted(study.uid for study in judged.studies)


def test_it_finds_a_study_its_series_and_its_instances(asking: Asking, judged: Judged, root: str) -> None:
    study = judged.studies[0]
    found = asking.qido(root, "/studies", StudyInstanceUID=study.uid, PatientName=study.name.split("=")[0][:2] + "*")
    assert uids(found, "0020000D") == [study.uid]
    below = f"/studies/{study.uid}"
    assert sorted(uids(asking.qido(root, f"{below}/series"), "0020000E")) == sorted(study.series)
    instances = uids(asking.qido(root, f"{below}/instances"), "00080018")
    assert sorted(instances) == sorted(file.uid for file in study.files)


def test_it_reads_the_metadata(asking: Asking, judged: Judged, root: str) -> None:
    study = judged.studies[0]
    found = asking.get(root, f"/studies/{study.uid}/metadata").json()
    assert sorted(uids(found, "00080018")) == sorted(file.uid for file in study.files)


def is_as_stored(asking: Asking, file: HeldFile) -> bool:
    """It asks for any transfer syntax: the stored one comes, unless the web forbids it."""
    copy = pydicom.dcmread(BytesIO(asking.peer.file(file.uid)))
    original = file.dataset
    return bool(copy.PatientName == original.PatientName and copy.get("Rows") == original.get("Rows"))


def test_it_copies_studies_series_and_instances(asking: Asking, judged: Judged, root: str) -> None:
    asking.forget()
    whole, part, single = judged.studies[:3]
    series, files = next(iter(part.series.items()))
    one = single.files[0]
    asking.retrieve(
        root,
        {"Study": whole.uid},
        {"Study": part.uid, "Series": series},
        {"Study": one.study, "Series": one.series, "Instance": one.uid},
    )
    wanted = [*whole.files, *files, one]
    assert asking.instances() == {file.uid for file in wanted}
    assert all(is_as_stored(asking, file) for file in wanted)


def test_it_copies_everything_there_is(asking: Asking, judged: Judged) -> None:
    asking.forget()
    told = asking.retrieve(judged.dicomweb, *({"Study": study.uid} for study in judged.studies))
    assert int(told["ReceivedInstancesCount"]) == len(judged.files)
    assert asking.instances() == {file.uid for file in judged.files}


def test_it_sends_what_it_copied_to_where_the_gateway_stores(asking: Asking, judged: Judged, tmp_path: Path) -> None:
    """From one gateway to another: all of a study arrives, as it was."""
    asking.forget()
    study = judged.few[0]
    asking.retrieve(judged.dicomweb, {"Study": study.uid})
    with Gateway([files_node("archive", tmp_path, store=True)]) as other:
        asking.stow(other.dicomweb, study.uid)
        asking.stow(other.dicomweb, study.uid)
        found = other.get(f"/dicom-web/studies/{study.uid}/metadata").json()
    assert sorted(uids(found, "00080018")) == sorted(file.uid for file in study.files)
    kept = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, tmp_path.rglob("*.dcm"))}
    assert len(kept) == len(study.files)
    for file in study.files:
        assert kept[file.uid].get("PixelData") == file.dataset.get("PixelData")
        assert kept[file.uid].PatientID == file.dataset.PatientID
