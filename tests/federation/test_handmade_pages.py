"""What a second page, an odd date and an odd parameter say: nothing is lost, doubled or called more than it is."""

import re

import pytest
from running import Gateway

from tests.catalogue import catalogue_nodes, made_up
from tests.handmade import dicomweb_node, given, server
from tests.peers import free_port

SECRET = "s" * 20


def study(number, date="20240301", time="", patient="P1", **more):
    one = {
        "0020000D": {"vr": "UI", "Value": [f"1.2.3.{number}"]},
        "00100020": {"vr": "LO", "Value": [patient]},
        "00080020": {"vr": "DA", "Value": [date]} if date else {"vr": "DA"},
        "00080030": {"vr": "TM", "Value": [time]} if time else {"vr": "TM"},
        "00080061": {"vr": "CS", "Value": ["CT"]},
        "00201206": {"vr": "IS", "Value": [1]},
        "00201208": {"vr": "IS", "Value": [1]},
    }
    return {**one, **more}


class Pacs:
    """Looks at StudyDate and StudyInstanceUID, and may be down."""

    def __init__(self, studies, strict=False):
        self.studies, self.down, self.strict, self.asked = studies, False, strict, []

    def __call__(self, method, path, query, body, port):
        self.asked.append((path, query))
        if self.down:
            return given({}, status=503)
        if path.endswith("/series"):
            uid = path.split("/")[-2]
            return given(
                [
                    {
                        "0020000D": {"vr": "UI", "Value": [uid]},
                        "0020000E": {"vr": "UI", "Value": [uid + ".1"]},
                        "00080060": {"vr": "CS", "Value": ["CT"]},
                        "00201209": {"vr": "IS", "Value": [1]},
                    }
                ]
            )
        if path.endswith("/instances"):
            uid, series = path.split("/")[-4], path.split("/")[-2]
            return given(
                [
                    {
                        "0020000D": {"vr": "UI", "Value": [uid]},
                        "0020000E": {"vr": "UI", "Value": [series]},
                        "00080018": {"vr": "UI", "Value": [series + ".1"]},
                        "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]},
                    }
                ]
            )
        flat = {name: values[0] for name, values in query.items()}
        uids = flat.get("StudyInstanceUID") or flat.get("0020000D")
        date = flat.get("StudyDate") or flat.get("00080020")
        found = self.studies
        if uids:
            wanted = re.split(r"[,\\]", uids)
            found = [s for s in found if s["0020000D"]["Value"][0] in wanted]
        if date:
            low, dash, high = date.partition("-")
            if self.strict and dash and low and high and low > high:
                return given({}, status=400)
            high = high or ("99999999" if dash else low)
            found = [
                s for s in found if low <= s["00080020"].get("Value", [""])[0] <= high and "Value" in s["00080020"]
            ]
        offset = int(flat.get("offset", 0))
        return given(found[offset : offset + int(flat.get("limit", 10000))])


def ids(answer):
    assert answer.status_code == 200, answer.text
    return [e["resource"]["id"] for e in answer.json().get("entry", []) if e["search"]["mode"] == "match"]


def link(answer, name):
    return {one["relation"]: one["url"] for one in answer.json()["link"]}.get(name)


def two(first, second):
    return [dicomweb_node("a", first, breaker={"failures": 0}), dicomweb_node("b", second, breaker={"failures": 0})]


class Series:
    """One study of some series."""

    def __init__(self, count):
        self.count, self.down, self.gone = count, False, set()

    def __call__(self, method, path, query, body, port):
        if self.down:
            return given({}, status=503)
        of_study = {k: v for k, v in study(1).items() if k != "00201206" and k != "00201208"}
        if path.endswith("/series"):
            return given(
                [
                    {
                        **of_study,
                        "0020000E": {"vr": "UI", "Value": [f"1.2.3.1.{n}"]},
                        "00200011": {"vr": "IS", "Value": [n]},
                        "00080060": {"vr": "CS", "Value": ["CT"]},
                        "00201209": {"vr": "IS", "Value": [1]},
                    }
                    for n in range(1, self.count + 1)
                    if n not in self.gone
                ]
            )
        return given([of_study])


def numbers(answer):
    assert answer.status_code == 200, answer.text
    return [row["00200011"]["Value"][0] for row in answer.json()]


def test_series_behind_one_that_vanished_are_still_told():
    pacs = Series(6)
    with server(pacs) as port, Gateway([dicomweb_node("n", port)], cache=False) as gateway:
        found = numbers(gateway.get("/dicom-web/studies/1.2.3.1/series?limit=2"))
        pacs.gone = {2}
        answer = gateway.get("/dicom-web/studies/1.2.3.1/series?limit=2&offset=2")
        found += numbers(answer)
    assert found == [1, 2, 3, 4]


