"""What the caller accepts, turned into one decision per resource category (PS3.18 8.7); tolerant of how viewers really ask."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from starlette.requests import Request

from gateway.errors import InvalidQuery, NotAcceptable
from gateway.imaging.syntaxes import BASELINE, EXPLICIT, LOSSLESS, can_decode
from gateway.model.query import check_uid
from gateway.wire.frames import frame_media_type
from gateway.wire.media import MediaType, parse_accept, parse_media_type, split_list

DICOM = "application/dicom"
DICOM_JSON = "application/dicom+json"
JSON = "application/json"
OCTETS = "application/octet-stream"
MULTIPART = "multipart/related"
IMAGE_TYPES = ("image/jpeg", "image/jls", "image/jp2", "image/jpx", "image/jphc", "image/jxl", "image/dicom-rle")
_ALONE, _IN_PARTS = MediaType("application", "dicom"), MediaType("multipart", "related", {"type": DICOM})
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "*"})
_MOST_RANGES = 64
_PLUS = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])")
FRAME_TYPES = (OCTETS, *IMAGE_TYPES, "video/mpeg", "video/mp4", "video/mpeg2", "video/h265")


@dataclass(frozen=True, slots=True)
class DicomAccept:
    """How instances are to be sent. `transfer_syntaxes` are what is asked for, best first: '' (our default), '*' or a UID."""

    single_part: bool
    transfer_syntaxes: tuple[str, ...] = ("",)


def accepted(request: Request, *, strict: bool) -> list[MediaType]:
    """The ranges asked for, best first, without those refused (q=0). Raises NotAcceptable when strict."""
    return [range_ for range_ in ranges(request, strict=strict) if range_.quality > 0]


def ranges(request: Request, *, strict: bool) -> list[MediaType]:
    """The ranges of all Accept headers, best first, also those refused (q=0). Raises NotAcceptable for too many, or none if strict.

    The `accept` query parameter wins over the headers (PS3.18 8.3.3.1). It takes no wildcards: those in it are as if they
    were not there.
    """
    asked = with_plus(",".join(request.query_params.getlist("accept")))
    named = [range_ for range_ in _parsed(asked, "accept") if "*" not in range_.essence]
    if named:
        return named
    text = ",".join(request.headers.getlist("accept"))
    if text.strip():
        return _parsed(text, "Accept")
    if strict:
        raise NotAcceptable("an Accept header is required (PS3.18 8.7.5)", parameter="Accept")
    return [parse_media_type("*/*")]


def _parsed(text: str, parameter: str) -> list[MediaType]:
    """Raises NotAcceptable for more ranges than anybody means: each that takes something is held against each that refuses."""
    if len(split_list(text)) > _MOST_RANGES:
        raise NotAcceptable(f"{parameter} lists at most {_MOST_RANGES} media types", parameter=parameter)
    return parse_accept(text)


def with_plus(text: str) -> str:
    """A media type of a query string whose plus sign was not percent-encoded, and became a space."""
    return _PLUS.sub("+", text)


def check_charset(request: Request) -> None:
    """Texts go out in UTF-8 only. Raises InvalidQuery where the `charset` query parameter has no place for it (PS3.18
    8.3.3.2, 8.8.1)."""
    for listed in request.query_params.getlist("charset"):
        if not {one.partition(";")[0].strip().lower() for one in listed.split(",")} & _CHARSETS:
            raise InvalidQuery("charset: texts are written in UTF-8", parameter="charset")


def instances(request: Request, *, strict: bool, one_instance: bool) -> DicomAccept:
    """How a study, series or instance goes out. Raises NotAcceptable; single part is for one instance only (PS3.18 10.4.4)."""
    single_part: bool | None = None
    syntaxes: list[str] = []
    listed = ranges(request, strict=strict)
    refused = [one for one in listed if one.quality <= 0 and "transfer-syntax" not in one.parameters]
    for range_ in (one for one in listed if one.quality > 0):
        takes_any = range_.essence == "*/*" and is_refused(refused, range_, _closeness_in_parts)
        is_single = one_instance and (range_.essence == DICOM or takes_any)
        is_taken = is_single or _takes_dicom_parts(range_)
        if is_taken and not is_refused(refused, range_, _closeness_alone if is_single else _closeness_in_parts):
            single_part = is_single if single_part is None else single_part
            if is_single == single_part:
                syntaxes.append(_transfer_syntax(range_))
    if single_part is not None:
        return DicomAccept(single_part, tuple(dict.fromkeys(syntaxes)))
    offer = f'{MULTIPART}; type="{DICOM}"' + (f" or {DICOM}" if one_instance else "")
    raise NotAcceptable(f"this resource is available as {offer}", parameter="Accept")


def _closeness_alone(range_: MediaType) -> int:
    return range_.takes(_ALONE)


def _closeness_in_parts(range_: MediaType) -> int:
    return range_.takes(_IN_PARTS)


def is_refused(listed: Iterable[MediaType], by: MediaType, closeness: Callable[[MediaType], int]) -> bool:
    """Whether a range that is refused (q=0) describes what is offered as closely as the one that takes it (RFC 9110 12.5.1)."""
    asked = closeness(by) or 1
    return any(one.quality <= 0 and closeness(one) >= asked for one in listed)


def _takes_dicom_parts(range_: MediaType) -> bool:
    inner = range_.parameters.get("type", DICOM).lower()
    return range_.essence in ("*/*", "multipart/*") or (range_.essence == MULTIPART and inner in (DICOM, "*/*"))


@dataclass(frozen=True, slots=True)
class OctetAccept:
    """How frames or bulk data go out: the inner types accepted, in order, each with its transfer syntax ('' = any)."""

    single_part: bool
    ranges: tuple[tuple[str, str], ...]
    refused: frozenset[str] = frozenset()
    """Types that no range stands for (q=0)."""

    def takes(self, media_type: str, transfer_syntax: str) -> bool:
        """Whether stored bytes of this type and syntax may be sent."""
        return not self._refuses(media_type.lower()) and any(
            _fits(inner, syntax, media_type, transfer_syntax) for inner, syntax in self.ranges
        )

    def _refuses(self, media_type: str) -> bool:
        """Also as one of a family, where no range names it (RFC 9110 12.5.1)."""
        is_named = any(inner == media_type for inner, _ in self.ranges)
        return media_type in self.refused or (not is_named and f"{media_type.partition('/')[0]}/*" in self.refused)

    def into(self, stored: str, *, gives_explicit: bool) -> str:
        """The syntax to give a frame in that is stored in another one: '' for as it is. Raises NotAcceptable for none."""
        is_refused = self._refuses(frame_media_type(stored).lower())
        wants_explicit = (gives_explicit or is_refused) and can_decode(stored) and not self._refuses(OCTETS)
        for inner, syntax in self.ranges:
            is_any = not syntax and inner in ("*/*", "")
            if is_any and wants_explicit and stored != EXPLICIT:
                return EXPLICIT
            fits = (
                is_any or syntax in ("*", stored) or (not syntax and _fits(inner, "", frame_media_type(stored), stored))
            )
            if fits and not is_refused:
                return ""
            asked = syntax or _DEFAULT_SYNTAXES.get(inner, "")
            if asked in _FRAME_SYNTAXES and can_decode(stored):
                return asked
        raise NotAcceptable(
            f"stored as {frame_media_type(stored)}; transfer-syntax={stored}; ask for that, for '*', or for {OCTETS}",
            parameter="Accept",
        )


_FRAME_SYNTAXES = (EXPLICIT, *LOSSLESS, BASELINE)
# PS3.18 Table 8.7.3-5: what a media type means without transfer-syntax.
_DEFAULT_SYNTAXES = {OCTETS: EXPLICIT, **{frame_media_type(one): one for one in LOSSLESS}}


def _fits(inner: str, syntax: str, media_type: str, transfer_syntax: str) -> bool:
    if syntax == "*":
        return True
    if syntax and syntax != transfer_syntax:
        return False
    wanted = MediaType(*inner.partition("/")[::2]) if inner else MediaType("*", "*")
    return wanted.accepts(media_type)


def octets(request: Request, *, strict: bool, single: bool) -> OctetAccept:
    """How frames or bulk data go out. `single` allows a single part, which one frame or value may be. Raises NotAcceptable."""
    asked: list[tuple[str, str]] = []
    refused: set[str] = set()
    single_part = None
    for range_ in ranges(request, strict=strict):
        inner = _inner_type(range_)
        if inner is None:
            continue
        if range_.quality <= 0:
            refused |= {inner} if "transfer-syntax" not in range_.parameters else set()
            continue
        is_single = range_.essence in FRAME_TYPES or range_.essence == "image/*"
        if is_single and not single:
            continue
        single_part = is_single if single_part is None else single_part
        if is_single == single_part:
            asked.append((inner, _transfer_syntax(range_)))
    if single_part is None:
        raise NotAcceptable(f'this resource is available as {MULTIPART}; type="{OCTETS}"', parameter="Accept")
    return OctetAccept(single_part, tuple(asked), frozenset(refused))


def _inner_type(range_: MediaType) -> str | None:
    """The type of the parts that a range asks for; None when it asks for something we do not have."""
    if range_.essence in (MULTIPART, "multipart/*"):
        return range_.parameters.get("type", "*/*").lower()
    if range_.essence in (*FRAME_TYPES, "*/*", "image/*"):
        return range_.essence
    return None


def _transfer_syntax(range_: MediaType) -> str:
    asked = range_.parameters.get("transfer-syntax", "")
    return asked if asked in ("", "*") else check_uid(asked, "transfer-syntax")


def count(text: str, parameter: str, *, least: int = 0, most: int = 2**31) -> int:
    """A non-negative whole number from a parameter. Raises InvalidQuery naming it."""
    digits = text.lstrip("0")[:12] or "0"
    if not text.isascii() or not text.isdecimal() or not least <= int(digits) <= most:
        raise InvalidQuery(f"{parameter} is not a whole number from {least} up", parameter=parameter)
    return int(digits)
