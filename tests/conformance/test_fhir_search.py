"""ImagingStudy search, parameter by parameter: what is found is what the nodes' files call for, truth computed from the files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from national_nodes import Demo
from pydicom import dcmread

from gateway.simulators.corpus import HeldStudy

Resource = dict[str, Any]


@dataclass(frozen=True)
class Truth:
    """One study of one patient, over all files of it. `moment` is `started` where date, time and zone are known."""

    uid: str
    patient_id: str
    nodes: frozenset[str]
    accession: str
    modalities: frozenset[str]
    body_parts: frozenset[str]
    series: frozenset[str]
    instances: frozenset[str]
    sop_classes: frozenset[str]
    day: date | None
    moment: datetime | None


@pytest.fixture(scope="session")
def truths(demo: Demo) -> list[Truth]:
    held: dict[tuple[str, str], list[HeldStudy]] = {}
    for study in demo.corpus.studies():
        held.setdefault((study.study_uid, study.patient_id), []).append(study)
    return [truth_of(demo, studies) for studies in held.values()]


def truth_of(demo: Demo, studies: list[HeldStudy]) -> Truth:
    first = studies[0]
    head = dcmread(first.instances[0].path, stop_before_pixels=True)
    parts = {
        str(dcmread(series.instances[0].path, stop_before_pixels=True).get("BodyPartExamined") or "")
        for study in studies
        for series in study.series
    }
    day = datetime.strptime(first.study_date.replace(".", ""), "%Y%m%d").date() if first.study_date else None
    clock = re.sub(r"[^0-9]", "", str(head.get("StudyTime") or "").partition(".")[0])
    zone: Any = ZoneInfo(demo.corpus.nodes[first.node].hospital.time_zone)
    if first.timezone_offset:
        sign = -1 if first.timezone_offset[0] == "-" else 1
        zone = timezone(sign * timedelta(hours=int(first.timezone_offset[1:3]), minutes=int(first.timezone_offset[3:])))
    moment = (
        datetime.combine(day, datetime.strptime(clock.ljust(6, "0"), "%H%M%S").time(), zone) if day and clock else None
    )
    return Truth(
        uid=first.study_uid,
        patient_id=first.patient_id.strip(),
        nodes=frozenset(study.node for study in studies),
        accession=first.accession_number,
        modalities=frozenset(name for study in studies for name in study.modalities),
        body_parts=frozenset(parts - {""}),
        series=frozenset(series.series_uid for study in studies for series in study.series),
        instances=frozenset(instance.sop_instance_uid for study in studies for instance in study.instances),
        sop_classes=frozenset(instance.sop_class_uid for study in studies for instance in study.instances),
        day=day,
        moment=moment,
    )


def search(demo: Demo, query: str, status: int = 200, **kwargs: Any) -> Resource:
    answer = demo.get(f"/fhir/ImagingStudy?{query}", **kwargs)
    assert answer.status_code == status, answer.text[:400]
    found: Resource = answer.json()
    return found


def uids(bundle: Resource) -> list[str]:
    """The StudyInstanceUIDs of the matches, sorted."""
    matches = [entry["resource"] for entry in bundle.get("entry", []) if entry["search"]["mode"] == "match"]
    return sorted(match["identifier"][0]["value"].removeprefix("urn:oid:") for match in matches)


def expect(demo: Demo, truths: list[Truth], query: str, pick: Callable[[Truth], bool]) -> None:
    wanted = sorted(truth.uid for truth in truths if pick(truth))
    assert uids(search(demo, f"{query}&_count=1000")) == wanted, query


def has(*names: str) -> Callable[[Truth], bool]:
    return lambda truth: bool(set(names) & truth.modalities)


CT, MG = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.1.2"
DCM, SCT = "http://dicom.nema.org/resources/ontology/DCM", "http://snomed.info/sct"
SEARCHES: list[Any] = [
    ("modality=MG", has("MG")),
    ("modality=MG,MR", has("MG", "MR")),
    (f"modality={DCM}|MR", has("MR")),
    ("modality=CT&modality=RTSTRUCT", lambda t: {"CT", "RTSTRUCT"} <= t.modalities),
    ("modality=RTSTRUCT,MG&modality=CT,MR", lambda t: has("RTSTRUCT", "MG")(t) and has("CT", "MR")(t)),
    ("modality=ZZ", lambda t: False),
    ("identifier=BE25-004711", lambda t: t.accession == "BE25-004711"),
    ("identifier=KR/25/0117,KR/25/0235", lambda t: t.accession in ("KR/25/0117", "KR/25/0235")),
    ("bodysite=BREAST", lambda t: "BREAST" in t.body_parts),
    (f"bodysite={SCT}|76752008", lambda t: "BREAST" in t.body_parts),
    ("body-site=76752008", lambda t: "BREAST" in t.body_parts),
    ("bodysite=BREAST,PELVIS", lambda t: bool({"BREAST", "PELVIS"} & t.body_parts)),
    ("bodysite=12921003&modality=MR", lambda t: "PELVIS" in t.body_parts and "MR" in t.modalities),
    ("status=available", lambda t: True),
    ("status=cancelled", lambda t: False),
    ("status=available,registered&modality=MG", has("MG")),
    (f"dicom-class=urn:oid:{MG}", lambda t: MG in t.sop_classes),
    (f"dicom-class={MG}&started=ge2025-02-20", lambda t: MG in t.sop_classes and bool(t.day) and t.day >= date(2025, 2, 20)),
    ("endpoint=Endpoint/es-madrid", lambda t: "es-madrid" in t.nodes),
    ("endpoint=es-madrid,ee-tartu", lambda t: bool({"es-madrid", "ee-tartu"} & t.nodes)),
    ("endpoint=pl-krakow&endpoint=ee-tartu", lambda t: {"pl-krakow", "ee-tartu"} <= t.nodes),
    ("patient.identifier=99990000028", lambda t: t.patient_id == "99990000028"),
    ("patient:identifier=urn:oid:2.16.840.1.113883.3.4424.1.1.616|99990000028", lambda t: t.patient_id == "99990000028"),
    ("patient.identifier=http://fhir.de/sid/gkv/kvid-10|X000000017", lambda t: t.patient_id == "X000000017"),
    ("patient.identifier=http://nowhere.example|X000000017", lambda t: False),
    ("started=2025-02&modality=MG", lambda t: bool(t.day) and (t.day.year, t.day.month) == (2025, 2) and "MG" in t.modalities),
    ("started=ge2025-01-01&started=lt2025-03-01", lambda t: bool(t.day) and date(2025, 1, 1) <= t.day < date(2025, 3, 1)),
    ("started=2025-04-03,2025-05-07", lambda t: t.day in (date(2025, 4, 3), date(2025, 5, 7))),
    ("modality=MR&node=gr-athens", lambda t: "MR" in t.modalities and "gr-athens" in t.nodes),
]  # fmt: skip


@pytest.mark.parametrize(("query", "pick"), SEARCHES, ids=[query[:60] for query, _ in SEARCHES])
def test_a_search_finds_what_the_files_say(
    demo: Demo, truths: list[Truth], query: str, pick: Callable[[Truth], bool]
) -> None:
    expect(demo, truths, query, pick)


PREFIXES = ("", "eq", "ne", "gt", "lt", "ge", "le", "sa", "eb")
VALUES = (
    "2025", "2025-02", "2025-07-14", "2004-01-19", "2025-07-20",
    "2025-07-14T02:31", "2025-07-14T02:31:00", "2025-07-14T00:31:00Z", "2025-07-14T00:30:59Z",
    "2025-07-13T22:00:00-03:00", "2025-07-14T02:31:00%2B02:00", "2025-07-20T03:15:00+03:00", "2025-07-20T00:15Z",
)  # fmt: skip


def span(value: str) -> tuple[datetime, datetime, bool]:
    """[first moment, first moment after) of a FHIR date or dateTime, and whether it has an offset."""
    text = value.replace("%2B", "+")
    zone = re.search(r"(Z|[+-]\d\d:\d\d)$", text) if "T" in text else None
    bare = text[: zone.start()] if zone else text
    form = {4: "%Y", 7: "%Y-%m", 10: "%Y-%m-%d", 16: "%Y-%m-%dT%H:%M", 19: "%Y-%m-%dT%H:%M:%S"}[len(bare)]
    low = datetime.strptime(bare, form)
    high = {
        4: datetime(low.year + 1, 1, 1),
        7: (low + timedelta(days=31)).replace(day=1),
        10: low + timedelta(days=1),
        16: low + timedelta(minutes=1),
        19: low + timedelta(seconds=1),
    }[len(bare)]
    offset = datetime.fromisoformat("2025-01-01T00:00:00" + zone[0].replace("Z", "+00:00")).tzinfo if zone else UTC
    return low.replace(tzinfo=offset), high.replace(tzinfo=offset), bool(zone)


def answers(truth: Truth, prefix: str, value: str) -> bool:
    """FHIR R4 search 3.1.1.4.7 for a study with an offset: a searched value without one is the study's own local time."""
    low, high, has_zone = span(value)
    assert truth.day
    if truth.moment is None:
        first = datetime.combine(truth.day, datetime.min.time(), UTC)
        last = first + timedelta(days=1)
    else:
        first = truth.moment if has_zone else truth.moment.replace(tzinfo=UTC)
        last = first + timedelta(seconds=1)
    contains = low <= first and last <= high
    verdicts = {
        "": contains,
        "eq": contains,
        "ne": not contains,
        "gt": last > high,
        "lt": first < low,
        "ge": last > high or contains,
        "le": first < low or contains,
        "sa": first >= high,
        "eb": last <= low,
    }
    return verdicts[prefix]


