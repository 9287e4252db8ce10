"""Places that move or are forgotten without a word."""

import pytest

from tests.federation.test_handmade_pages import Pacs, ids, link, study, two
from tests.handmade import given, server
from tests.running import Gateway

SECRET = "s" * 20
ALL = {f"1.2.3.{n}" for n in range(10, 20)}


def told(page):
    return str([one["resource"] for one in page.json().get("entry", []) if one["search"]["mode"] == "outcome"])


def to_the_end(gateway, page):
    """The ids of this page and of all that follow, and what those say of themselves."""
    found, said = ids(page), ""
    while link(page, "next"):
        page = gateway.get(link(page, "next"))
        found, said = found + ids(page), said + told(page)
    return found, said


def mirrored(kind=None):
    """Two archives with the same ten studies of one moment."""
    return (kind or Pacs)([both(n) for n in range(10, 20)]), Pacs([both(n) for n in range(10, 20)])


def both(n):
    return study(n, **{"00080061": {"vr": "CS", "Value": ["CT", "SEG"]}})


@pytest.mark.parametrize("query", ["modality=CT", "modality=CT&modality=SEG"])
def test_moved_places_are_told_or_nothing_is_lost(query):
    """Mirrored archives, one of which is away for the first page; one day, one moment."""
    a, b = mirrored()
    with server(a) as first, server(b) as second, Gateway(two(first, second), secret=SECRET, cache=False) as gateway:
        a.down = True
        page = gateway.get(f"/fhir/ImagingStudy?{query}&_count=4")
        a.down = False
        found, said = to_the_end(gateway, page)
    assert set(found) == ALL or "other nodes answer" in said


def test_a_node_that_came_between_two_pages_is_told_or_nothing_is_lost():
    """The node file was reloaded, or the cursor is that of a caller who may ask other nodes."""
    a, b = mirrored()
    with server(a) as first, server(b) as second:
        nodes = two(first, second)
        with Gateway(nodes[1:], secret=SECRET, cache=False) as gateway:
            page = gateway.get("/fhir/ImagingStudy?_count=4")
            found, onward = ids(page), link(page, "next")
        with Gateway(nodes, secret=SECRET, cache=False) as gateway:
            said = ""
            while onward:
                page = gateway.client.get(gateway.url + onward[onward.index("/fhir/") :])
                if page.status_code == 400:
                    return
                found, said, onward = found + ids(page), said + told(page), link(page, "next")
    assert set(found) == ALL or "other nodes answer" in said


def test_the_end_of_a_walk_by_offset_is_a_place_too():
    """Who asks until there is nothing more, as many clients do, sees what it has seen already."""
    a = Pacs([study(n) for n in range(10, 20)])
    with server(a) as first, Gateway(two(first, first)[:1], secret=SECRET, cache=False) as gateway:
        seen = []
        for offset in (0, 5):
            seen += [
                row["0020000D"]["Value"][0] for row in gateway.get(f"/dicom-web/studies?limit=5&offset={offset}").json()
            ]
        a.studies = [study(99, date="20250101"), *a.studies]
        last = gateway.get("/dicom-web/studies?limit=5&offset=10")
    assert not last.content or not {row["0020000D"]["Value"][0] for row in last.json()} & set(seen)


@pytest.mark.parametrize("query", ["modality=CT&_total=accurate", "modality=CT&modality=SEG&_total=accurate"])
@pytest.mark.parametrize("first_down", [True, False])
def test_moved_places_are_told_where_the_total_is_counted(query, first_down):
    a, b = mirrored()
    with server(a) as first, server(b) as second, Gateway(two(first, second), secret=SECRET, cache=False) as gateway:
        a.down = first_down
        page = gateway.get(f"/fhir/ImagingStudy?{query}&_count=4")
        a.down = not first_down
        found, said = to_the_end(gateway, page)
    assert (set(found) == ALL and len(found) == len(ALL)) or "other nodes answer" in said, (len(found), len(set(found)))


MODEST = "modality=CT&modality=SEG&_count=4"


class Modest(Pacs):
    """Is not sure at times that it shows all."""

    says = False

    def __call__(self, method, path, query, body, port):
        if self.says and path.endswith("/studies") and not {"StudyInstanceUID", "0020000D"} & set(query):
            return given(
                self.studies,
                {
                    "Content-Type": "application/dicom+json",
                    "Warning": '299 n "There are 5 additional results that can be requested"',
                },
            )
        return super().__call__(method, path, query, body, port)


def walk(then):
    """What is told of the second page, for which the first node changes."""
    a, b = mirrored(Modest)
    with server(a) as first, server(b) as second, Gateway(two(first, second), secret=SECRET, cache=False) as gateway:
        a.says = True
        page = gateway.get(f"/fhir/ImagingStudy?{MODEST}")
        vars(a).update(then)
        page = gateway.get(link(page, "next"))
    return told(page)


def test_what_is_truncated_at_one_page_alone_is_not_said_to_be_other_nodes():
    assert "other nodes answer" not in walk(then={"says": False})


def test_a_truncated_node_that_is_away_for_the_next_page_is_said():
    assert "other nodes answer" in walk(then={"says": False, "down": True})