@pytest.mark.parametrize("comes_back", [False, True])
def test_series_are_still_told_when_the_first_holder_goes_or_comes_back_between_pages(comes_back):
    a, b = Series(6), Series(6)
    with server(a) as first, server(b) as second, Gateway(two(first, second), secret=SECRET, cache=False) as gateway:
        a.down = comes_back
        found = numbers(gateway.get("/dicom-web/studies/1.2.3.1/series?limit=2"))
        a.down = not comes_back
        found += numbers(gateway.get("/dicom-web/studies/1.2.3.1/series?limit=2&offset=2"))
    assert found == [1, 2, 3, 4]


def test_series_are_still_told_when_the_other_holder_got_more_of_it():
    class Growing(Series):
        more = 0

        def __call__(self, *asked):
            status, headers, body = super().__call__(*asked)
            return (
                status,
                headers,
                body.replace(
                    b'"00201209": {"vr": "IS", "Value": [1]}',
                    b'"00201209": {"vr": "IS", "Value": [%d]}' % (1 + self.more),
                ),
            )

    a, b = Growing(6), Growing(6)
    with server(a) as first, server(b) as second, Gateway(two(first, second), secret=SECRET, cache=False) as gateway:
        path = "/dicom-web/studies/1.2.3.1/series?limit=2"
        found = [row["00200011"]["Value"][0] for row in gateway.get(path).json()]
        b.more = 1
        answer = gateway.get(path + "&offset=2")
        found += [row["00200011"]["Value"][0] for row in answer.json()]
    assert found == [1, 2, 3, 4]


def test_a_clash_is_still_told_when_its_first_half_is_gone():
    """Two patients of one UID at one node, the first deleted between two pages."""
    pacs = Pacs([study(1, patient="P"), study(1, patient="Q"), study(2)])
    with server(pacs) as port, Gateway([dicomweb_node("n", port)], cache=False, secret=SECRET) as gateway:
        page = gateway.get("/fhir/ImagingStudy?_count=1")
        found = [e["resource"]["subject"]["identifier"]["value"] for e in page.json()["entry"]]
        pacs.studies = pacs.studies[1:]
        page = gateway.get(link(page, "next"))
        found += [e["resource"]["subject"]["identifier"]["value"] for e in page.json()["entry"]]
    assert found[:2] == ["P", "Q"]


def test_a_node_whose_turn_it_is_being_down_fails_no_page():
    """b holds other studies of the day than a: it is up, and could answer."""
    a, b = Pacs([study(n) for n in range(10, 30)]), Pacs([study(n) for n in range(30, 50)])
    with server(a) as first, server(b) as second, Gateway(two(first, second), secret=SECRET, cache=False) as gateway:
        page = gateway.get("/fhir/ImagingStudy?_count=4")
        assert len(ids(page)) == 4
        a.down = True
        b.asked.clear()
        answer = gateway.get(link(page, "next"))
        assert answer.status_code == 200, (answer.text, "b was asked:", b.asked)


def test_additional_results_are_at_least_so_many_while_a_node_is_down():
    with (
        catalogue_nodes(made_up(2000, nodes=2, undated=0.0)) as nodes,
        Gateway([*nodes.tables(), dicomweb_node("down", free_port())], cache=False) as gateway,
    ):
        answer = gateway.get("/dicom-web/studies?limit=1")
    said = answer.headers["warning"]
    number = re.search(r"There are (at least )?(\d+) additional", said)
    assert number[1] or int(number[2]) == 1999, said


def test_an_estimate_is_no_less_on_a_later_page():
    with catalogue_nodes(made_up(2000, nodes=2, undated=0.0)) as nodes, Gateway(nodes.tables(), cache=False) as gateway:
        first = gateway.get("/fhir/ImagingStudy?_count=40&_total=estimate")
        totals, page = [first.json()["total"]], first
        for _ in range(4):
            page = gateway.get(link(page, "next"))
            totals.append(page.json().get("total", 2000))
    assert all(total >= 40 * (n + 1) for n, total in enumerate(totals)), totals


@pytest.mark.parametrize("version", ["r4", "r5"])
def test_started_of_an_old_placeholder_date_is_a_fhir_dateTime(version):
    with (
        server(Pacs([study(1, "19000101", "120000")])) as port,
        Gateway([dicomweb_node("n", port, time_zone="Europe/Paris")], cache=False, validate_fhir=False) as gateway,
    ):
        answer = gateway.get(f"/fhir/{version}/ImagingStudy")
        started = answer.json()["entry"][0]["resource"]["started"]
        again = gateway.get(f"/fhir/{version}/ImagingStudy?started=1900-01-01")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d))?", started), started
        assert ids(again) == ["1.2.3.1"]


