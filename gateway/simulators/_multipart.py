"""What the DICOMweb simulator writes and reads of MIME: multipart/related and Accept (RFC 2046, PS3.18 8.7)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from starlette.requests import Request

from gateway.simulators._values import Bytes

MediaRange = tuple[str, dict[str, str]]
LaidOut = tuple[list[str], Bytes]


def multipart(parts: Iterable[LaidOut], boundary: str, newline: str, *, closed: bool) -> Iterator[bytes]:
    """A body (RFC 2046 5.1.1) of (header lines, value), never more than one chunk in memory."""
    for headers, value in parts:
        yield newline.join([f"--{boundary}", *headers, "", ""]).encode()
        yield from value.chunks()
        yield newline.encode()
    if closed:
        yield f"--{boundary}--{newline}".encode()


def multipart_size(parts: Sequence[LaidOut], boundary: str, newline: str, *, closed: bool) -> int:
    """The length of what `multipart` makes, without reading a value."""
    headers_only = [(headers, Bytes(0, held=b"")) for headers, _ in parts]
    around = sum(map(len, multipart(headers_only, boundary, newline, closed=closed)))
    return around + sum(value.size for _, value in parts)


def media_range(text: str) -> MediaRange:
    """The type in lower case and its parameters without their quotes."""
    name, *given = _split(text, ";")
    pairs = (parameter.partition("=") for parameter in given)
    return name.strip().lower(), {key.strip().lower(): value.strip().strip('"') for key, _, value in pairs}


def accepted(request: Request) -> list[MediaRange]:
    """The media ranges of the request; a missing Accept is */*."""
    return [media_range(text) for text in _split(request.headers.get("accept") or "*/*", ",")]


def _split(text: str, separator: str) -> list[str]:
    """Splits outside of quoted strings."""
    parts, quoted = [""], False
    for char in text:
        quoted ^= char == '"'
        if char == separator and not quoted:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def acceptable(ranges: list[MediaRange], media_type: str, syntax: str) -> bool:
    """Whether any range takes this type in this stored syntax; without a transfer-syntax it takes any."""
    for name, parameters in ranges:
        kind = parameters.get("type", "*/*") if name.startswith("multipart/") else name
        if kind in ("*/*", media_type) and parameters.get("transfer-syntax", "*") in ("*", syntax):
            return True
    return False


def wants_single(ranges: list[MediaRange], media_type: str) -> bool:
    """Whether the caller names the bare type and no multipart."""
    names = [name for name, _ in ranges]
    return media_type in names and not any(name.startswith("multipart/") for name in names)
