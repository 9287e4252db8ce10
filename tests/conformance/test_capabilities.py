"""The capabilities description: the same in JSON and in WADL, and exactly what the route table has."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from small_hospital import Small
from starlette.routing import Route

from gateway.edge import routes

WADL = "{http://wadl.dev.java.net/2009/02}"


def options(hospital: Small, accept: str):  # type: ignore[no-untyped-def]
    return hospital.gateway.client.options("/nodes/files/dicom-web/", headers={"Accept": accept})


@pytest.mark.parametrize("accept", ["application/vnd.sun.wadl+xml", "application/xml", "text/xml;q=0.9, text/csv"])
def test_wadl_says_what_json_says(hospital: Small, accept: str) -> None:
    answer = options(hospital, accept)
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == accept.partition(";")[0]
    root = ElementTree.fromstring(answer.content)
    assert root.tag == WADL + "application"
    (resources,) = root
    described = options(hospital, "application/json").json()["application"]["resources"]
    assert resources.get("base") == described["@base"]
    for element, resource in zip(resources, described["resource"], strict=True):
        assert element.get("path") == resource["@path"]
        types = [each["@mediaType"] for method in resource["method"] for each in method["response"]["representation"]]
        answers = element.iterfind(f"{WADL}method/{WADL}response/{WADL}representation")
        assert [each.get("mediaType") for each in answers] == types
        names = [each["@name"] for method in resource["method"] for each in method["request"]["param"]]
        assert [each.get("name") for each in element.iter(WADL + "param")] == names


def test_every_route_is_described_and_nothing_else(hospital: Small) -> None:
    described = options(hospital, "*/*").json()["application"]["resources"]["resource"]
    told = {(resource["@path"], method["@name"]) for resource in described for method in resource["method"]}
    there = {
        (route.path.lstrip("/"), verb)
        for route in routes.dicomweb()
        if isinstance(route, Route) and route.name != "capabilities"
        for verb in (route.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert told == there


def test_what_is_described_can_be_asked_for(hospital: Small) -> None:
    described = options(hospital, "*/*").json()["application"]["resources"]["resource"]
    (studies,) = (resource for resource in described if resource["@path"] == "studies")
    search, store = studies["method"]
    assert [each["@mediaType"] for each in store["request"]["representation"]] == [
        'multipart/related; type="application/dicom"'
    ]
    for each in search["response"]["representation"]:
        assert hospital.get("studies", Accept=each["@mediaType"]).status_code == 200
    names = {each["@name"] for each in search["request"]["param"]}
    assert {"fuzzymatching", "emptyvaluematching", "multiplevaluematching", "limit", "offset", "includefield"} <= names
