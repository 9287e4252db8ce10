from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pydicom
import pytest
from pydicom.data import get_testdata_file

from gateway.adapters.fhir import FhirAdapter
from gateway.adapters.fhir import search as search
from gateway.adapters.fhir.server import Server, server_of
from gateway.adapters.http.client import HttpClient, Timeouts
from gateway.errors import NodeProtocolError, NodeRefused, NodeTimeout, NodeUnreachable, Unsupported
from gateway.mapping.ask import Asker
from gateway.mapping.load import load_all
from gateway.mapping.read import Reader
from gateway.model.dataset import text
from gateway.model.query import Match, Operator, Query, Ref
from gateway.model.seam import Adapter, Finds, Locates, Location, NativeMatch, NativeQuery
from gateway.model.vocabulary import Level, tag
from gateway.simulators.fhir import FhirOptions, FhirSimulator

MAPPINGS = load_all()
OF_VERSION = {"STU3": "fhir-stu3", "R4": "fhir-r4", "R4B": "fhir-r4", "R5": "fhir-r5"}
QUICK = Timeouts(connect=1, first_byte=2, idle=1, total=5)
NAMES = ["Müller^Eva", "Muller^Hans", "Kempf^Bo"]
PIXELS = "http://127.0.0.1:9/dicom-web"


def match(keyword: str, *values: str, operator=Operator.EXACT) -> Match:
    return Match((tag(keyword),), operator, values)


# --- what is searched with

R4 = Server(
    "R4",
    frozenset({"identifier", "patient", "subject", "started", "modality", "series", "instance", "basedon"}),
    frozenset({"identifier", "name", "birthdate"}),
    frozenset({"ImagingStudy:subject", "ImagingStudy:patient", "ImagingStudy:basedon"}),
)


def planned(*matches: Match, server=R4, mapping="fhir-r4", **query):
    native = Asker(MAPPINGS[mapping], "issuer").ask(Query(Level.STUDY, matches, **query))
    return search.build(native, server)


def pairs(plan) -> list[list[tuple[str, str]]]:
    return [list(one) for one in plan.searches]


def test_a_study_uid_is_searched_as_an_identifier_with_and_without_urn_oid():
    assert pairs(planned(match("StudyInstanceUID", "1.2"))) == [
        [("identifier", "urn:dicom:uid|urn:oid:1.2,urn:dicom:uid|1.2")]
    ]


def test_stu3_has_names_of_its_own():
    server = Server("STU3", frozenset({"study", "series", "uid", "accession"}), None, frozenset())
    native = NativeQuery(
        Level.IMAGE, (NativeMatch("x", Operator.EXACT, ("1.4",), (tag("SOPInstanceUID"),)),), "1.2", "1.3"
    )
    [found] = search.build(native, server).searches
    assert set(found) == {("study", "urn:oid:1.2"), ("series", "urn:oid:1.3"), ("uid", "urn:oid:1.4")}


def test_a_day_is_searched_with_one_more_on_either_side_and_left_to_be_matched_here():
    plan = planned(match("StudyDate", "20200301", "20200302", operator=Operator.RANGE))
    assert pairs(plan) == [[("started", "ge2020-02-29"), ("started", "le2020-03-03")]]
    assert plan.matched(frozenset()) == frozenset()
    assert pairs(planned(match("StudyDate", "", "20200302", operator=Operator.RANGE))) == [
        [("started", "le2020-03-03")]
    ]


def test_a_patient_id_goes_with_its_issuer_and_is_looked_for_in_both_places():
    plan = planned(match("PatientID", "N|9"), match("IssuerOfPatientID", "2.999.1"))
    assert pairs(plan) == [
        [("patient.identifier", "urn:oid:2.999.1|N\\|9")],
        [("subject:identifier", "urn:oid:2.999.1|N\\|9")],
    ]


def test_an_accession_number_is_searched_in_every_place_the_mapping_reads_it_from_or_not_at_all():
    assert {name for [(name, _)] in planned(match("AccessionNumber", "A1")).searches} == {
        "identifier",
        "basedon:identifier",
        "basedon.identifier",
    }
    without = Server("R4", R4.parameters - {"basedon"}, None, frozenset())
    plan = planned(match("AccessionNumber", "A1"), server=without)
    assert pairs(plan) == [[]]
    assert plan.asked


