import re
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire import multipart
from gateway.wire.multipart import MultipartError, MultipartParser, PartBegin, PartData

BOUNDARY = "abc"
NEAR = [
    b"\r\n--abcd",
    b"\r\n--ab",
    b"\n--abc\n",
    b"--abc\r\n",
    b"\r\n--abc x\r\n",
    b"\r\n--abc \t",
    b"\r",
    b"\n",
    b"\r\n",
    b"-",
    b"\r\n--abc-",
]
bodies = st.lists(st.one_of(st.sampled_from(NEAR), st.binary(max_size=8)), max_size=6).map(b"".join)


def is_body(body: bytes) -> bool:
    """No whole delimiter line inside, and none that the body's end forms with the delimiter after it."""
    probe = b"\r\n" + body + b"\r\n"
    return re.search(rb"\r\n--abc[ \t]*(--|\r?\n)", probe) is None


contents = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(["content-type", "content-location"]), st.just("a/b; c=d")),
        bodies.filter(is_body),
    ),
    max_size=4,
)


async def chunked(data: bytes, sizes=(7,)):
    position, turn = 0, 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        yield data[position : position + size]
        position, turn = position + size, turn + 1


def write(parts, boundary=BOUNDARY):
    heads = [multipart.part_head(boundary, headers, first=index == 0) for index, (headers, _) in enumerate(parts)]
    return b"".join(head + body for head, (_, body) in zip(heads, parts, strict=True)) + multipart.closing(boundary)


def parse(data, sizes=(1 << 20,), **limits):
    parser, found, position, turn = MultipartParser(BOUNDARY, **limits), [], 0, 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        for event in parser.feed(data[position : position + size]):
            if isinstance(event, PartBegin):
                found.append((event.headers, b""))
            elif isinstance(event, PartData):
                found[-1] = (found[-1][0], found[-1][1] + event.data)
        position, turn = position + size, turn + 1
    parser.finish()
    return found


@settings(max_examples=400)
@given(
    contents,
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.sampled_from([b"", b"preamble\r\n", b"--ab\r\n--abcd\r\n"]),
    st.sampled_from([b"", b"epilogue --abc\r\n"]),
)
def test_any_split_into_chunks_gives_the_same_parts(parts, sizes, preamble, epilogue):
    assert parse(preamble + write(parts) + epilogue, sizes) == parts


@settings(max_examples=100)
@given(contents, st.integers(1, 9))
def test_every_truncation_raises(parts, size):
    whole = write(parts)
    for length in range(len(whole) - 2):
        with pytest.raises(MultipartError):
            parse(whole[:length], (size,))


def test_an_unfinished_closing_delimiter_raises_and_the_finished_one_needs_no_line_end():
    whole = write([({}, b"x")])
    assert parse(whole.rstrip()) == [({}, b"x")]
    with pytest.raises(MultipartError):
        parse(whole.rstrip()[:-1])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_lines_that_end_in_lf_alone_are_understood_and_the_body_keeps_its_last_cr(size):
    data = b"--abc\nContent-Type: application/dicom\n\nbody\r\n--abc\n\n\n--abc--\n"
    assert parse(data, (size,)) == [({"content-type": "application/dicom"}, b"body\r"), ({}, b"")]


def test_a_body_in_a_crlf_message_keeps_its_last_lf():
    assert parse(b"--abc\r\n\r\nbody\n\r\n--abc--") == [({}, b"body\n")]
    assert parse(b"--abc\r\n\r\nbody\n--abc\n\r\n--abc--") == [({}, b"body\n--abc\n")]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_a_part_without_a_body_may_share_its_empty_line_with_the_delimiter(size):
    assert parse(b"--abc\r\nA: b\r\n\r\n--abc\r\n\r\n--abc--", (size,)) == [({"a": "b"}, b""), ({}, b"")]


def test_folded_headers_are_joined_and_names_are_lower_case():
    assert parse(
        b'--abc\r\nCONTENT-Type: application/dicom;\r\n  transfer-syntax="1.2"\r\nnonsense\r\n\r\n\r\n--abc--'
    ) == [({"content-type": 'application/dicom; transfer-syntax="1.2"'}, b"")]


def test_transport_padding_after_the_boundary_is_skipped():
    assert parse(b"--abc \t\r\n\r\nx\r\n--abc  \r\n\r\ny\r\n--abc--  ", (1,)) == [({}, b"x"), ({}, b"y")]


def test_an_empty_multipart_has_no_parts_and_nothing_at_all_is_truncated():
    assert parse(b"--abc--") == []
    with pytest.raises(MultipartError):
        parse(b"")


def test_an_endless_header_and_too_many_parts_raise():
    with pytest.raises(MultipartError):
        parse(b"--abc\r\nA: " + b"x" * 100_000, (1000,))
    assert len(parse(write([({}, b"")] * 3), max_parts=3)) == 3
    with pytest.raises(MultipartError):
        parse(write([({}, b"")] * 4), max_parts=3)


def test_a_line_break_in_a_header_is_not_written():
    with pytest.raises(ValueError):
        multipart.part_head(BOUNDARY, {"Content-Location": "x\r\nSet-Cookie: y"})


async def test_what_is_left_of_a_body_is_drained_before_the_next_part():
    data = write([({"n": "1"}, b"one" * 100), ({"n": "2"}, b"two" * 100), ({"n": "3"}, b"three")])
    seen = []
    async for part in multipart.parts(chunked(data), BOUNDARY):
        first = await anext(aiter(part.body))
        seen.append((part.headers["n"], first[:1]))
    assert seen == [("1", b"o"), ("2", b"t"), ("3", b"t")]


async def test_a_body_that_is_cut_off_raises_instead_of_ending_neatly():
    data = write([({}, b"x" * 1000)])[:500]
    part = await anext(multipart.parts(chunked(data), BOUNDARY))
    with pytest.raises(MultipartError):
        _ = [chunk async for chunk in part.body]


async def test_leaving_the_parts_early_closes_the_source():
    closed = []

    async def source():
        try:
            async for chunk in chunked(write([({}, b"x" * 100)])):
                yield chunk
        finally:
            closed.append(True)

    found = multipart.parts(source(), BOUNDARY)
    await anext(found)
    await found.aclose()
    assert closed == [True]


async def test_what_is_written_reads_back():
    async def items():
        for number in range(3):
            yield {"Content-Type": "application/dicom"}, chunked(bytes([number]) * 1000)

    mark = multipart.boundary()
    body = [chunk async for chunk in multipart.write(items(), mark)]
    assert body[0].startswith(f"--{mark}\r\n".encode())
    found = [
        (str(part.media_type), b"".join([c async for c in part.body]))
        async for part in multipart.parts(chunked(b"".join(body)), mark)
    ]
    assert found == [("application/dicom", bytes([number]) * 1000) for number in range(3)]


async def test_a_large_part_takes_linear_time_and_no_more_memory_than_its_chunks():
    chunk, count = bytes(range(256)) * 1024, 256  # 64 MiB, with a possible delimiter start every 256 bytes

    async def source():
        yield multipart.part_head(BOUNDARY, {}, first=True)
        for _ in range(count):
            yield chunk
        yield multipart.closing(BOUNDARY)

    async def total():
        size = 0
        async for part in multipart.parts(source(), BOUNDARY):
            async for data in part.body:
                size += len(data)
        return size

    tracemalloc.start()
    assert await total() == len(chunk) * count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    started = time.process_time()
    await total()
    assert time.process_time() - started < 1.0
