"""`_lastUpdated` and 410: two gateways on one Redis before two hospitals that change, fall silent and lose studies."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from gateway.simulators._directory import Directory
from gateway.simulators.dicomweb import DicomwebSimulator
from tests import peers
from tests.faults.leftovers import eventually
from tests.running import Gateway
from tests.specimens import specimen, uid

pytestmark = pytest.mark.interop
STUDIES = "/fhir/r4/ImagingStudy"
BEGINNING = "1970"
Resource = dict[str, Any]


@dataclass
class Hospital:
    """An archive that the test writes to."""

    web: DicomwebSimulator
    root: Path

    def put(self, study: str, number: int = 1, **more: Any) -> None:
        specimen(self.root / study, f"PAT-{study}", study, "1", number, **more)
        self.web.directory = Directory(self.root)

    def drop(self, study: str) -> None:
        shutil.rmtree(self.root / study)
        self.web.directory = Directory(self.root)

    def has(self, study: str) -> bool:
        return (self.root / study).exists()

    @contextmanager
    def silent(self) -> Iterator[None]:
        self.web.options = dataclasses.replace(self.web.options, status_500=True)
        yield
        self.web.options = dataclasses.replace(self.web.options, status_500=False)


@dataclass
class Region:
    """Two hospitals behind two gateways: `one` keeps no answer of a node, `two` believes for minutes what it has heard."""

    a: Hospital
    b: Hospital
    one: Gateway
    two: Gateway
    redis: peers.Redis


@contextmanager
def opened(directory: Path, redis: peers.Redis) -> Iterator[Region]:
    for name in ("a", "b"):
        (directory / name).mkdir()
    redis_of = {"redis_url": redis.url, "secret": "the same at both places"}
    nothing = {"find_ttl": 0, "location_ttl": 0, "negative_ttl": 0}
    much = {"find_ttl": 600, "location_ttl": 600, "negative_ttl": 600}
    with DicomwebSimulator(directory / "a") as a, DicomwebSimulator(directory / "b") as b:
        own = {"adapter": "dicomweb", "patient_id_issuer": "I", "quirks": [], "retries": 0, "breaker": {"failures": 0}}
        nodes = [
            {"id": name, "name": name, "connection": {"url": web.url}, **own} for name, web in (("a", a), ("b", b))
        ]
        with (
            Gateway(nodes, **redis_of, **nothing) as one,
            Gateway(nodes, **redis_of, **much) as two,
        ):
            yield Region(Hospital(a, directory / "a"), Hospital(b, directory / "b"), one, two, redis)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    with peers.redis() as redis, opened(tmp_path_factory.mktemp("region"), redis) as region:
        yield region


@pytest.fixture
def region(shared: Region) -> Region:
    """Two empty hospitals, and nothing kept or recorded of what was in them before."""
    for name, hospital in (("a", shared.a), ("b", shared.b)):
        for study in list(hospital.root.iterdir()):
            shutil.rmtree(study)
        hospital.web.directory = Directory(hospital.root)
        assert shared.two.app is not None
        answers = shared.two.app.state.estate.pipeline.federation.answers
        asyncio.run_coroutine_threadsafe(answers.purge_node(name), shared.two.loop).result(10)
    client = Redis.from_url(shared.redis.url)
    if recorded := client.keys("gw:seen:*"):
        client.delete(*recorded)
    return shared


def matches(answer: httpx.Response) -> dict[str, Resource]:
    assert answer.status_code == 200, answer.text
    entries = answer.json().get("entry", [])
    return {each["resource"]["id"]: each["resource"] for each in entries if each["search"]["mode"] == "match"}


def is_partial(answer: httpx.Response) -> bool:
    return any(entry["search"]["mode"] == "outcome" for entry in answer.json().get("entry", []))


def now(gateway: Gateway) -> str:
    """The moment of a search that finds nothing."""
    return str(gateway.get(f"{STUDIES}?_lastUpdated=gt2999").json()["meta"]["lastUpdated"])


def since(gateway: Gateway, moment: str, more: str = "") -> set[str]:
    return {*matches(gateway.get(f"{STUDIES}?_lastUpdated=gt{moment}{more}"))}


def moment_of(gateway: Gateway, study: str) -> str:
    answer = gateway.get(f"{STUDIES}/{uid(study)}")
    assert answer.status_code == 200, answer.text
    return str(answer.json()["meta"]["lastUpdated"])


def synchronise(gateway: Gateway, moment: str, copy: dict[str, Resource]) -> str:
    """Brings a copy up to date as the CapabilityStatement says: the moment to go on from, which a partial answer leaves."""
    answer = gateway.get(f"{STUDIES}?_lastUpdated=gt{moment}&_count=3")
    began, whole = answer.json()["meta"]["lastUpdated"], True
    while True:
        copy.update(matches(answer))
        whole = whole and not is_partial(answer)
        following = [link["url"] for link in answer.json()["link"] if link["relation"] == "next"]
        if not following:
            return began if whole else moment
        answer = gateway.client.get(following[0])


def is_recorded(region: Region, studies: int) -> bool:
    """Whether so many are written down, which nobody who asked waits for."""
    client = Redis.from_url(region.redis.url)
    return eventually(lambda: len(client.keys("gw:seen:*")) - len(client.keys("gw:seen:asks:*")) >= studies, 20)


def facts(studies: dict[str, Resource]) -> dict[str, Resource]:
    return {study: {name: value for name, value in each.items() if name != "meta"} for study, each in studies.items()}


def change(region: Region, rng: random.Random, step: int) -> None:
    """Something appears or changes; no study goes altogether."""
    known = sorted({path.name for hospital in (region.a, region.b) for path in hospital.root.iterdir()})
    day = f"2026030{rng.randint(1, 9)}"
    if not known or rng.random() < 0.4:
        for hospital in rng.choice(([region.a], [region.b], *2 * ([region.a, region.b],))):
            hospital.put(f"s{step}", StudyDate=day)
        return
    study = rng.choice(known)
    holders = [hospital for hospital in (region.a, region.b) if hospital.has(study)]
    holder = rng.choice(holders)
    what = rng.randrange(4)
    if what < 2 and len(holders) == 2:
        holder.drop(study)
    elif what % 2:
        holder.put(study, rng.randint(1, 4), StudyDate=day, AccessionNumber=f"A{step}")
    else:
        holder.put(study, 5 + step)


def test_a_synchronisation_sees_everything_that_appeared_or_changed(region: Region) -> None:
    """Whatever others ask meanwhile, at a gateway that believes old answers as well, and whoever is silent at times."""
    rng, done = random.Random(4), threading.Event()

    def others() -> None:
        mine = random.Random(5)
        with httpx.Client(timeout=60) as client:
            while not done.is_set():
                gateway = mine.choice((region.one, region.two))
                query = mine.choice(("", "?modality=OT", f"?started=2026-03-0{mine.randint(1, 9)}", "?modality:not=CT"))
                client.get(f"{gateway.url}{STUDIES}{query}", headers={"Cache-Control": "no-cache"})

    crowd = threading.Thread(target=others)
    crowd.start()
    copy: dict[str, Resource] = {}
    moment, partial = BEGINNING, 0
    try:
        for step in range(30):
            for each in range(rng.randint(0, 2)):
                change(region, rng, 10 * step + each)
            gateway = rng.choice((region.one, region.two))
            if rng.random() < 0.25:
                with rng.choice((region.a, region.b)).silent():
                    after = synchronise(gateway, moment, copy)
                partial += after == moment
            else:
                after = synchronise(gateway, moment, copy)
                truth = region.one.get(f"{STUDIES}?_count=1000")
                assert not is_partial(truth)
                assert facts(copy) == facts(matches(truth)), step
            moment = after
    finally:
        done.set()
        crowd.join()
    assert partial > 0
    # The last words of everybody are written down by now: nothing is new any more, and then nothing comes.
    moment = synchronise(region.one, moment, copy)
    region.one.get(STUDIES)
    assert not since(region.one, now(region.one))


def test_both_gateways_say_since_when_and_every_prefix_goes_by_it(region: Region) -> None:
    region.a.put("old")
    first = now(region.one)
    assert since(region.one, first) == {uid("old")}
    between = now(region.two)
    region.a.put("new")
    assert since(region.two, between) == {uid("new")}
    old, new = moment_of(region.one, "old"), moment_of(region.two, "new")
    assert first < old < new
    assert moment_of(region.two, "old") == old
    for condition, wanted in {
        f"eq{old}": {"old"}, f"ne{old}": {"new"}, f"gt{old}": {"new"}, f"ge{new}": {"new"}, f"lt{new}": {"old"},
        f"le{new}": {"old", "new"}, f"sa{old}": {"new"}, f"eb{new}": {"old"}, f"ap{old[:10]}": {"old", "new"},
        f"{old},{new}": {"old", "new"}, f"gt{old}&_lastUpdated=lt{new}": set(), "gt2999": set(), "2026-13": None,
    }.items():  # fmt: skip
        for root in ("/fhir/r4", "/fhir/r5"):
            answer = region.two.get(f"{root}/ImagingStudy?_lastUpdated={condition}")
            if wanted is None:
                assert (answer.status_code, answer.json()["issue"][0]["expression"]) == (400, ["http._lastUpdated"])
                continue
            assert {*matches(answer)} == set(map(uid, wanted)), condition
            assert answer.headers["cache-control"] == "no-store"
    for asked in ("$export?_typeFilter=ImagingStudy%3F_lastUpdated%3Dgt2026", "Patient?name=x&_lastUpdated=gt2026"):
        refused = region.one.get(f"/fhir/r4/{asked}", headers={"Prefer": "respond-async"})
        assert (refused.status_code, "_lastUpdated" in refused.text) == (400, True), asked
    counted = region.two.get(f"{STUDIES}?_lastUpdated=gt{old}&_summary=count").json()
    assert counted["total"] == 1
    form = region.one.client.post(f"{STUDIES}/_search", data={"_lastUpdated": f"gt{old}", "modality": "OT"})
    (resource,) = matches(form).values()
    assert resource["meta"]["lastUpdated"] == new
    assert "gt" + old in form.json()["link"][0]["url"]


def test_a_silent_holder_changes_nothing_and_neither_does_its_return(region: Region) -> None:
    for hospital in (region.a, region.b):
        hospital.put("both")
    region.b.put("there")
    assert len(since(region.one, BEGINNING)) == 2
    moment = now(region.one)
    with region.b.silent():
        answer = region.two.get(f"{STUDIES}?_lastUpdated=gt{moment}")
        assert (is_partial(answer), matches(answer)) == (True, {})
        answer = region.one.get(f"{STUDIES}?_lastUpdated=lt{moment}")
        assert (is_partial(answer), {*matches(answer)}) == (True, {uid("both")})
        region.one.get(STUDIES)
        region.one.get(f"{STUDIES}/{uid('both')}")
    for gateway in (region.one, region.two):
        assert since(gateway, moment) == set()
    region.b.drop("both")
    assert since(region.two, moment) == {uid("both")}
    assert moment_of(region.one, "both") > moment


def test_a_search_that_one_holder_does_not_answer_is_no_change(region: Region) -> None:
    region.a.put("s", AccessionNumber="A1")
    region.b.put("s", AccessionNumber="B1")
    assert since(region.one, BEGINNING) == {uid("s")}
    moment = now(region.one)
    for number in ("A1", "B1"):
        assert since(region.one, moment, f"&identifier={number}") == set()
        assert {*matches(region.one.get(f"{STUDIES}?identifier={number}&_lastUpdated=lt{moment}"))} == {uid("s")}


def test_a_study_that_begins_to_match_is_new_whatever_of_it_changed(region: Region) -> None:
    region.a.put("s", PatientName="Smyth^Ada")
    assert since(region.one, BEGINNING) == {uid("s")}
    moment = now(region.one)
    region.a.put("s", PatientName="Smith^Ada")
    assert since(region.one, moment, "&patient.family=Smith") == {uid("s")}


def test_what_a_node_that_comes_back_holds_is_new_to_who_could_not_ask_it(region: Region) -> None:
    region.a.put("s")
    region.b.put("t")
    assert len(since(region.one, BEGINNING)) == 2
    nodes = [{"id": "a", "name": "a", "adapter": "dicomweb", "connection": {"url": region.a.web.url}, "quirks": []}]
    with Gateway(nodes, redis_url=region.redis.url, secret="the same at both places") as without_b:
        assert len(since(without_b, BEGINNING)) == 1
        moment = now(without_b)
    assert uid("t") in since(region.one, moment)
    moment = now(region.one)
    assert since(region.one, moment) == set()


def test_a_read_never_shows_what_was_under_the_moment_of_what_is(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.federation.sighted._OLD", 0.0)
    region.a.put("s")
    path = f"{STUDIES}/{uid('s')}"
    assert matches(region.two.get(STUDIES))[uid("s")]["numberOfInstances"] == 1
    assert region.two.get(path).json()["numberOfInstances"] == 1
    region.a.put("s", 2)
    (study,) = matches(region.one.get(f"{STUDIES}?_lastUpdated=gt{BEGINNING}")).values()
    assert study["numberOfInstances"] == 2
    read = region.two.get(path, headers={"Cache-Control": "no-cache"}).json()  # what it believes of the nodes is old
    assert read["numberOfInstances"] == 1
    assert "meta" not in read


def test_of_many_studies_with_a_modality_the_few_new_ones_are_told_as_whole(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.federation.federate.MOST_COMPLETED", 3)
    for number in range(5):
        region.a.put(f"s{number}")
    assert is_partial(region.one.get(f"{STUDIES}?_lastUpdated=gt{BEGINNING}&modality=OT"))
    moment = now(region.one)
    region.b.put("new")
    answer = region.one.get(f"{STUDIES}?_lastUpdated=gt{moment}&modality=OT")
    assert ({*matches(answer)}, is_partial(answer)) == ({uid("new")}, False)


def test_what_was_seen_and_is_deleted_is_410_and_comes_back_as_changed(region: Region) -> None:
    for hospital in (region.a, region.b):
        hospital.put("s")
    assert len(matches(region.one.get(STUDIES))) == 1
    assert region.two.get(f"/dicom-web/studies/{uid('s')}/metadata").status_code == 200
    before = moment_of(region.one, "s")
    paths = [
        f"/dicom-web/studies/{uid('s')}",
        f"/dicom-web/studies/{uid('s')}/metadata",
        f"/dicom-web/studies/{uid('s')}/series/{uid('s', '1')}/rendered",
        f"{STUDIES}/{uid('s')}",
    ]
    assert region.one.get(f"{paths[0]}/series/1.2.3").status_code == 404  # the study is there
    region.a.drop("s")
    assert moment_of(region.one, "s") > before  # a copy is less, and the endpoints are others
    region.b.drop("s")
    with region.a.silent():
        for path in paths:
            assert region.one.get(path).status_code == 503, path
    for path in paths:
        gone = region.one.get(path)
        assert (gone.status_code, gone.headers["cache-control"]) == (410, "no-store"), path
        if path.startswith("/fhir"):
            assert gone.json()["issue"][0]["code"] == "deleted"
        else:
            assert (gone.headers["content-type"], gone.json()["code"]) == ("application/problem+json", "GW115")
    # The other gateway remembers where the study was, goes there, and finds out.
    assert region.two.get(paths[0]).status_code == 410
    for path in (f"/dicom-web/studies/{uid('never')}", f"{STUDIES}/{uid('never')}", f"{STUDIES}/nonsense"):
        assert region.one.get(path).status_code == 404
    moment = now(region.one)
    region.b.put("s")
    assert region.one.get(paths[0]).status_code == 200
    assert since(region.one, moment) == {uid("s")}
    assert moment_of(region.one, "s") > moment


def test_who_never_saw_a_study_is_not_told_that_it_was_there(region: Region) -> None:
    region.a.put("s")
    assert len(matches(region.one.get(f"{STUDIES}?node=a"))) == 1
    assert is_recorded(region, 1)
    region.a.drop("s")
    for root, status in (("a", 410), ("b", 404)):
        assert region.one.get(f"/nodes/{root}/dicom-web/studies/{uid('s')}").status_code == status
        assert region.one.get(f"{STUDIES}/{uid('s')}?node={root}").status_code == status
    assert region.two.get("/dicom-web/studies", params={"StudyInstanceUID": uid("s")}).json() == []
    for number, (study, more) in enumerate((("whole", ""), ("told", "/metadata"))):  # what was retrieved was seen, too
        region.a.put(study)
        path = f"/dicom-web/studies/{uid(study)}"
        assert region.one.get(path + more).status_code == 200
        assert is_recorded(region, 2 + number)
        region.a.drop(study)
        assert region.one.get(path).status_code == 410


def test_a_study_that_was_asked_for_too_early_is_not_called_deleted(region: Region) -> None:
    path = f"{STUDIES}/{uid('s')}"
    assert region.two.get(path).status_code == 404  # and this gateway believes it for minutes
    region.a.put("s")
    assert len(matches(region.one.get(STUDIES))) == 1
    assert is_recorded(region, 1)
    doubtful = region.two.get(path)  # it asks, before it calls what was seen deleted
    assert (doubtful.status_code, doubtful.headers["retry-after"]) == (503, "1")
    assert region.two.get(path).status_code == 200


def test_a_kept_answer_stays_as_it_is(region: Region) -> None:
    region.a.put("s")
    path = f"{STUDIES}?patient.identifier=PAT-s"
    first = region.two.get(path)
    assert "lastUpdated" not in first.text
    assert since(region.two, BEGINNING) == {uid("s")}
    again = region.two.get(path)
    assert (again.content, again.headers["etag"]) == (first.content, first.headers["etag"])
    assert "merge" not in again.headers["server-timing"]
    read = f"{STUDIES}/{uid('s')}"
    etag = region.two.get(read).headers["etag"]
    assert region.two.get(read, headers={"If-None-Match": etag}).status_code == 304
    assert (
        region.one.get(read).json()["meta"]
        == region.two.get(read, headers={"Cache-Control": "no-cache"}).json()["meta"]
    )


def test_nobody_is_named_in_redis_and_a_record_ends(region: Region) -> None:
    region.a.put("s", AccessionNumber="ACC-77", StudyDescription="Knee of somebody")
    assert since(region.one, BEGINNING) == {uid("s")}
    client = Redis.from_url(region.redis.url)
    (asks,) = client.keys("gw:seen:asks:*")
    (key,) = set(client.keys("gw:seen:*")) - {asks}
    record = client.hgetall(key)
    text = repr((asks, client.get(asks), key, record))
    assert [word for word in ("PAT-s", uid("s"), "ACC-77", "Knee", "Specimen") if word in text] == []
    assert [name.partition(b"/")[0] for name in record] == [b"a"]
    left = client.pttl(key) / 86_400_000
    assert 399 < left <= 400
    client.delete(key)
    moment = now(region.two)
    assert since(region.two, moment) == {uid("s")}  # forgotten is seen anew: it comes once too often, never too seldom


def test_without_its_redis_the_gateway_says_so_and_does_everything_else(tmp_path: Path) -> None:
    with peers.redis() as redis, opened(tmp_path, redis) as region:
        for study in ("s", "gone"):
            region.a.put(study)
        assert len(since(region.one, BEGINNING)) == 2
        region.a.drop("gone")
        assert region.one.get(f"{STUDIES}/{uid('gone')}").status_code == 410
        redis.kill()
        for gateway in (region.one, region.two):
            refused = gateway.get(f"{STUDIES}?_lastUpdated=gt{BEGINNING}")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            (issue,) = refused.json()["issue"]
            assert issue["expression"] == ["http._lastUpdated"]
            assert "Redis" in issue["diagnostics"]
            assert {*matches(gateway.get(STUDIES))} == {uid("s")}
            assert "meta" not in gateway.get(f"{STUDIES}/{uid('s')}").json()
        assert region.one.get(f"{STUDIES}/{uid('gone')}").status_code == 404
        with peers.redis(redis.port):
            assert eventually(lambda: region.one.get(f"{STUDIES}?_lastUpdated=gt{BEGINNING}").status_code == 200, 20)
            assert since(region.one, BEGINNING) == {uid("s")}


def test_a_gateway_without_a_redis_of_its_own_refuses_by_name(tmp_path: Path) -> None:
    with DicomwebSimulator(tmp_path) as web:
        node = {"id": "a", "name": "a", "adapter": "dicomweb", "connection": {"url": web.url}}
        with Gateway([node]) as gateway:
            refused = gateway.get(f"{STUDIES}?_lastUpdated=gt2026")
            assert refused.status_code == 400
            assert "GATEWAY_REDIS_URL" in refused.json()["issue"][0]["diagnostics"]
            lenient = gateway.get(f"{STUDIES}?_lastUpdated=gt2026", headers={"Prefer": "handling=lenient"})
            assert (lenient.status_code, is_partial(lenient)) == (200, True)
            statement = gateway.get("/fhir/r4/metadata").json()["rest"][0]
            assert "_lastUpdated" not in [each["name"] for each in statement["resource"][0]["searchParam"]]
            assert "_lastUpdated: when a study was first seen" in statement["documentation"]