def test_one_study_of_year_one_fails_no_search():
    with (
        server(Pacs([study(1, "00010101"), study(2)])) as port,
        Gateway([dicomweb_node("n", port)], cache=False) as gateway,
    ):
        assert ids(gateway.get("/fhir/ImagingStudy?started=lt2026-01-01T00:00:00Z")) == ["1.2.3.2", "1.2.3.1"]


@pytest.mark.parametrize("path", ["ImagingStudy?started=ap9998,ge2020", "ImagingStudy?patient.birthdate=ap9998,ge1900"])
def test_an_approximate_date_far_off_is_no_fault(path):
    with (
        server(Pacs([study(2, **{"00100030": {"vr": "DA", "Value": ["19700101"]}})])) as port,
        Gateway([dicomweb_node("n", port)], cache=False) as gateway,
    ):
        answer = gateway.get(f"/fhir/{path}")
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("value", ["le9999-12-31", "9999", "lt2016-12-31T23:59:60Z"])
def test_valid_fhir_dates_are_taken(value):
    with server(Pacs([study(2)])) as port, Gateway([dicomweb_node("n", port)], cache=False) as gateway:
        answer = gateway.get(f"/fhir/ImagingStudy?started={value}")
        assert answer.status_code == 200, answer.text


def test_days_that_cannot_be_are_asked_of_nobody():
    pacs = Pacs([study(1)], strict=True)
    with server(pacs) as port, Gateway([dicomweb_node("n", port)], cache=False) as gateway:
        answer = gateway.get("/fhir/ImagingStudy?started=ge2024-05-01&started=le2024-04-01")
        assert answer.status_code == 200, (answer.text, pacs.asked)
        assert ids(answer) == []
        assert answer.json()["total"] == 0


@pytest.mark.parametrize("query", ["modality=|CT", "patient.gender=http://nowhere.example|male"])
def test_a_system_in_a_token_means_something(query):
    with (
        server(Pacs([study(1, **{"00100040": {"vr": "CS", "Value": ["M"]}})])) as port,
        Gateway([dicomweb_node("n", port)], cache=False) as gateway,
    ):
        answer = gateway.get(f"/fhir/ImagingStudy?{query}")
        assert answer.status_code == 400 or ids(answer) == []


def test_a_patient_identifier_without_a_system_is_no_bare_one():
    with server(Pacs([study(1)])) as port, Gateway([dicomweb_node("n", port)], cache=False) as gateway:
        shown = gateway.get("/fhir/ImagingStudy?patient.identifier=P1").json()["entry"][0]["resource"]["subject"][
            "identifier"
        ]
        assert shown["system"]
        answer = gateway.get("/fhir/ImagingStudy?patient.identifier=|P1")
        assert answer.status_code == 400 or ids(answer) == [], shown


def test_a_leading_zero_of_a_limit():
    with (
        server(Pacs([study(n) for n in range(10, 20)])) as port,
        Gateway([dicomweb_node("n", port)], cache=False) as gateway,
    ):
        assert len(gateway.get("/dicom-web/studies?limit=0000000000005").json()) == 5


def test_a_count_of_ten_digits_is_kept():
    with (
        server(Pacs([study(1, **{"00201208": {"vr": "IS", "Value": [1234567890]}})])) as port,
        Gateway([dicomweb_node("n", port)], cache=False) as gateway,
    ):
        assert gateway.get("/fhir/ImagingStudy").json()["entry"][0]["resource"]["numberOfInstances"] == 1234567890


class Below(Pacs):
    """Gives no ModalitiesInStudy, as old archives do; its series say CT and RTSTRUCT."""

    def __call__(self, method, path, query, body, port):
        if path.endswith("/series"):
            return given(
                [
                    {
                        "0020000D": {"vr": "UI", "Value": ["1.2.3.1"]},
                        "0020000E": {"vr": "UI", "Value": [f"1.2.3.1.{m}"]},
                        "00080060": {"vr": "CS", "Value": [name]},
                    }
                    for m, name in enumerate(("CT", "RTSTRUCT"), 1)
                ]
            )
        return super().__call__(method, path, query, body, port)


def test_both_of_two_modalities_where_only_series_tell_them():
    one = {k: v for k, v in study(1).items() if k != "00080061"}
    with server(Below([one])) as port, Gateway([dicomweb_node("n", port)], cache=False) as gateway:
        assert ids(gateway.get("/fhir/ImagingStudy?modality=CT")) == ["1.2.3.1"]
        assert ids(gateway.get("/fhir/ImagingStudy?modality=RTSTRUCT")) == ["1.2.3.1"]
        answer = gateway.get("/fhir/ImagingStudy?modality=CT&modality=RTSTRUCT")
        assert ids(answer) == ["1.2.3.1"]