@pytest.mark.parametrize("keyword", ["BodyPartExamined", "StudyDescription", "StudyTime", "SeriesDescription"])
def test_what_no_parameter_covers_exactly_is_left_to_be_matched_here(keyword):
    plan = planned(match(keyword, "120000" if keyword == "StudyTime" else "CHEST"))
    assert pairs(plan) == [[]]


def test_a_name_is_searched_by_the_beginning_that_no_diacritic_can_change():
    assert pairs(planned(match("PatientName", "Müller^Eva"))) == [[("patient.name", "M")]]
    assert pairs(planned(match("PatientName", "Öz"))) == [[]]


def test_parameters_the_server_does_not_list_are_not_sent():
    plan = planned(match("ModalitiesInStudy", "CT"), server=Server("R4", frozenset({"identifier"}), None, frozenset()))
    assert pairs(plan) == [[]]


def test_a_parameter_is_matched_only_when_the_self_link_has_it():
    plan = planned(match("StudyInstanceUID", "1.2"), match("ModalitiesInStudy", "CT"))
    link = "http://h/ImagingStudy?identifier=urn%3Adicom%3Auid%7Curn%3Aoid%3A1.2&_count=20"
    assert plan.matched(search.unused(plan.searches[0], link)) == {"identifier.where(system = 'urn:dicom:uid').value"}


def test_special_characters_of_fhir_and_of_urls_are_both_escaped():
    plan = planned(match("PatientID", "a,b$c|d\\e &=+%"))
    query = plan.query(plan.searches[0], None)
    assert dict(parse_qsl(query))["patient.identifier"] == "a\\,b\\$c\\|d\\\\e &=+%"


def test_a_statement_without_searches_leaves_nothing_to_search_by():
    assert server_of({"rest": [{"resource": [{"type": "Patient"}]}]}, "R4").parameters == frozenset()
    assert server_of({"rest": "x"}, "R4").parameters == frozenset()


# --- peers


def _instance(number: int, name: str, folder: Path) -> None:
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID = name, f"P{number}"
    dataset.PatientBirthDate, dataset.PatientSex = f"196{number}0102", "F"
    dataset.AccessionNumber = f"A{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.9.{number}", f"1.2.9.{number}.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.9.{number}.1.1"
    dataset.StudyDate, dataset.StudyTime = f"2020010{number + 1}", "233000"
    dataset.Modality = "MR" if number else "CT"
    dataset.save_as(folder / f"{number}.dcm")


@pytest.fixture(scope="session")
def study_files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    for number, name in enumerate(NAMES):
        _instance(number, name, folder)
    return folder


class Node:
    """An adapter with the mapping of its format, asked as the federation asks it."""

    def __init__(self, adapter: FhirAdapter, mapping: str) -> None:
        self.adapter = adapter
        self._asker = Asker(MAPPINGS[mapping], "urn:test:issuer")
        self._reader = Reader(MAPPINGS[mapping], "alpha", "urn:test:issuer")

    async def ask(self, *matches: Match, level=Level.STUDY, limit=None, **query):
        asked = Query(level, matches, **query)
        native = self._asker.ask(asked, limit)
        *records, report = [item async for item in self.adapter.find(native)]
        rows = [
            row
            for record in records
            for row in self._reader.rows(record, level, study=asked.study or "", series=asked.series or "")
        ]
        return rows, report


@asynccontextmanager
async def node_on(url: str, version="R4", mapping="", *, timeouts=QUICK, **http):
    adapter = FhirAdapter("alpha", http=HttpClient("alpha", base_url=url, timeouts=timeouts, **http), version=version)
    await adapter.open()
    try:
        yield Node(adapter, mapping or OF_VERSION[version])
    finally:
        await adapter.close()