@pytest.mark.parametrize("value", VALUES)
def test_started_is_compared_by_prefix_precision_and_offset(demo: Demo, truths: list[Truth], value: str) -> None:
    """Studies of the small hours among them: 02:31 in Lyon and 03:15 in Tartu lie on the UTC day's first minutes."""
    has_zone = span(value)[2]
    sure = [truth for truth in truths if truth.day and (truth.moment or not has_zone)]
    unsure = {truth.uid for truth in truths if truth not in sure}
    for prefix in PREFIXES:
        found = uids(search(demo, f"started={prefix}{value}&_count=1000"))
        wanted = sorted(truth.uid for truth in sure if answers(truth, prefix, value))
        assert [uid for uid in found if uid not in unsure] == wanted, prefix + value


def test_the_small_hours_are_there_to_be_tested(truths: list[Truth]) -> None:
    moments = {truth.moment.astimezone(UTC).isoformat() for truth in truths if truth.moment}
    assert {"2025-07-14T00:31:00+00:00", "2025-07-20T00:15:00+00:00"} <= moments


def test_every_study_is_found_by_each_of_its_uids(demo: Demo, truths: list[Truth]) -> None:
    for truth in truths:
        twice = [truth.uid] * sum(other.uid == truth.uid for other in truths)
        for value in (f"urn:dicom:uid|urn:oid:{truth.uid}", f"urn:oid:{truth.uid}", f"urn:dicom:uid|{truth.uid}"):
            assert uids(search(demo, f"identifier={value}")) == twice
        if len(twice) == 1:
            assert uids(search(demo, f"_id={truth.uid}")) == twice


