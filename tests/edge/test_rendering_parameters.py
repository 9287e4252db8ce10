"""Whatever stands in the parameters of a rendered resource is read or refused: nothing else is ever raised."""

from __future__ import annotations

from urllib.parse import urlencode

from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from gateway.edge.dicomweb import rendering
from gateway.errors import GatewayError, InvalidQuery, NotAcceptable

NUMBERS = st.one_of(
    st.integers(-(10**13), 10**13).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", " ", "1e3", "1_0", "+5", "٣", "0x10", "1" * 500, "nan", "-inf", "linear", "sigmoid", "LINEAR"]
    ),
)
LISTS = st.lists(NUMBERS, max_size=8).map(",".join)
QUERIES = st.dictionaries(
    st.sampled_from(["window", "viewport", "quality", "annotation", "iccprofile", "accept"]),
    st.one_of(
        LISTS, st.text(max_size=40), st.sampled_from(["patient", "patient,technique", "srgb", "image/png", "*/*"])
    ),
)


@settings(max_examples=500)
@given(query=QUERIES, accept=st.one_of(st.text(st.characters(codec="latin-1"), max_size=60), st.just("image/png")))
def test_parameters_are_read_or_refused(query: dict[str, str], accept: str) -> None:
    scope = {
        "type": "http", "method": "GET", "path": "/", "headers": [(b"accept", accept.encode("latin-1"))],
        "query_string": urlencode(query).encode(),
    }  # fmt: skip
    for read in (rendering.asked, rendering.of_thumbnail):
        try:
            asked = read(Request(scope), strict=False)
        except GatewayError as error:
            assert isinstance(error, (InvalidQuery, NotAcceptable))  # noqa: PT017
        else:
            viewport = asked.rendering.viewport
            assert 0 <= viewport.columns <= 8192
            assert 0 <= viewport.rows <= 8192
            assert asked.media_types