@pytest.fixture(scope="session")
def sekmet(tmp_path_factory, free_port, study_files) -> str:
    """The base URL of sekmet-fhir with the studies of the files, as the simulator writes them."""
    home = tmp_path_factory.mktemp("sekmet")
    program = Path(sys.executable).with_name("sekmet")
    if not program.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("sekmet-fhir is not installed")
    url = f"http://127.0.0.1:{free_port}/fhir"
    settings = {"SEKMET_BASE_URL": url, "SEKMET_DB": str(home / "sekmet.db")}
    command = [str(program), "serve", "--host", "127.0.0.1", "--port", str(free_port)]
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=home, env=os.environ | settings, stdout=log, stderr=log)
    try:
        _wait(f"{url}/metadata", process)
        for resource in _resources(study_files):
            _put(url, resource)
        yield url
    finally:
        process.kill()  # nothing of it is kept
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            assert process.poll() is None, "sekmet-fhir ended"
            assert time.monotonic() < ends, "sekmet-fhir does not answer"
            time.sleep(0.1)


def _resources(folder: Path) -> list[dict]:
    with FhirSimulator(folder, "R4", FhirOptions(dicomweb_url=PIXELS, service_requests=True)) as simulator:
        bundle = _get(
            f"{simulator.url}/ImagingStudy?_include=ImagingStudy:endpoint"
            "&_include=ImagingStudy:subject&_include=ImagingStudy:basedon"
        )
        organization = _get(f"{simulator.url}/Organization/hospital")
    found = [entry["resource"] for entry in bundle["entry"]]
    order = ["Organization", "Endpoint", "Patient", "ServiceRequest", "ImagingStudy"]
    return sorted([organization, *found], key=lambda resource: order.index(resource["resourceType"]))


def _get(url: str) -> dict:
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def _put(url: str, resource: dict) -> None:
    request = urllib.request.Request(
        f"{url}/{resource['resourceType']}/{resource['id']}",
        json.dumps(resource).encode(),
        {"Content-Type": "application/fhir+json"},
        method="PUT",
    )
    urllib.request.urlopen(request).close()


@pytest.fixture(scope="session")
def running_simulators(study_files):
    started: dict[str, FhirSimulator] = {}
    yield lambda version: started.setdefault(version, _start(study_files, version))
    for simulator in started.values():
        simulator.stop()


def _start(folder: Path, version: str) -> FhirSimulator:
    simulator = FhirSimulator(folder, version, FhirOptions(dicomweb_url=PIXELS))
    simulator.start()
    return simulator


@pytest.fixture
def simulator_of(running_simulators):
    """The simulator of a version, well at the start of each test."""

    def well(version: str, **options) -> FhirSimulator:
        simulator = running_simulators(version)
        simulator.options = FhirOptions(**({"dicomweb_url": PIXELS, "time_zone": "Europe/Oslo"} | options))
        simulator.operations.clear()
        simulator.seen.clear()
        return simulator

    return well


@pytest.fixture(params=["STU3", "R4", "R4B", "R5", pytest.param("sekmet", marks=pytest.mark.interop)])
def peer(request, simulator_of) -> tuple[str, str]:
    """(base URL, FHIR version) of each server."""
    if request.param == "sekmet":
        return request.getfixturevalue("sekmet"), "R4"
    return simulator_of(request.param).url, request.param


# --- on every server alike


def test_the_adapter_has_the_capabilities_of_the_seam():
    adapter = FhirAdapter("alpha", http=HttpClient("alpha", base_url="http://x"))
    assert isinstance(adapter, Finds)
    assert isinstance(adapter, Locates)
    accepted: Adapter = adapter
    assert accepted is adapter


async def test_every_study_comes_with_its_patient(peer):
    async with node_on(*peer) as node:
        rows, report = await node.ask()
    assert sorted(row.study for row in rows) == ["1.2.9.0", "1.2.9.1", "1.2.9.2"]
    assert sorted(text(row.attributes, tag("PatientName")) for row in rows) == sorted(NAMES)
    assert report.complete_rows