@pytest.mark.parametrize("node", ["de-berlin", "fr-lyon", "pl-krakow", "es-madrid", "ee-tartu"])
def test_a_study_is_found_by_a_series_and_an_instance_of_it(demo: Demo, truths: list[Truth], node: str) -> None:
    """Asked of one node each: a hierarchical node has to be looked through, study by study."""
    for truth in [truth for truth in truths if node in truth.nodes and len(truth.nodes) == 1][:2]:
        series, instance = min(truth.series), min(truth.instances)
        assert uids(search(demo, f"series=urn:oid:{series}&node={node}")) == [truth.uid]
        assert uids(search(demo, f"instance={instance}&node={node}")) == [truth.uid]
        assert uids(
            search(demo, f"series={series}&instance=urn:oid:{instance}&node={node}&identifier=urn:oid:{truth.uid}")
        )
    assert uids(search(demo, f"series=1.2.3&node={node}")) == []


def test_a_patient_found_is_a_patient_to_search_by(demo: Demo, truths: list[Truth]) -> None:
    planted = {uid for name in ("unlinked", "uid-clash") for uid in demo.corpus.case(name).study_uids}
    for truth in truths:
        if not truth.patient_id or truth.uid in planted or truth.nodes not in ({"pl-krakow"}, {"de-berlin"}):
            continue
        (entry,) = [
            entry
            for entry in search(demo, f"identifier=urn:oid:{truth.uid}&node={min(truth.nodes)}")["entry"]
            if entry["search"]["mode"] == "match"
        ]
        subject = entry["resource"]["subject"]
        token = f"{subject['identifier']['system']}|{subject['identifier']['value']}"
        answers_ = [
            uids(search(demo, f"{query}&_count=1000"))
            for query in (
                f"patient={subject['reference']}",
                f"subject={subject['reference']}",
                f"patient={subject['reference'].removeprefix('Patient/')}",
                f"subject={demo.url}/fhir/{subject['reference']}",
                f"patient.identifier={token}",
                f"subject:identifier={token}",
            )
        ]
        assert truth.uid in answers_[0]
        assert all(one == answers_[0] for one in answers_)
        known = {t.uid for t in truths if t.patient_id == truth.patient_id and truth.nodes & t.nodes}
        assert known <= set(answers_[0])
        others = {t.uid for t in truths if t.patient_id != truth.patient_id} - planted
        assert not others & set(answers_[0])


def test_an_unknown_patient_id_finds_nothing(demo: Demo) -> None:
    assert uids(search(demo, "patient=Patient/00000000000000000000000000000000")) == []


def test_an_accession_number_with_its_issuer_is_told_from_one_without(demo: Demo) -> None:
    studies = search(demo, "node=de-berlin&_count=1000")["entry"]
    found = [i for e in studies for i in e["resource"].get("identifier", []) if i["value"].startswith("BE25")]
    assert found
    for identifier in found:
        token = f"{identifier.get('system', '')}|{identifier['value']}"
        assert len(uids(search(demo, f"identifier={token}"))) == 1
        assert uids(search(demo, f"identifier=http://other.example|{identifier['value']}")) == []


