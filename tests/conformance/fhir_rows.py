"""The rows of FHIR about the server as a whole (F) and SMART (X), each shown by a request."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from conformance_table import shows
from small_hospital import LOPEZ, MULLER, YAMADA, Small, write

from gateway.wire import fhirxml
from tests.running import Gateway, files_node
from tests.security.conftest import TestIssuer
from tests.specimens import uid

ROOTS = ("/fhir/r4", "/fhir/r5")
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
OF_FILES = "ImagingStudy?node=files"
Json = dict[str, Any]


def ask(hospital: Small, path: str, root: str = "/fhir/r4", **headers: str) -> httpx.Response:
    return hospital.gateway.get(f"{root}/{path}", headers={"Cache-Control": "no-cache", **headers})


def read(hospital: Small, path: str, root: str = "/fhir/r4", **headers: str) -> Json:
    answer = ask(hospital, path, root, **headers)
    assert answer.status_code == 200, answer.text
    body: Json = answer.json()
    return body


def matches(bundle: Json, mode: str = "match") -> list[Json]:
    return [entry["resource"] for entry in bundle.get("entry", ()) if entry["search"]["mode"] == mode]


def word_of(study: Json) -> str:
    """The study, by the word that it is made of."""
    words = {f"urn:oid:{uid(word)}": word for word in (MULLER, LOPEZ, YAMADA)}
    return words[study["identifier"][0]["value"]]


def found(hospital: Small, query: str) -> set[str]:
    """The studies that a search finds, the same in both versions."""
    both = [{word_of(one) for one in matches(read(hospital, f"{OF_FILES}&{query}", root))} for root in ROOTS]
    assert both[0] == both[1]
    return both[0]


def refused(hospital: Small, path: str) -> str:
    """What is said of the parameter that is refused."""
    answer = ask(hospital, path)
    assert answer.status_code == 400, answer.text
    (issue,) = answer.json()["issue"]
    assert issue["expression"]
    return str(issue["diagnostics"])


@shows("F1")
def two_versions(hospital: Small) -> None:
    for root, version in zip(ROOTS, ("4.0", "5.0"), strict=True):
        assert ask(hospital, OF_FILES, root).headers["content-type"] == f"application/fhir+json; fhirVersion={version}"
    r5 = ask(hospital, OF_FILES, "/fhir", Accept="application/fhir+json; fhirVersion=5.0")
    assert r5.headers["content-type"].endswith("fhirVersion=5.0")
    assert r5.json()["entry"][0]["resource"]["modality"][0]["coding"]
    assert ask(hospital, OF_FILES, "/fhir/r4", Accept="application/fhir+json; fhirVersion=5.0").status_code == 406


@shows("F2a")
def json_and_xml(hospital: Small) -> None:
    for root in ROOTS:
        in_json = read(hospital, f"{OF_FILES}&_format=json", root)
        for asked in ({"Accept": "application/fhir+xml"}, {}):
            path = OF_FILES if asked else f"{OF_FILES}&_format=xml"
            in_xml = ask(hospital, path, root, **asked)
            assert in_xml.headers["content-type"].startswith("application/fhir+xml")
            self_link = in_json["link"][0]["url"].replace("&_format=json", "" if asked else "&_format=xml")
            expected = {**in_json, "link": [{"relation": "self", "url": self_link}]}
            assert in_xml.content == fhirxml.encode(expected, is_r5=root.endswith("r5"))


@shows("F2b")
def other_formats(hospital: Small) -> None:
    assert ask(hospital, OF_FILES, Accept="text/turtle").status_code == 406
    assert ask(hospital, f"{OF_FILES}&_format=ttl").status_code == 406
    assert ask(hospital, f"{OF_FILES}&_pretty=true").text.startswith("{\n")


@shows("F3")
def capability_statement(hospital: Small) -> None:
    for root, version in zip(ROOTS, ("4.0.1", "5.0.0"), strict=True):
        told = read(hospital, "metadata", root)
        assert (told["resourceType"], told["fhirVersion"]) == ("CapabilityStatement", version)
        kinds = {one["type"]: one for one in told["rest"][0]["resource"]}
        assert kinds.keys() >= {
            "ImagingStudy",
            "Patient",
            "Endpoint",
            "Organization",
            "DiagnosticReport",
            "ServiceRequest",
        }
        names = {one["name"] for one in kinds["ImagingStudy"]["searchParam"]}
        assert ("body-site" if root.endswith("r5") else "bodysite") in names


@shows("F4a")
def reading(hospital: Small) -> None:
    for root in ROOTS:
        study = matches(read(hospital, f"{OF_FILES}&identifier=ACC-1", root))[0]
        whole = read(hospital, f"ImagingStudy/{study['id']}?node=files", root)
        assert len(whole["series"][0]["instance"]) == 2
        assert read(hospital, study["subject"]["reference"], root)["identifier"][0]["value"] == "P1"
    assert ask(hospital, "ImagingStudy/nothing").status_code == 404


@shows("F5a")
def by_post(hospital: Small) -> None:
    for root in ROOTS:
        answer = hospital.gateway.client.post(
            f"{root}/ImagingStudy/_search?node=files", content="modality=MR&_count=5", headers=FORM
        )
        assert [word_of(one) for one in matches(answer.json())] == [LOPEZ]
    asked = hospital.gateway.client.post("/fhir/ImagingStudy/_search", json={"modality": "MR"})
    assert asked.status_code == 415


@shows("F6")
def pages(hospital: Small) -> None:
    for root in ROOTS:
        whole = [one["id"] for one in matches(read(hospital, OF_FILES, root))]
        assert len(whole) == 3
        path, walked = f"{OF_FILES}&_count=1", []
        while path:
            page = read(hospital, path, root)
            walked += [one["id"] for one in matches(page)]
            links = {link["relation"]: link["url"] for link in page["link"]}
            path = links.get("next", "").removeprefix(f"{hospital.gateway.url}{root}/")
        assert walked == whole


@shows("F7")
def totals(hospital: Small) -> None:
    counted = read(hospital, f"{OF_FILES}&_summary=count")
    assert (counted["total"], matches(counted)) == (3, [])
    assert read(hospital, f"{OF_FILES}&_total=accurate&_count=1")["total"] == 3
    assert "total" not in read(hospital, f"{OF_FILES}&_total=none")


@shows("F8")
def order(hospital: Small) -> None:
    oldest = [word_of(one) for one in matches(read(hospital, f"{OF_FILES}&_sort=started"))]
    assert oldest == [MULLER, LOPEZ, YAMADA]
    newest = [word_of(one) for one in matches(read(hospital, f"{OF_FILES}&_sort=-started"))]
    assert newest == oldest[::-1]
    assert "_sort" in refused(hospital, f"{OF_FILES}&_sort=modality")


@shows("F9")
def less_of_each(hospital: Small) -> None:
    (one,) = matches(read(hospital, f"{OF_FILES}&identifier=ACC-1&_elements=started"))
    assert set(one) == {"resourceType", "id", "meta", "started", "status", "subject"}
    assert one["meta"]["tag"][0]["code"] == "SUBSETTED"
    (one,) = matches(read(hospital, f"{OF_FILES}&identifier=ACC-1&_summary=text"))
    assert set(one) == {"resourceType", "id", "meta", "status", "subject"}


@shows("F10")
def includes(hospital: Small) -> None:
    asked = f"{OF_FILES}&identifier=ACC-1&_include=ImagingStudy:patient&_include:iterate=Endpoint:organization"
    bundle = read(hospital, f"{asked}&_include=ImagingStudy:endpoint")
    kinds = sorted(one["resourceType"] for one in matches(bundle, "include"))
    assert kinds == ["Endpoint", "Organization", "Patient"]


@shows("F11")
def reverse_includes(hospital: Small) -> None:
    bundle = read(hospital, "Patient?node=files&name=muller&_revinclude=ImagingStudy:patient")
    assert [one["identifier"][0]["value"] for one in matches(bundle)] == ["P1"]
    assert [word_of(one) for one in matches(bundle, "include")] == [MULLER]
    assert "_revinclude" in refused(hospital, f"{OF_FILES}&_revinclude=DiagnosticReport:imaging-study")


@shows("F12a")
def handling(hospital: Small) -> None:
    lenient = read(hospital, f"{OF_FILES}&encounter=1&modality=MR", Prefer="handling=lenient")
    assert [word_of(one) for one in matches(lenient)] == [LOPEZ]
    (outcome,) = matches(lenient, "outcome")
    assert outcome["issue"][0]["expression"] == ["http.encounter"]
    assert "encounter" not in lenient["link"][0]["url"]
    assert ask(hospital, f"{OF_FILES}&encounter=1", Prefer="handling=strict").status_code == 400


@shows("F12b")
def refusals(hospital: Small) -> None:
    for name in ("encounter", "_lastUpdated", "_has:Observation:patient:code", "nonsense", "modality:above"):
        assert name.partition(":")[0] in refused(hospital, f"{OF_FILES}&{name}=x")


@shows("F13")
def validators(hospital: Small) -> None:
    for path in (OF_FILES, "Patient?node=files&name=muller", "Endpoint/files", "metadata"):
        etag = ask(hospital, path).headers["etag"]
        again = ask(hospital, path, **{"If-None-Match": etag})
        assert (again.status_code, again.content) == (304, b"")


@shows("F14")
def what_is_missing_is_told(hospital: Small) -> None:
    dead = {"id": "dead", "name": "dead", "adapter": "dicomweb", "connection": {"url": "http://127.0.0.1:9/"}}
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory))
        with Gateway([files_node("files", Path(directory), patient_id_issuer="urn:small"), dead]) as gateway:
            answer = gateway.get("/fhir/r4/ImagingStudy")
            nowhere = gateway.get("/fhir/r4/ImagingStudy?node=dead")
    bundle = answer.json()
    assert len(matches(bundle)) == 3
    assert "dead" in matches(bundle, "outcome")[0]["issue"][0]["diagnostics"]
    assert "total" not in bundle
    assert "etag" not in answer.headers
    assert (nowhere.status_code, nowhere.json()["resourceType"]) == (503, "OperationOutcome")


@shows("F18")
def profiles(hospital: Small) -> None:
    names = {"eu": "ImagingStudyEuImaging", "mii": "mii-pr-bildgebung-bildgebungsstudie"}
    study = matches(read(hospital, f"{OF_FILES}&identifier=ACC-1"))[0]["id"]
    for name, profile in names.items():
        whole = read(hospital, f"ImagingStudy/{study}?node=files&_profile={name}")
        assert whole["meta"]["profile"][0].endswith(profile)
    assert "profile" not in read(hospital, f"ImagingStudy/{study}?node=files").get("meta", {})
    assert "_profile" in str(ask(hospital, f"{OF_FILES}&_profile=http://other.example").json())


@shows("F22")
def others(hospital: Small) -> None:
    for root in ROOTS:
        assert len(matches(read(hospital, "Patient?node=files&birthdate=1960-02-29", root))) == 1
        for kind in ("Endpoint", "Organization"):
            assert {one["id"] for one in matches(read(hospital, kind, root))} == {"files", "web", "pacs"}
            assert read(hospital, f"{kind}/files", root)["name"] == "files"
    assert ask(hospital, "Patient").status_code == 400


@contextlib.contextmanager
def guarded() -> Iterator[tuple[Gateway, TestIssuer]]:
    """A gateway over the hospital's files that asks for tokens, and who issues them."""
    issuer, started, loop = TestIssuer(), threading.Event(), asyncio.new_event_loop()

    async def run() -> None:
        async with issuer.running():
            started.set()
            await asyncio.Event().wait()

    task = loop.create_task(run())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait([task])), daemon=True)
    thread.start()
    assert started.wait(10)
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory))
        node = files_node("files", Path(directory), patient_id_issuer="urn:small")
        with Gateway([node], oidc_issuer=issuer.issuer) as gateway:
            yield gateway, issuer
    loop.call_soon_threadsafe(task.cancel)
    thread.join(10)


