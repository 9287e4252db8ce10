"""DICOM text from bytes and back, as (0008,0005) Specific Character Set says (PS3.3 C.12.1.1.2, PS3.5 6.1)."""

from __future__ import annotations

import codecs
import re
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

# pydicom warns on stderr about every misspelt character set of a data set, and again here nobody could act on it.
warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\b")

UTF_8 = "ISO_IR 192"
REPLACEMENT = "\ufffd"

_SINGLE_BYTE = {
    100: "iso8859_1", 101: "iso8859_2", 109: "iso8859_3", 110: "iso8859_4", 126: "iso8859_7", 127: "iso8859_6",
    138: "iso8859_8", 144: "iso8859_5", 148: "iso8859_9", 166: "tis_620", 203: "iso8859_15",
}  # fmt: skip
# Python's shift_jis holds JIS X 0201 (ISO-IR 13 and 14) in its single bytes.
_BY_NUMBER = _SINGLE_BYTE | {
    6: "ascii", 13: "shift_jis", 14: "shift_jis", 58: "gb2312", 87: "iso2022_jp", 149: "euc_kr", 159: "iso2022_jp_2",
    192: "utf_8",
}  # fmt: skip
DEFINED_TERMS = (*(f"ISO_IR {number}" for number in sorted(_BY_NUMBER)), "GB18030", "GBK")
"""Those of (0008,0005) that are read and written, without code extensions (ISO 2022), which are too."""
# Escape sequences of PS3.3 Tables C.12-3 and C.12-4. The iso2022_jp codecs read and write their own.
_BY_ESCAPE = {
    b"\x1b(B": "ascii", b"\x1b-A": "iso8859_1", b"\x1b-B": "iso8859_2", b"\x1b-C": "iso8859_3", b"\x1b-D": "iso8859_4",
    b"\x1b-F": "iso8859_7", b"\x1b-G": "iso8859_6", b"\x1b-H": "iso8859_8", b"\x1b-L": "iso8859_5",
    b"\x1b-M": "iso8859_9", b"\x1b-T": "tis_620", b"\x1b-b": "iso8859_15", b"\x1b)I": "shift_jis",
    b"\x1b(J": "shift_jis", b"\x1b$@": "iso2022_jp", b"\x1b$B": "iso2022_jp", b"\x1b$(D": "iso2022_jp_2",
    b"\x1b$)C": "euc_kr", b"\x1b$)A": "gb2312",
}  # fmt: skip
_TO_ESCAPE = {codec: escape for escape, codec in reversed(_BY_ESCAPE.items())}
_SELF_ESCAPING = frozenset({"iso2022_jp", "iso2022_jp_2"})
# A lead byte of these may be followed by any byte, so an escape sequence means nothing in them (PS3.3 Table C.12-5).
_STAND_ALONE = frozenset({"utf_8", "gb18030", "gbk"})
_OTHER_NAMES = {
    "GB18030": "gb18030", "GBK": "gbk", "ISO2022GBK": "gbk", "ISO202258": "gb2312", "GB2312": "gb2312", "UTF8": "utf_8",
    "ASCII": "ascii", "LATIN1": "iso8859_1", "LATIN2": "iso8859_2", "SHIFTJIS": "shift_jis", "EUCKR": "euc_kr",
}  # fmt: skip
_NUMBERED = re.compile(r"(?:ISO)?(?:2022)?IR(\d+)")
_PYTHON_NAMED = re.compile(r"(?:ISO)?8859(\d{1,2})|(?:WINDOWS|CP)(125\d)")

_ESCAPE = re.compile(b"(" + b"|".join(re.escape(escape) for escape in _BY_ESCAPE) + b")")
# What ends the reach of an escape sequence (PS3.5 6.1.2.5.3).
_TEXT_DELIMITERS = "\\\r\n\f\t"
_NAME_DELIMITERS = "\\^=\r\n\f\t"


def character_sets(value: str | Sequence[str] | None, default: str = "") -> tuple[str, ...]:
    """The values of (0008,0005); those of the node's `default` when the data set has none, or only an empty one."""
    declared = value.split("\\") if isinstance(value, str) else list(value or ())
    if not any(term.strip() for term in declared):
        declared = default.split("\\")
    return tuple(term.strip() for term in declared)


@lru_cache(maxsize=4096)
def codec_of(term: str) -> str:
    """The Python codec of one defined term, misspelt or not ('ISO IR 192'); ASCII for '' and for the unknown."""
    squeezed = re.sub(r"[\s_.:-]", "", term).upper()
    if squeezed in _OTHER_NAMES:
        return _OTHER_NAMES[squeezed]
    if numbered := _NUMBERED.fullmatch(squeezed):
        return _BY_NUMBER.get(int(numbered[1]), "ascii")
    if named := _PYTHON_NAMED.fullmatch(squeezed):
        return _known(f"iso8859_{named[1]}" if named[1] else f"cp{named[2]}")
    return "ascii"