def test_summaries_and_counts(demo: Demo, truths: list[Truth]) -> None:
    tartu = [truth for truth in truths if "ee-tartu" in truth.nodes]
    for query in ("_summary=count", "_count=0"):
        bundle = search(demo, f"{query}&node=ee-tartu")
        assert (bundle["total"], bundle.get("entry"), len(bundle["link"])) == (len(tartu), None, 1)
    for kind in ("true", "text"):
        for entry in search(demo, f"_summary={kind}&node=ee-tartu")["entry"]:
            assert entry["resource"]["meta"]["tag"][0]["code"] == "SUBSETTED"
            assert "series" not in entry["resource"]
    for entry in search(demo, "_summary=text&node=ee-tartu")["entry"]:
        assert set(entry["resource"]) == {"resourceType", "id", "meta", "status", "subject"}
    assert len(search(demo, "node=ee-tartu&_count=3")["entry"]) == 3


def test_an_unknown_parameter_is_refused_or_named_as_ignored(demo: Demo) -> None:
    refused = search(demo, "foo=bar&modality=MG", 400)
    assert refused["issue"][0]["expression"] == ["http.foo"]
    lenient = {"prefer": "respond-async, handling=lenient"}
    bundle = search(demo, "foo=bar&modality=MG&_count=1000&node=ee-tartu", headers=lenient)
    assert uids(bundle) == uids(search(demo, "modality=MG&_count=1000&node=ee-tartu"))
    (outcome,) = [entry["resource"] for entry in bundle["entry"] if entry["search"]["mode"] == "outcome"]
    assert "foo" in outcome["issue"][0]["diagnostics"]
    (own,) = [each["url"] for each in bundle["link"] if each["relation"] == "self"]
    assert "foo" not in own
    assert uids(demo.get(own).json()) == uids(bundle)


def test_the_self_link_repeats_what_was_asked(demo: Demo) -> None:
    query = "modality=MG,MR&started=ge2025-01-01&_count=2&node=ee-tartu"
    bundle = search(demo, query)
    (own,) = [each["url"] for each in bundle["link"] if each["relation"] == "self"]
    assert demo.get(own).json() == bundle
    assert own.startswith(f"{demo.url}/fhir/ImagingStudy?")


BAD = [
    ("started=yesterday", "started"),
    ("started=2025-13", "started"),
    ("started=ge2025-02-30", "started"),
    ("started=xx2025", "started"),
    ("started=2025-01-01T25:00:00Z", "started"),
    ("identifier=urn:dicom:uid|urn:oid:1.2.x", "identifier"),
    ("identifier=http://system|", "identifier"),
    ("identifier=urn:oid:1.2.3,ABC", "identifier"),
    ("series=abc", "series"),
    ("instance=urn:oid:", "instance"),
    ("dicom-class=CT", "dicom-class"),
    ("modality=http://other|CT", "modality"),
    ("modality=|", "modality"),
    ("bodysite=http://other|x", "bodysite"),
    ("bodysite=999999999", "bodysite"),
    ("status=done", "status"),
    ("patient=Device/1", "patient"),
    ("subject=Group/1", "subject"),
    ("patient.identifier=http://system|", "patient.identifier"),
    ("_count=-1", "_count"),
    ("_count=many", "_count"),
    ("_count=1,2", "_count"),
    ("_sort=patient", "_sort"),
    ("_sort=started,_id", "_sort"),
    ("_summary=some", "_summary"),
    ("_include=ImagingStudy:basedon", "_include"),
    ("_cursor=x", "_cursor"),
    ("_count=5&_count=6", "_count"),
    ("_sort=_id&_sort=started", "_sort"),
    ("series=1.2&series=1.3", "series"),
    ("modality:above=CT", "modality:above"),
    ("patient.telecom=x", "patient.telecom"),
    ("_revinclude=Patient:x", "_revinclude"),
    ("_elements=nothing", "_elements"),
]


@pytest.mark.parametrize(("query", "parameter"), BAD)
def test_a_bad_value_is_400_and_names_its_parameter(demo: Demo, query: str, parameter: str) -> None:
    outcome = search(demo, query, 400)
    assert outcome["resourceType"] == "OperationOutcome"
    assert outcome["issue"][0]["expression"] == [f"http.{parameter}"]


def test_an_id_that_nothing_has_finds_nothing(demo: Demo) -> None:
    for identifier in ("no-such-id", "1.2.3.4.5"):
        assert uids(search(demo, f"_id={identifier}&node=ee-tartu")) == []