@pytest.mark.parametrize(
    "asked",
    [
        match("StudyInstanceUID", "1.2.9.1"),
        match("PatientID", "P1"),
        match("SeriesInstanceUID", "1.2.9.1.1"),
        match("SOPInstanceUID", "1.2.9.1.1.1"),
    ],
)
async def test_a_key_with_a_parameter_of_its_own_is_matched_by_the_server(peer, asked):
    async with node_on(*peer) as node:
        rows, report = await node.ask(asked)
    assert [row.study for row in rows] == ["1.2.9.1"]
    assert len(report.matched) == 1
    assert not report.ignored


async def test_an_accession_number_is_found_wherever_the_server_has_it(peer):
    async with node_on(*peer) as node:
        rows, _ = await node.ask(match("AccessionNumber", "A2"))
    assert "1.2.9.2" in [row.study for row in rows]


async def test_a_modality_a_day_and_a_list_of_uids_narrow_the_search(peer):
    day = match("StudyDate", "20200101", operator=Operator.EXACT)
    uids = match("StudyInstanceUID", "1.2.9.0", "1.2.9.1", operator=Operator.LIST)
    async with node_on(*peer) as node:
        assert [row.study for row in (await node.ask(match("ModalitiesInStudy", "CT")))[0]] == ["1.2.9.0"]
        days = {row.study for row in (await node.ask(day))[0]}
        assert "1.2.9.0" in days, "23:30 four hours west of Greenwich is the next day to a server that reckons in UTC"
        assert "1.2.9.2" not in days
        assert len((await node.ask(uids))[0]) == 2


@pytest.mark.parametrize("asked", ["Müller^Eva", "muller*"])
async def test_a_name_is_found_with_and_without_diacritics(peer, asked):
    operator = Operator.WILDCARD if "*" in asked else Operator.EXACT
    async with node_on(*peer) as node:
        rows, report = await node.ask(match("PatientName", asked, operator=operator))
    assert {row.study for row in rows} >= {"1.2.9.0", "1.2.9.1"}
    assert report.ignored


async def test_series_and_instances_are_read_from_the_study(peer):
    async with node_on(*peer) as node:
        series, _ = await node.ask(level=Level.SERIES, study="1.2.9.2")
        instances, _ = await node.ask(level=Level.IMAGE, study="1.2.9.2", series="1.2.9.2.1")
    assert [row.series for row in series] == ["1.2.9.2.1"]
    assert [row.instance for row in instances] == ["1.2.9.2.1.1"]


async def test_no_match_is_an_empty_search(peer):
    async with node_on(*peer) as node:
        assert (await node.ask(match("PatientID", "nobody")))[0] == []
        assert await node.adapter.locate(Ref("1.2.3.4.5")) == []


async def test_the_limit_bounds_the_studies(peer):
    async with node_on(*peer) as node:
        assert len((await node.ask(limit=2))[0]) == 2


async def test_the_pixels_are_where_the_endpoint_says(peer):
    ref = Ref("1.2.9.1", "1.2.9.1.1")
    async with node_on(*peer, allow=[PIXELS]) as node:
        assert await node.adapter.locate(ref) == [Location("dicomweb", PIXELS, ref)]


async def test_an_endpoint_outside_the_allow_list_is_refused_by_the_name_of_its_host(peer):
    async with node_on(*peer, allow=[]) as node:
        with pytest.raises(NodeRefused, match=r"127\.0\.0\.1"):
            await node.adapter.locate(Ref("1.2.9.1"))


async def test_the_probe_reads_the_capability_statement(peer):
    url, version = peer
    async with node_on(url, version) as node:
        probe = await node.adapter.probe()
    assert probe.product
    assert probe.details["fhirVersion"] == version
    assert "modality" in probe.details["searchParam"].split()
    assert set(probe.capabilities) == {"find", "locate"}
    assert probe.advice == ()


# --- on the simulator


async def test_the_wrong_version_in_the_node_file_is_noticed(simulator_of):
    async with node_on(simulator_of("R5").url, "R4") as node:
        assert 'version = "R5"' in (await node.adapter.probe()).advice


async def test_pages_are_followed_to_their_end(simulator_of):
    simulator = simulator_of("R4", page_size=1)
    async with node_on(simulator.url) as node:
        rows, report = await node.ask()
    assert len(rows) == 3
    assert not report.truncated
    assert simulator.operations["next_page"] == 2