def require_known(terms: str) -> str:
    """The text of a (0008,0005) that somebody configured, unless a term of it is none: it would be read as ASCII."""
    for term in terms.split("\\"):
        if term.strip() not in ("", "ISO_IR 6", "ISO 2022 IR 6") and codec_of(term) == "ascii":
            raise ValueError(f"'{term}' is not a DICOM character set (PS3.3 C.12.1.1.2), such as ISO_IR 192")
    return terms


def _known(codec: str) -> str:
    try:
        return codecs.lookup(codec).name
    except LookupError:
        return "ascii"


@lru_cache(maxsize=4096)
def _codecs(terms: tuple[str, ...]) -> tuple[str, ...]:
    """The codecs in their order; a stand-alone set forbids code extensions, so it is alone or does not count."""
    found = tuple(codec_of(term) for term in terms) or ("ascii",)
    if found[0] in _STAND_ALONE:
        return found[:1]
    return (found[0], *(codec for codec in found[1:] if codec not in _STAND_ALONE))


def decode(value: bytes, character_sets: Sequence[str], vr: str = "LO") -> str:
    """The text of a value field, backslashes and padding included. Never raises; what cannot be decoded becomes U+FFFD.

    `character_sets` are the values of (0008,0005) that apply. Split at backslashes afterwards, not before: in GB18030
    and JIS X 0208 a backslash may be half a letter.
    """
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    first = _codecs(tuple(character_sets))[0]
    if first in _STAND_ALONE or b"\x1b" not in value:
        text = value.decode(first, "replace")
    else:
        text = _decode_extended(value, first, _NAME_DELIMITERS if vr == "PN" else _TEXT_DELIMITERS)
    return text.replace("\x1b", REPLACEMENT)


def _decode_extended(value: bytes, first: str, delimiters: str) -> str:
    """Text with ISO 2022 escapes. A known escape counts even where (0008,0005) does not declare its set."""
    initial, *escaped = _ESCAPE.split(value)
    text = initial.decode(first, "replace")
    for escape, fragment in zip(escaped[::2], escaped[1::2], strict=True):
        codec = _BY_ESCAPE[escape]
        if codec in _SELF_ESCAPING:
            text += (escape + fragment).decode(codec, "replace")
        else:
            text += _decode_fragment(fragment, first if codec == "ascii" else codec, first, delimiters)
    return text


def _decode_fragment(fragment: bytes, codec: str, first: str, delimiters: str) -> str:
    """After a delimiter the first set is back, unless the bytes are not of it (some devices escape only once)."""
    cut = next((at for at, byte in enumerate(fragment) if chr(byte) in delimiters), len(fragment))
    reached, rest = fragment[:cut].decode(codec, "replace"), fragment[cut:]
    try:
        return reached + rest.decode(first)
    except UnicodeDecodeError:
        return reached + rest.decode(codec, "replace")


@dataclass(frozen=True, slots=True)
class EncodedKey:
    """A matching key as a node can read it: `text` with `?` for each letter the node's set lacks, `value` its bytes.

    When `exact` is false, the key is wider than what was asked and every row has to be matched again.
    """

    text: str
    value: bytes
    exact: bool


def encode_key(text: str, character_set: str) -> EncodedKey:
    """A request key in the node's (0008,0005), which may name several sets ('\\ISO 2022 IR 87'), after NFC."""
    composed = unicodedata.normalize("NFC", text)
    found = _codecs(character_sets(character_set))
    chosen = [_codec_for(letter, found) for letter in composed]
    sent = "".join(letter if codec else "?" for letter, codec in zip(composed, chosen, strict=True))
    return EncodedKey(sent, _encode_runs(sent, found), exact=sent == composed)


@lru_cache(maxsize=4096)
def _codec_for(letter: str, found: tuple[str, ...]) -> str:
    """The first of the sets that has the letter; '' when none has."""
    return next((codec for codec in found if _encodes(letter, codec)), "")


def _encodes(letter: str, codec: str) -> bool:
    try:
        encoded = letter.encode(codec)
    except UnicodeEncodeError:
        return False
    # The double bytes of Python's shift_jis are no part of JIS X 0201, and its yen sign would be read as a backslash.
    return (codec != "shift_jis" or len(encoded) == 1) and encoded.decode(codec) == letter


def _encode_runs(text: str, found: tuple[str, ...]) -> bytes:
    """Runs of letters of one set, each set after the first behind its escape sequence; delimiters stay in the first."""
    runs = groupby(text, lambda letter: _codec_for(letter, found) or found[0])
    encoded, current = b"", found[0]
    for codec, letters in runs:
        run = "".join(letters)
        if codec not in _SELF_ESCAPING and codec not in ("ascii", current):
            encoded += _TO_ESCAPE[codec]
        encoded, current = encoded + run.encode(codec, "replace"), codec
    return encoded
