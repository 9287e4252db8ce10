"""What is made of Accept headers: tolerant of how viewers ask, exact in what is promised, and never a fault."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.requests import Request

from gateway.edge import negotiation
from gateway.edge.dicomweb import representations
from gateway.edge.dicomweb.representations import IN_JSON, IN_PLAIN_JSON, IN_XML, IN_XML_ALONE, Representation
from gateway.errors import InvalidQuery, NotAcceptable
from gateway.wire.media import MediaType, parse_accept, preferred

NO = None
XML = 'multipart/related; type="application/dicom+xml"'
ASKED: list[tuple[list[str], str, Representation | None]] = [
    ([], "", IN_JSON), ([""], "", IN_JSON), (["*/*"], "", IN_JSON), (["application/*"], "", IN_JSON),
    (["application/json"], "", IN_PLAIN_JSON), (["APPLICATION/DICOM+JSON"], "", IN_JSON), (["*"], "", IN_JSON),
    (["application/json, application/dicom+json"], "", IN_PLAIN_JSON),
    (["application/dicom+json;q=0.1, application/json;q=0.2"], "", IN_PLAIN_JSON),
    ([XML], "", IN_XML), (["multipart/related; type=application/dicom+xml"], "", IN_XML), (["multipart/related"], "", IN_XML),
    (["multipart/*"], "", IN_XML), (['multipart/related; type="*/*"'], "", IN_XML), (["multipart/related;type=*/*"], "", IN_XML),
    (['multipart/related; type="application/dicom+xml; charset=utf-8"'], "", IN_XML),
    (["multipart/related; type='application/dicom+xml'"], "", NO),
    (['multipart/related; type="application/dicom"'], "", NO), (["application/dicom"], "", NO), (["text/html"], "", NO),
    (["text/html", "application/dicom+json"], "", IN_JSON), (["text/html", XML], "", IN_XML),
    (["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], "", IN_JSON),
    (["*/*;q=0"], "", NO), (["application/dicom+json;q=0, */*"], "", IN_PLAIN_JSON),
    (["application/dicom+json;q=0, application/json;q=0, */*;q=0.1"], "", IN_XML),
    (["application/dicom+json; charset=utf-8"], "", IN_JSON), (["application/dicom+json; charset=UTF8"], "", IN_JSON),
    (["application/dicom+json; charset=iso-8859-1"], "", NO), (["application/dicom+json;q=abc"], "", NO),
    (["application/dicom+json; transfer-syntax=*"], "", IN_JSON), ([",,;;, application/dicom+json"], "", IN_JSON),
    (["text/html"], "application/dicom+json", IN_JSON), (["application/json"], "application/dicom+json", IN_JSON),
    (["application/json"], "*/*", IN_PLAIN_JSON), (["*/*"], "text/html", NO), (["*/*"], XML, IN_XML),
    (["application/dicom+json"], "multipart/related;type=application/dicom+xml", IN_XML),
]  # fmt: skip


def request(accepts: list[str], query: str = "") -> Request:
    headers = [(b"accept", each.encode("utf-8")) for each in accepts]
    return Request({"type": "http", "method": "GET", "path": "/", "query_string": query.encode(), "headers": headers})


@pytest.mark.parametrize(("accepts", "parameter", "given_"), ASKED)
def test_accept_is_understood(accepts: list[str], parameter: str, given_: Representation | None) -> None:
    for query in {f"accept={quote(parameter)}", f"accept={parameter}"} if parameter else {""}:
        asked = request(accepts, query)
        if given_ is None:
            with pytest.raises(NotAcceptable):
                representations.chosen(asked, strict=False)
        else:
            assert representations.chosen(asked, strict=False) == given_


def test_only_one_instance_is_available_as_a_document_alone() -> None:
    asked = request(["application/dicom+xml"])
    assert representations.chosen(asked, strict=False, alone=True) == IN_XML_ALONE
    with pytest.raises(NotAcceptable):
        representations.chosen(asked, strict=False)


def test_no_accept_is_refused_where_the_standard_is_taken_at_its_word() -> None:
    with pytest.raises(NotAcceptable):
        representations.chosen(request([]), strict=True)
    assert representations.chosen(request([], "accept=application/json"), strict=True) == IN_PLAIN_JSON


_TYPES = (
    "application/dicom+json",
    "application/json",
    "application/*",
    "*/*",
    "multipart/related",
    "multipart/*",
    XML,
    "x/y",
)
_RANGES = st.tuples(st.sampled_from(_TYPES), st.sampled_from(["", ";q=0", ";q=0.3", ";q=0.7", ";q=1"])).map("".join)
_OFFERS = [one.offer for one in (IN_JSON, IN_PLAIN_JSON, IN_XML, IN_XML_ALONE)]


def weight_by_the_book(ranges: list[MediaType], offer: MediaType) -> float:
    """RFC 9110 12.5.1, spelled out: the most specific of the ranges that match gives the weight."""
    best = (-1, 0.0)
    for one in reversed(ranges):
        matches = one.type in ("*", offer.type) and one.subtype in ("*", offer.subtype)
        inner = one.parameters.get("type", "*/*")
        if (
            matches
            and one.subtype != "*"
            and "type" in offer.parameters
            and inner not in ("*/*", offer.parameters["type"])
        ):
            matches = False
        names_parts = "type" in offer.parameters and one.subtype != "*" and inner != "*/*"
        specific = (one.type != "*") + (one.subtype != "*") + names_parts
        if matches and specific >= best[0]:
            best = (specific, one.quality)
    return best[1]


@given(st.lists(_RANGES, max_size=5))
@example(["*/*", "application/dicom+json;q=0"])
@example(["multipart/related", f"{XML};q=0"])
def test_the_offer_with_the_most_weight_is_chosen(listed: list[str]) -> None:
    ranges = parse_accept(",".join(listed))
    weights = [weight_by_the_book(ranges, offer) for offer in _OFFERS]
    chosen = preferred(ranges, _OFFERS)
    assert (chosen is None) == (max(weights) == 0)
    assert chosen is None or weights[chosen] == max(weights)


_NOISE = st.text(st.sampled_from("ap/lic*+jsonxm;=\",'\\ q0.19\t"), max_size=40) | st.text(max_size=30)
_ACCEPTS = st.lists(_RANGES | _NOISE, max_size=4).map(",".join)


@given(st.lists(_ACCEPTS, max_size=3), _ACCEPTS, _NOISE, st.booleans())
@example(['multipart/related; type="'], "", "", False)
@example(["a/b;q=nan,*/*;q=inf"], "", "", False)
def test_whatever_is_asked_is_answered_or_refused(
    accepts: list[str], parameter: str, charset: str, strict: bool
) -> None:
    headers = [each.encode("utf-8", "replace").replace(b"\n", b"").replace(b"\r", b"") for each in accepts]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"accept", each) for each in headers]}
    scope["query_string"] = (
        f"accept={quote(parameter, errors='replace')}&charset={quote(charset, errors='replace')}".encode()
    )
    for ask in (
        lambda: representations.chosen(Request(scope), strict=strict, alone=strict),
        lambda: negotiation.instances(Request(scope), strict=strict, one_instance=strict),
        lambda: negotiation.octets(Request(scope), strict=strict, single=strict),
    ):
        try:
            assert ask()
        except (NotAcceptable, InvalidQuery):
            continue


PARTS, ALONE = 'multipart/related; type="application/dicom"', "application/dicom"


@pytest.mark.parametrize(
    ("accept", "of_one", "of_many"),
    [
        ("multipart/related;q=0, */*", ALONE, None),
        (f"{PARTS};q=0, */*", ALONE, None),
        ("multipart/*;q=0, multipart/related", PARTS, PARTS),
        (f"*/*;q=0, {PARTS}", PARTS, PARTS),
        (f"{PARTS};q=0, multipart/related", None, None),
        (f"{PARTS};q=0, {ALONE}", ALONE, None),
        (f"{ALONE};q=0, */*", PARTS, PARTS),
        (f"{PARTS};q=0, {ALONE};q=0, */*", None, None),
        (f"{PARTS}; transfer-syntax=1.2.840.10008.1.2.4.90; q=0, {PARTS}", PARTS, PARTS),
        ('multipart/related; type="application/octet-stream"; q=0, */*', PARTS, PARTS),
    ],
)
def test_instances_do_not_go_out_as_what_is_refused(accept: str, of_one: str | None, of_many: str | None) -> None:
    scope = {"type": "http", "query_string": b"", "headers": [(b"accept", accept.encode())]}
    for one_instance, form in ((True, of_one), (False, of_many)):
        if form is None:
            with pytest.raises(NotAcceptable):
                negotiation.instances(Request(scope), strict=False, one_instance=one_instance)
        else:
            found = negotiation.instances(Request(scope), strict=False, one_instance=one_instance)
            assert found.single_part is (form == ALONE)