async def test_the_capability_statement_is_asked_once_for_all_who_wait(simulator_of):
    simulator = simulator_of("R4")
    async with node_on(simulator.url) as node:
        await asyncio.gather(*(node.ask() for _ in range(5)))
        await node.ask()
    assert simulator.operations["metadata"] == 1


async def test_the_order_in_a_service_request_is_followed_to_its_accession_number(simulator_of):
    simulator = simulator_of("R4", profile="mii", service_requests=True)
    async with node_on(simulator.url, "R4", "mii-bildgebung") as node:
        rows, _ = await node.ask(match("AccessionNumber", "A1"))
        everything, _ = await node.ask()
    assert [row.study for row in rows] == ["1.2.9.1"]
    assert {text(row.attributes, tag("AccessionNumber")) for row in everything} == {"A0", "A1", "A2"}


async def test_a_parameter_missing_from_the_self_link_is_reported_as_ignored(scripted):
    async def script(exchange):
        target = urlsplit(exchange.target)
        if target.path == "/metadata":
            names = [{"name": name} for name in ("identifier", "modality")]
            resource = {"type": "ImagingStudy", "searchParam": names}
            body = {"resourceType": "CapabilityStatement", "rest": [{"resource": [resource]}]}
        else:
            own = {"relation": "self", "url": "http://h/ImagingStudy?identifier=x"}
            body = {"resourceType": "Bundle", "type": "searchset", "link": [own]}
        await exchange.reply(200, json.dumps(body).encode())

    server = await scripted(script)
    async with node_on(server.url) as node:
        _, report = await node.ask(match("StudyInstanceUID", "1.2"), match("ModalitiesInStudy", "CT"))
    assert any("identifier" in path for path in report.matched)
    assert any("modality" in path for path in report.ignored)


def a_study(number: int) -> dict:
    return {
        "resourceType": "ImagingStudy",
        "id": f"s{number}",
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:1.2.{number}"}],
        "subject": {"reference": f"Patient/p{number}"},
    }


class Refusing:
    """A server that refuses some parameters and includes, though it lists the bases of them all."""

    def __init__(self, *refused: str) -> None:
        self.refused, self.searches = set(refused), []

    async def __call__(self, exchange):
        target = urlsplit(exchange.target)
        if target.path == "/metadata":
            names = [{"name": name} for name in ("identifier", "patient", "subject", "basedon", "started")]
            resource = {"type": "ImagingStudy", "searchParam": names}
            body = {"resourceType": "CapabilityStatement", "rest": [{"resource": [resource]}]}
            return await exchange.reply(200, json.dumps(body).encode())
        if target.path != "/ImagingStudy":
            return await exchange.reply(404)
        names = [name for name, _ in parse_qsl(target.query)]
        if self.refused & set(names):
            return await exchange.reply(400, b'{"resourceType":"OperationOutcome"}')
        self.searches.append(names)
        study = a_study(1)
        body = {"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": study}]}
        return await exchange.reply(200, json.dumps(body).encode())


async def test_a_refused_chain_is_left_out_and_reported_as_ignored(scripted):
    refusing = Refusing("patient.identifier")
    server = await scripted(refusing)
    async with node_on(server.url) as node:
        rows, report = await node.ask(match("PatientID", "P1"))
    assert len(rows) == 1
    assert report.ignored
    assert refusing.searches == [["_include", "_include", "_count"]]


async def test_a_refused_identifier_modifier_leaves_the_chain(scripted):
    refusing = Refusing("subject:identifier")
    server = await scripted(refusing)
    async with node_on(server.url) as node:
        rows, _ = await node.ask(match("PatientID", "P1"))
    assert len(rows) == 1
    assert all("patient.identifier" in names for names in refusing.searches)


async def test_a_refused_include_is_left_out(scripted):
    refusing = Refusing("_include")
    server = await scripted(refusing)
    async with node_on(server.url) as node:
        assert len((await node.ask())[0]) == 1
    assert refusing.searches == [["_count"]]