@shows("X1")
def scopes(_: Small) -> None:
    with guarded() as (gateway, issuer):

        def asked(path: str, scope: str) -> int:
            return gateway.get(path, headers={"Authorization": issuer.bearer(scope=scope)}).status_code

        for scope in ("system/ImagingStudy.rs", "user/*.cruds", "system/ImagingStudy.read", "user/*.*"):
            assert asked("/fhir/ImagingStudy", scope) == 200, scope
        for scope in ("system/ImagingStudy.r", "system/Patient.rs", "system/ImagingStudy.sr", "openid"):
            assert asked("/fhir/ImagingStudy", scope) == 403, scope
        assert asked("/dicom-web/studies", "system/ImagingStudy.rs") == 200


@shows("X2")
def discovery(_: Small) -> None:
    with guarded() as (gateway, issuer):
        for root in ("", "/fhir", *ROOTS):
            told = gateway.get(f"{root}/.well-known/smart-configuration").json()
            assert {"permission-v1", "permission-v2"} <= set(told["capabilities"])
            assert told["token_endpoint"].startswith(issuer.issuer)
            assert "system/ImagingStudy.rs" in told["scopes_supported"]


@shows("X3")
def no_token(_: Small) -> None:
    with guarded() as (gateway, issuer):
        scope = gateway.get("/fhir/ImagingStudy", headers={"Authorization": issuer.bearer(scope="system/Patient.rs")})
        assert (scope.status_code, "system/ImagingStudy.s" in scope.text) == (403, True)
        answer = gateway.get("/fhir/ImagingStudy")
        assert (answer.status_code, answer.json()["resourceType"]) == (401, "OperationOutcome")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        stale = issuer.bearer(exp=1_000_000_000)
        assert gateway.get("/fhir/ImagingStudy", headers={"Authorization": stale}).status_code == 401
        assert gateway.get("/fhir/metadata").status_code == 200
