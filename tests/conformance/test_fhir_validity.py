"""Three validators judge every FHIR body of a crawl over the federation, in R4 and in R5; references resolve, pages add up."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import fhirkit
import pytest
from fhir.resources import get_fhir_model_class as r5_class
from fhir.resources.R4B import get_fhir_model_class as r4b_class
from fhir_rules import faults
from national_nodes import Demo
from pyfhircheck import Validator
from pyfhircheck.config import ValidatorConfig

from gateway.wire import fhirxml

Resource = dict[str, Any]
VERSIONS = {"4.0": "/fhir/r4", "5.0": "/fhir/r5"}


@dataclass
class Crawl:
    """Every body that was seen, by the path it was asked at."""

    demo: Demo
    version: str
    root: str
    bodies: dict[str, Resource] = field(default_factory=dict)

    def get(self, url: str, status: int = 200) -> Resource:
        path = url.removeprefix(self.demo.url)
        answer = self.demo.get(path)
        assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text[:300]}"
        assert answer.headers["content-type"].startswith("application/fhir+json")
        body: Resource = answer.json()
        self.bodies[path] = body
        return body

    def pages(self, query: str) -> Iterator[Resource]:
        """Every page of a search, by its next links."""
        url: str | None = f"{self.root}/ImagingStudy{query}"
        while url:
            page = self.get(url)
            yield page
            url = link(page, "next")


def link(bundle: Resource, relation: str) -> str | None:
    return next((each["url"] for each in bundle["link"] if each["relation"] == relation), None)


def resources(bundle: Resource, mode: str = "match") -> list[Resource]:
    return [entry["resource"] for entry in bundle.get("entry", []) if entry["search"]["mode"] == mode]


SEARCHES = (
    "",
    "?_count=7",
    "?_count=9&_include=ImagingStudy:endpoint&_include=ImagingStudy:patient",
    "?_summary=true&_count=20",
    "?_summary=text",
    "?_summary=data",
    "?_summary=count",
    "?_count=0",
    "?_sort=_id&_count=30",
    "?_sort=started&modality=CT",
    "?node=ee-tartu",
    "?node=ee-tartu&_count=5&_include=ImagingStudy:subject",
    "?_id=1.2.3.4.5",
    "?modality:not=CT&_elements=identifier,series",
    "?_summary=data&_sort=_id&_include=*&_include:iterate=Endpoint:organization",
    "?bodysite:missing=false&_total=accurate&_count=3",
    "?_sort=_id&_count=11",
)
ERRORS = (
    ("/ImagingStudy?foo=bar", 400),
    ("/ImagingStudy?started=yesterday", 400),
    ("/ImagingStudy?_cursor=tampered", 400),
    ("/ImagingStudy?patient.identifier=12345", 409),
    ("/ImagingStudy?node=nowhere", 404),
    ("/ImagingStudy?node=it-roma", 503),
    ("/ImagingStudy/no-such-id", 404),
    ("/ImagingStudy/1.2.3.4.5.6", 503),
    ("/ImagingStudy/1.2.3.4.5.6?node=ee-tartu", 404),
    ("/Patient/0123456789abcdef0123456789abcdef", 404),
    ("/Endpoint/nowhere", 404),
    ("/Organization/nowhere", 404),
    ("/Observation/1", 404),
)


@pytest.fixture(scope="session", params=VERSIONS)
def crawl(request: pytest.FixtureRequest, demo: Demo) -> Crawl:
    """The searches to their last page, the errors, and every resource that anything refers to."""
    crawled = Crawl(demo, request.param, VERSIONS[request.param])
    crawled.get(f"{crawled.root}/metadata")
    for query in SEARCHES:
        list(crawled.pages(query))
    for query in ("Patient?birthdate=ge1900&_count=4", "Endpoint?_count=2", "Organization?_summary=true"):
        crawled.get(f"{crawled.root}/{query}")
    for path, status in ERRORS:
        crawled.get(crawled.root + path, status)
    clash = demo.corpus.case("uid-clash").study_uid
    crawled.get(f"{crawled.root}/ImagingStudy/{clash}", 409)
    bundles = [body for body in crawled.bodies.values() if body["resourceType"] == "Bundle"]
    found = [one for bundle in bundles for one in resources(bundle) if one["resourceType"] == "ImagingStudy"]
    for identifier in sorted({resource["id"] for resource in found}):
        crawled.get(f"{crawled.root}/ImagingStudy/{identifier}")
    seen: set[str] = set()
    while more := references(list(crawled.bodies.values())) - seen:
        for reference in sorted(more):
            crawled.get(f"{crawled.root}/{reference}")
        seen |= more
    return crawled


def references(value: Any) -> set[str]:
    """Every Reference.reference in a body."""
    if isinstance(value, list):
        return set().union(*map(references, value))
    if not isinstance(value, dict):
        return set()
    own = {value["reference"]} if isinstance(value.get("reference"), str) else set()
    return own.union(*map(references, value.values()))


def test_the_crawl_saw_everything(crawl: Crawl) -> None:
    kinds = {body["resourceType"] for body in crawl.bodies.values()}
    assert kinds == {
        "Bundle", "ImagingStudy", "Patient", "Endpoint", "Organization", "CapabilityStatement", "OperationOutcome",
    }  # fmt: skip
    read = [body for body in crawl.bodies.values() if body["resourceType"] == "ImagingStudy"]
    held = {study.study_uid for study in crawl.demo.corpus.studies()}
    assert {body["identifier"][0]["value"].removeprefix("urn:oid:") for body in read} == held
    assert all(instance["sopClass"]["code"] for body in read for one in body["series"] for instance in one["instance"])


def test_fhir_resources_accepts_every_body(crawl: Crawl) -> None:
    """R4B is R4 in all that is served here; the package has no model of 4.0.1 itself."""
    find = r5_class if crawl.version == "5.0" else r4b_class
    for path, body in crawl.bodies.items():
        try:
            find(body["resourceType"]).model_validate(body)
        except ValueError as error:
            pytest.fail(f"{path}: {error}")


def test_our_own_rules_hold_for_every_body(crawl: Crawl) -> None:
    for path, body in crawl.bodies.items():
        assert faults(body) == [], path


def test_the_crawl_is_of_more_than_500_studies(crawl: Crawl) -> None:
    bundles = [body for body in crawl.bodies.values() if body["resourceType"] == "Bundle"]
    searched = [one for bundle in bundles for one in resources(bundle) if one["resourceType"] == "ImagingStudy"]
    read = [body for body in crawl.bodies.values() if body["resourceType"] == "ImagingStudy"]
    assert len(searched) + len(read) > 500


@pytest.mark.parametrize("crawl", [fhirkit.FHIR_VERSION[:3]], indirect=True)
def test_fhirkit_accepts_every_r4_body(crawl: Crawl) -> None:
    for path, body in crawl.bodies.items():
        assert [str(issue) for issue in fhirkit.validate(body)] == [], path


@pytest.mark.parametrize("crawl", ["4.0"], indirect=True)
def test_pyfhircheck_accepts_every_r4_body(crawl: Crawl) -> None:
    validator = Validator(ValidatorConfig.load_dict({"fhirVersion": "4.0.1"}))
    for path, body in crawl.bodies.items():
        report = validator.validate_resource(body)
        found = [f"{error.code} {error.path} {error.message}" for error in report.errors]
        # Its set of formats has 'json' and neither 'xml' nor any media type, which FHIR's binding to BCP 13 has.
        assert [each for each in found if "Code 'xml' is not in required ValueSet _r4b_format" not in each] == [], path


def test_the_validators_do_reject() -> None:
    """What they are asked to accept is worth something only if they can say no."""
    wrong = {"resourceType": "ImagingStudy", "status": "done", "subject": {"reference": 1}, "modality": "CT"}
    assert fhirkit.validate(wrong)
    assert Validator(ValidatorConfig.load_dict({"fhirVersion": "4.0.1"})).validate_resource(wrong).errors
    for find in (r5_class, r4b_class):
        with pytest.raises(ValueError):
            find("ImagingStudy").model_validate(wrong)


def test_ids_and_dates_have_the_form_that_fhir_gives_them(crawl: Crawl) -> None:
    moment = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(\.\d+)?([+-]\d\d:\d\d|Z))?")
    for path, body in crawl.bodies.items():
        for resource in (body, *(entry["resource"] for entry in body.get("entry", []))):
            if "id" in resource:
                assert re.fullmatch(r"[A-Za-z0-9.-]{1,64}", resource["id"]), path
            for one in (resource, *resource.get("series", [])):
                if resource["resourceType"] == "ImagingStudy" and "started" in one:
                    assert moment.fullmatch(one["started"]), f"{path} {one['started']}"


def test_a_capability_statement_tells_the_truth(crawl: Crawl) -> None:
    statement = crawl.bodies[f"{crawl.root}/metadata"]
    assert statement["fhirVersion"].startswith(crawl.version)
    kinds = {one["type"]: one for one in statement["rest"][0]["resource"]}
    documents = {"DiagnosticReport", "ServiceRequest"}
    assert set(kinds) == {"ImagingStudy", "Patient", "Endpoint", "Organization"} | documents
    published = standard_parameters(crawl.version)
    for parameter in kinds["ImagingStudy"]["searchParam"]:
        assert published.get(parameter["name"], parameter["type"]) == parameter["type"]
        answer = crawl.demo.get(f"{crawl.root}/ImagingStudy?{parameter['name']}=&_count=0")
        assert answer.status_code == 200, parameter["name"]


def standard_parameters(version: str) -> dict[str, str]:
    names = {
        "identifier": "token", "patient": "reference", "subject": "reference", "started": "date", "modality": "token",
        "status": "token", "series": "token", "instance": "token", "dicom-class": "token", "endpoint": "reference",
        "_id": "token",
    }  # fmt: skip
    return names | {"body-site" if version == "5.0" else "bodysite": "token"}


def test_included_resources_are_those_that_the_page_refers_to(crawl: Crawl) -> None:
    for page in crawl.pages("?_count=9&_include=ImagingStudy:endpoint&_include=ImagingStudy:patient"):
        included = {f"{one['resourceType']}/{one['id']}" for one in resources(page, "include")}
        wanted = {each["reference"] for one in resources(page) for each in one["endpoint"]}
        wanted |= {one["subject"]["reference"] for one in resources(page) if "reference" in one["subject"]}
        assert included == wanted
        full = [entry["fullUrl"] for entry in page["entry"] if "fullUrl" in entry]
        assert len(full) == len(set(full))
        assert all(url.startswith(f"{crawl.demo.url}{crawl.root}/") for url in full)


def test_searched_and_read_resources_agree(crawl: Crawl) -> None:
    whole = next(iter(crawl.pages("?_count=1000")))
    for resource in resources(whole):
        read = crawl.bodies[f"{crawl.root}/ImagingStudy/{resource['id']}"]
        for name in ("identifier", "status", "subject", "started", "endpoint", "description", "referrer"):
            assert resource.get(name) == read.get(name), f"{resource['id']} {name}"
        for name in ("numberOfSeries", "numberOfInstances"):
            assert resource.get(name, read[name]) == read[name], f"{resource['id']} {name}"


def order_key(resource: Resource) -> tuple[bool, str]:
    return "started" not in resource, resource.get("started", "")


@pytest.mark.parametrize("sort", ["-started", "started", "_id", ""])
@pytest.mark.parametrize("count", [1, 4, 50])
def test_a_walk_over_the_pages_meets_every_study_once_and_in_order(demo: Demo, sort: str, count: int) -> None:
    crawled = Crawl(demo, "4.0", "/fhir/r4")
    query = f"?_sort={sort}&" if sort else "?"
    (whole,) = [resources(page) for page in crawled.pages(f"{query}_count=1000")]
    pages = list(crawled.pages(f"{query}_count={count}"))
    walked = [resource for page in pages for resource in resources(page)]
    assert walked == whole
    assert len({resource["id"] for resource in whole}) == len(whole)
    studies = {(s.study_uid, s.patient_id.strip(), s.issuer) for s in demo.corpus.studies()}
    assert len(whole) == len(studies)
    if sort == "_id":
        assert [one["identifier"][0]["value"] for one in whole] == sorted(
            one["identifier"][0]["value"] for one in whole
        )


def test_a_page_after_the_order_changed_its_count_goes_on_where_it_was(demo: Demo) -> None:
    crawled = Crawl(demo, "4.0", "/fhir/r4")
    whole = [one["id"] for one in resources(next(crawled.pages("?_count=1000")))]
    first = crawled.get("/fhir/r4/ImagingStudy?_count=5")
    onward = link(first, "next")
    assert onward
    second = crawled.get(onward.replace("_count=5", "_count=11"))
    assert [one["id"] for one in resources(second)] == whole[5:16]


def test_a_cursor_that_was_tampered_with_or_belongs_elsewhere_is_400(demo: Demo) -> None:
    onward = link(demo.get("/fhir/ImagingStudy?_count=5").json(), "next")
    assert onward
    path, _, cursor = onward.removeprefix(demo.url).partition("_cursor=")
    flipped = ("B" if cursor[10] == "A" else "A").join((cursor[:10], cursor[11:]))
    for wrong in (flipped, cursor[::-1], cursor[:-4], ".", "x", f"{cursor}AAAA", "é"):
        answer = demo.get(path + "_cursor=" + wrong)
        assert answer.status_code == 400, wrong
        assert "http._cursor" in answer.text
    for elsewhere in ("modality=CT&", "_sort=_id&", "node=ee-tartu&"):
        answer = demo.get(f"/fhir/ImagingStudy?{elsewhere}_count=5&_cursor={cursor}")
        assert answer.status_code == 400, elsewhere


def test_a_cursor_holds_nothing_that_can_be_read(demo: Demo) -> None:
    for page in Crawl(demo, "4.0", "/fhir").pages("?_count=3"):
        onward = link(page, "next")
        if onward:
            body = onward.partition("_cursor=")[2]
            opened = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
            assert not [study for study in demo.corpus.studies() if study.study_uid.encode() in opened]
            named = {study.patient_id for study in demo.corpus.studies()} - {""}
            assert not [identifier for identifier in named if f'"{identifier}"'.encode() in opened]


def test_the_models_are_those_of_the_versions_named() -> None:
    assert import_module("fhir.resources.R4B").__fhir_version__ == "4.3.0"
    assert import_module("fhir.resources").__fhir_version__.startswith("5.0")


def test_every_body_as_xml_is_read_back_as_the_json(crawl: Crawl) -> None:
    """By fhir.resources: the codec over every body, and one of each kind over the wire."""
    find = r5_class if crawl.version == "5.0" else r4b_class

    def read(xml: bytes) -> Resource:
        found: Resource = json.loads(find(kind).model_validate_xml(xml).model_dump_json())
        return found

    asked: set[str] = set()
    accept = {"accept": f"text/html;q=0.9, application/fhir+xml; fhirVersion={crawl.version}"}
    for path, body in crawl.bodies.items():
        kind = body["resourceType"]
        wanted = json.loads(find(kind).model_validate(body).model_dump_json())  # it dumps +00:00 as Z
        assert read(fhirxml.encode(body, is_r5=crawl.version == "5.0")) == wanted, path
        if kind not in asked and kind != "Bundle":
            asked.add(kind)
            answer = crawl.demo.get(path, headers=accept)
            assert answer.headers["content-type"].startswith("application/fhir+xml"), path
            assert read(answer.content) == wanted, path
    kind = "Bundle"
    page = f"{crawl.root}/ImagingStudy?_count=5&node=ee-tartu"
    wanted = json.loads(find(kind).model_validate(crawl.demo.get(page).json()).model_dump_json())
    assert read(crawl.demo.get(page, headers=accept).content) == wanted
    for form in ("xml", "text/xml", "application/fhir+xml", "application/xml; fhirVersion=" + crawl.version):
        answer = crawl.demo.get(f"{crawl.root}/metadata", params={"_format": form})
        assert answer.headers["content-type"] == f"application/fhir+xml; fhirVersion={crawl.version}"