async def test_a_server_that_refuses_even_a_plain_search_is_out_of_protocol(scripted):
    server = await scripted(Refusing("_count"))
    async with node_on(server.url) as node:
        with pytest.raises(NodeProtocolError, match="400"):
            await node.ask()


async def test_references_are_read_for_at_most_two_hundred_resources_and_four_at_once(scripted):
    reading, most, reads = 0, 0, 0

    async def script(exchange):
        nonlocal reading, most, reads
        if exchange.target.startswith("/metadata"):
            resource = {"type": "ImagingStudy", "searchParam": [{"name": "identifier"}], "searchInclude": ["x"]}
            body = {"resourceType": "CapabilityStatement", "rest": [{"resource": [resource]}]}
        elif exchange.target.startswith("/Patient"):
            reading, reads = reading + 1, reads + 1
            most = max(most, reading)
            await asyncio.sleep(0.01)
            reading -= 1
            body = {"resourceType": "Patient", "id": exchange.target[9:], "identifier": [{"value": "P"}]}
        else:
            entry = [{"resource": a_study(number)} for number in range(230)]
            body = {"resourceType": "Bundle", "type": "searchset", "entry": entry}
        await exchange.reply(200, json.dumps(body).encode())

    server = await scripted(script)
    async with node_on(server.url) as node:
        rows, _ = await node.ask()
    assert len(rows) == 230
    assert (reads, most) == (200, 4)


# --- faults


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"resourceType":"ImagingStudy"}',
        b'{"resourceType":"Bundle","type":"collection"}',
        b'{"resourceType":"Bundle","type":"searchset","entry":[1]}',
        b'{"resourceType":"Bundle","type":"searchset","entry":[{"resource":{"id":"x"}}]}',
        b'{"resourceType":"Bundle","type":"searchset","link":[1]}',
    ],
)
async def test_anything_but_a_searchset_is_out_of_protocol(scripted, body):
    async def script(exchange):
        if exchange.target == "/metadata":
            resource = {"type": "ImagingStudy", "searchParam": [{"name": "identifier"}]}
            statement = {"resourceType": "CapabilityStatement", "rest": [{"resource": [resource]}]}
            return await exchange.reply(200, json.dumps(statement).encode())
        return await exchange.reply(200, body)

    server = await scripted(script)
    async with node_on(server.url) as node:
        with pytest.raises(NodeProtocolError):
            await node.ask()


async def test_garbage_instead_of_json_is_out_of_protocol(simulator_of):
    async with node_on(simulator_of("R4", garbage_json=True).url) as node:
        with pytest.raises(NodeProtocolError):
            await node.ask()


async def test_another_study_than_the_one_asked_for_is_out_of_protocol(simulator_of):
    async with node_on(simulator_of("R4", foreign_study=True).url, allow=[PIXELS]) as node:
        with pytest.raises(NodeProtocolError, match="another study"):
            await node.ask(level=Level.SERIES, study="1.2.9.1")
        with pytest.raises(NodeProtocolError, match="another study"):
            await node.adapter.locate(Ref("1.2.9.1"))


async def test_a_next_link_outside_the_allow_list_is_refused(scripted):
    async def script(exchange):
        if exchange.target == "/metadata":
            resource = {"type": "ImagingStudy", "searchParam": [{"name": "identifier"}]}
            body = {"resourceType": "CapabilityStatement", "rest": [{"resource": [resource]}]}
        else:
            links = [{"relation": "next", "url": "http://elsewhere.example/x"}]
            body = {"resourceType": "Bundle", "type": "searchset", "link": links}
        await exchange.reply(200, json.dumps(body).encode())

    server = await scripted(script)
    async with node_on(server.url) as node:
        with pytest.raises(NodeRefused, match=r"elsewhere\.example"):
            await node.ask()


