"""Letters made comparable: canonical forms for every text, and names without case and diacritics (PS3.4 C.2.2.2.1)."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Accents and points only: the vowel signs of Indic scripts and the voicing marks of kana are letters' own parts.
_ACCENTS = re.compile(
    "[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u064b-\u0652\u0670\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
)
# Letters that are written with a stroke or as a ligature, and so do not decompose.
_PLAIN = str.maketrans(
    {"ł": "l", "ø": "o", "đ": "d", "ð": "d", "ħ": "h", "ŧ": "t", "ŋ": "n", "ı": "i", "ĸ": "k"}
    | {"æ": "ae", "œ": "oe", "þ": "th", "ĳ": "ij", "ŀ": "l"}
)


def fold(text: str) -> str:
    """The composed canonical form: the same letters compare equal however they were typed. Case and accents stay."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


@lru_cache(maxsize=8192)
def fold_name(text: str) -> str:
    """Without case and diacritics: 'Łukasz Müller' -> 'lukasz muller', 'Γιώργος' -> 'γιωργοσ', 'ß' -> 'ss'."""
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFC", _ACCENTS.sub("", plain).translate(_PLAIN))


_BETWEEN_WORDS = re.compile(r"[\s^=,.;'\u2019\u30fb-]+")


def name_words(name: str) -> tuple[str, ...]:
    """The words of a person's name, or of a key for one, as written and in order: of all components of all groups, and
    the halves of a double name ('García-López^María=...' has three)."""
    return tuple(word for word in _BETWEEN_WORDS.split(name) if word.strip("*?"))
