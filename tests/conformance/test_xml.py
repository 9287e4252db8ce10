"""Searches and metadata as XML: the same attributes as in JSON, read by a reader that nobody here wrote."""

from __future__ import annotations

import email
import email.policy
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
from national_nodes import Demo

XML = 'multipart/related; type="application/dicom+xml"'
JSON = "application/dicom+json"


def documents(answer: httpx.Response) -> list[bytes]:
    """The parts, by Python's own MIME reader."""
    head = f"Content-Type: {answer.headers['content-type']}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    message = email.message_from_bytes(head + answer.content, policy=email.policy.HTTP)
    assert message.get_content_type() == "multipart/related"
    assert message.get_param("type") == "application/dicom+xml"
    parts = [part for part in message.walk() if part is not message]
    assert {part.get_content_type() for part in parts} <= {"application/dicom+xml"}
    return [part.get_payload(decode=True) for part in parts if part.get_content_type() == "application/dicom+xml"]


def tags(parent: ElementTree.Element) -> dict[str, Any]:
    """Texts by tag, items as lists of such."""
    return {element.attrib["tag"]: [tags(c) if c.tag == "Item" else _text(c) for c in element] for element in parent}


def _text(element: ElementTree.Element) -> str:
    if element.tag == "BulkData":
        return element.attrib["uri"]
    if element.tag == "PersonName":
        return "=".join("^".join(part.text or "" for part in group) for group in element)
    return element.text or ""


def json_tags(dataset: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for tag, attribute in dataset.items():
        tag = tag[:4] + "00" + tag[6:] if int(tag[3], 16) % 2 and tag[4:6] != "00" else tag
        if "BulkDataURI" in attribute or "InlineBinary" in attribute:
            found[tag] = [attribute.get("BulkDataURI") or attribute["InlineBinary"]]
        else:
            found[tag] = [_json_text(value) for value in attribute.get("Value", [])]
    return found


def _json_text(value: Any) -> Any:
    if isinstance(value, dict) and any(group in value for group in ("Alphabetic", "Ideographic", "Phonetic")):
        groups = ("Alphabetic", "Ideographic", "Phonetic")
        return "=".join("^".join(part for part in value[g].split("^")) for g in groups if g in value)
    return json_tags(value) if isinstance(value, dict) else str(value)


def squeezed(value: Any) -> Any:
    """Empty name components are left out in XML."""
    if isinstance(value, dict):
        return {tag: squeezed(one) for tag, one in value.items()}
    if isinstance(value, list):
        return [squeezed(one) for one in value]
    return "^".join(filter(None, value.split("^")))


@pytest.fixture(scope="module")
def paths(demo: Demo) -> list[str]:
    root = "/nodes/ee-tartu/dicom-web"
    study = demo.corpus.nodes["ee-tartu"].studies[0]
    series = study.series[0]
    instance = f"{root}/studies/{study.study_uid}/series/{series.series_uid}/instances"
    return [
        f"{root}/studies",
        f"{root}/series?limit=5",
        f"{root}/instances?limit=5&includefield=all",
        f"{root}/studies/{study.study_uid}/series",
        f"{root}/studies/{study.study_uid}/instances",
        instance,
        f"{root}/studies/{study.study_uid}/metadata",
        f"{root}/studies/{study.study_uid}/series/{series.series_uid}/metadata",
        f"{instance}/{series.instances[0].sop_instance_uid}/metadata",
    ]


def test_xml_and_json_carry_the_same_at_every_level(demo: Demo, paths: list[str]) -> None:
    for path in paths:
        in_xml, in_json = demo.get(path, headers={"Accept": XML}), demo.get(path, headers={"Accept": JSON})
        assert (in_xml.status_code, in_json.status_code) == (200, 200), path
        ours = [squeezed(tags(ElementTree.fromstring(each))) for each in documents(in_xml)]
        assert ours == [squeezed(json_tags(each)) for each in in_json.json()], path
        assert in_xml.headers["etag"] != in_json.headers["etag"]
        assert "Accept" in in_xml.headers["vary"]


def test_xml_is_revalidated_and_the_same_twice(demo: Demo, paths: list[str]) -> None:
    for path in paths:
        first, second = (demo.get(path, headers={"Accept": XML}) for _ in range(2))
        assert first.content == second.content
        again = demo.get(path, headers={"Accept": XML, "If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        head = demo.gateway.client.head(path, headers={"Accept": XML})
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == first.headers["content-type"]


def test_one_instance_may_be_asked_for_as_a_document_alone(demo: Demo, paths: list[str]) -> None:
    answer = demo.get(paths[-1], headers={"Accept": "application/dicom+xml"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom+xml")
    assert ElementTree.fromstring(answer.content).tag == "NativeDicomModel"
    for path in paths[:-1]:
        assert demo.get(path, headers={"Accept": "application/dicom+xml"}).status_code == 406


def test_nothing_found_is_a_body_without_a_part(demo: Demo) -> None:
    path = "/nodes/ee-tartu/dicom-web/studies?PatientID=nobody-has-this"
    answer = demo.get(path, headers={"Accept": XML})
    assert (answer.status_code, documents(answer)) == (200, [])