async def test_next_links_in_a_circle_end_and_are_reported_as_truncated(scripted):
    async def script(exchange):
        if exchange.target == "/metadata":
            resource = {"type": "ImagingStudy", "searchParam": [{"name": "identifier"}]}
            body = {"resourceType": "CapabilityStatement", "rest": [{"resource": [resource]}]}
        else:
            links = [{"relation": "next", "url": "ImagingStudy?page=2"}]
            body = {"resourceType": "Bundle", "type": "searchset", "link": links}
        await exchange.reply(200, json.dumps(body).encode())

    server = await scripted(script)
    async with node_on(server.url) as node:
        _, report = await node.ask()
    assert report.truncated


async def test_a_server_without_next_links_is_seen_to_have_more_than_the_limit_by_its_total(scripted):
    async def script(exchange):
        target = urlsplit(exchange.target)
        if target.path == "/metadata":
            resource = {"type": "ImagingStudy", "searchParam": [{"name": "identifier"}]}
            body = {"resourceType": "CapabilityStatement", "rest": [{"resource": [resource]}]}
        elif target.path != "/ImagingStudy":
            return await exchange.reply(404)
        else:
            count = int(dict(parse_qsl(target.query))["_count"])
            entries = [{"resource": a_study(number)} for number in range(7)][:count]
            body = {"resourceType": "Bundle", "type": "searchset", "total": 7, "entry": entries}
        return await exchange.reply(200, json.dumps(body).encode())

    server = await scripted(script)
    async with node_on(server.url) as node:
        for limit, is_cut in ((3, True), (7, False), (9, False)):
            rows, report = await node.ask(limit=limit)
            assert (len(rows), report.truncated, report.gaps) == (min(limit, 7), is_cut, ())


async def test_a_server_that_does_not_search_studies_is_unsupported(scripted):
    async def script(exchange):
        await exchange.reply(200, b'{"resourceType":"CapabilityStatement"}')

    server = await scripted(script)
    async with node_on(server.url) as node:
        with pytest.raises(Unsupported):
            await node.ask()
        assert (await node.adapter.probe()).capabilities == ()


async def test_a_silent_server_is_a_timeout_and_a_missing_one_unreachable(simulator_of):
    timeouts = Timeouts(connect=1, first_byte=2, idle=1, total=0.5)
    async with node_on(simulator_of("R4", black_hole=True).url, timeouts=timeouts) as node:
        with pytest.raises(NodeTimeout):
            await node.ask()
    async with node_on("http://127.0.0.1:9") as node:
        with pytest.raises(NodeUnreachable):
            await node.adapter.probe()


async def test_series_at_different_services_are_located_one_by_one(scripted):
    def endpoint(number: int) -> dict:
        return {
            "resourceType": "Endpoint",
            "id": f"e{number}",
            "status": "active",
            "connectionType": [{"coding": [{"code": "dicom-wado-rs"}]}],
            "address": f"wado{number}/studies/1.2",
        }

    async def script(exchange):
        if exchange.target == "/metadata":
            resource = {"type": "ImagingStudy", "searchParam": [{"name": "identifier"}]}
            body = {"resourceType": "CapabilityStatement", "rest": [{"resource": [resource]}]}
        elif exchange.target.startswith("/Endpoint/"):
            body = endpoint(int(re.sub(r"\D", "", exchange.target)))
        else:
            series = [{"uid": f"1.2.{n}", "endpoint": [{"reference": f"Endpoint/e{n}"}]} for n in (1, 2)]
            uid = [{"system": "urn:dicom:uid", "value": "urn:oid:1.2"}]
            study = {"resourceType": "ImagingStudy", "id": "s", "identifier": uid, "series": series}
            body = {"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": study}]}
        await exchange.reply(200, json.dumps(body).encode())

    server = await scripted(script)
    async with node_on(server.url, "R5") as node:
        found = await node.adapter.locate(Ref("1.2"))
        one = await node.adapter.locate(Ref("1.2", "1.2.2", "1.2.2.9"))
    assert found == [
        Location("dicomweb", f"{server.url}/wado1", Ref("1.2", "1.2.1")),
        Location("dicomweb", f"{server.url}/wado2", Ref("1.2", "1.2.2")),
    ]
    assert one == [Location("dicomweb", f"{server.url}/wado2", Ref("1.2", "1.2.2", "1.2.2.9"))]