def of(modality, n, time):
    return study(n, time=time, **{"00080061": {"vr": "CS", "Value": [modality]}})


@pytest.mark.parametrize("more", ["", "&_total=accurate"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("sort", ["-started", "started"])
def test_a_walk_by_a_modality_that_one_holder_has_ends_and_doubles_nothing(more, count, sort):
    a = Pacs([of("CT", n, f"1{n}0000") for n in range(6)])
    b = Pacs([of("RTSTRUCT", n, f"1{n}0000") for n in range(6)])
    with server(a) as first, server(b) as second, Gateway(two(first, second), secret=SECRET, cache=False) as gateway:
        page = gateway.get(f"/fhir/ImagingStudy?modality=RTSTRUCT&_count={count}&_sort={sort}{more}")
        found, pages = ids(page), 1
        while link(page, "next") and pages < 12:
            page = gateway.get(link(page, "next"))
            found, pages = found + ids(page), pages + 1
    assert sorted(found) == sorted(f"1.2.3.{n}" for n in range(6))


@pytest.mark.parametrize("down_first", [True, False])
def test_that_places_have_moved_with_the_nodes_that_answer_is_told(down_first):
    """Of one moment studies lie at the first of their holders: mirrored archives, one of which is away for a page."""
    a, b = (Pacs([study(n) for n in range(10, 20)]) for _ in "ab")
    with server(a) as first, server(b) as second, Gateway(two(first, second), secret=SECRET, cache=False) as gateway:
        a.down = down_first
        page = gateway.get("/fhir/ImagingStudy?_count=4")
        a.down = not down_first
        page = gateway.get(link(page, "next"))
        told = [one["resource"] for one in page.json().get("entry", []) if one["search"]["mode"] == "outcome"]
        assert "other nodes answer than on the page before" in str(told)
        assert "total" not in page.json()
        assert page.headers["cache-control"] == "no-store"


def test_a_walk_whose_nodes_answer_alike_says_nothing_of_the_kind():
    a, b = (Pacs([study(n) for n in range(10, 20)]) for _ in "ab")
    with server(a) as first, server(b) as second, Gateway(two(first, second), secret=SECRET, cache=False) as gateway:
        a.down = True
        page, found = gateway.get("/fhir/ImagingStudy?_count=4"), []
        found += ids(page)
        while link(page, "next"):
            page = gateway.get(link(page, "next"))
            assert "other nodes" not in page.text
            found += ids(page)
    assert sorted(found) == [f"1.2.3.{n}" for n in range(10, 20)]


class Limited:
    """Gives 60 of the 90 studies of its one day, says that there are more, and matches by `matches`, a test of a row and a query."""

    def __init__(self, studies, matches):
        self.studies, self.matches = studies, matches

    def __call__(self, method, path, query, body, port):
        low, _, high = query.get("StudyDate", ["-"])[0].partition("-")
        is_day_asked = low <= "20240301" <= (high or low or "9")
        found = [one for one in self.studies if is_day_asked and self.matches(one, query)]
        more = {"Warning": f'299 n "There are {len(found) - 60} additional results that can be requested"'}
        return given(found[:60], {"Content-Type": "application/dicom+json", **(more if len(found) > 60 else {})})


def warned(node):
    with server(node) as port, Gateway([dicomweb_node("n", port)], cache=False) as gateway:
        answer = gateway.get("/dicom-web/studies?StudyDate=20240229-20240302")
    return len(answer.json()), answer.headers["warning"]


def test_a_node_that_does_not_find_by_its_times_what_it_has_shown_is_said_to_hide_it():
    """To this one a range of times is one text, which no study has."""
    count, said = warned(
        Limited([study(n, time=f"1{n % 10}0000") for n in range(90)], lambda _, query: "StudyTime" not in query)
    )
    assert count == 60
    assert "not all is shown of StudyDate 20240301, StudyTime 060000-115959" in said


def test_of_a_day_asked_for_by_the_letters_of_patient_ids_those_without_one_may_be_missing():
    """They are not among those that the node shows, so that nothing else tells of them."""

    def matches(one, query):
        wanted = query.get("PatientID", ["*"])[0].rstrip("*")
        return query.get("ModalitiesInStudy", ["CT"]) == ["CT"] and one["00100020"]["Value"][0].startswith(wanted)

    named = [study(n, patient=f"{'AB'[n % 2]}{n}") for n in range(80)]
    count, said = warned(Limited([*named, *(study(n, patient="") for n in range(80, 90))], matches))
    assert count == 80
    assert "not all is shown of StudyDate 20240301, PatientID unknown" in said
