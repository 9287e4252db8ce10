"""Person names as wildcard keys that miss nobody: nodes differ on case and diacritics (PS3.4 C.2.2.2.1)."""

from __future__ import annotations

import re
from collections.abc import Callable

from gateway.model.folding import name_words
from gateway.model.spans import span

_WILDCARDS = re.compile(r"[*?]*\*[*?]*")
# No European orthography puts a diacritic on these or folds a ligature into them; every other letter has a variant.
_NEVER_ACCENTED = frozenset("bfmpqvxBFMPQVX")


def widen_name(text: str, *, keep_ascii: bool, case_folded: bool = False) -> str | None:
    """The key with '*' for every letter that the node may hold otherwise; None when nothing specific remains.

    `keep_ascii`: the node finds 'Müller' by 'Muller' itself, only letters outside ASCII are in its way. Else ASCII
    letters go too, but for those that never bear a diacritic where the node matches names without case (`case_folded`).
    What is found is a superset, to be matched again. '*' and not '?', because one letter may be two ('ß', 'æ') or, to
    some nodes, several bytes; a last '*' lets the ideographic and phonetic groups be there (PS3.5 6.2.1).
    """
    widened = "".join(char if _stays(char, keep_ascii, case_folded) else "*" for char in text) + "*"
    widened = _WILDCARDS.sub("*", widened)
    return widened if any(char.isalnum() for char in widened) else None


def widen_times(low: str, high: str) -> str:
    """A range from one TM to another ('' for an open end) that nodes which compare texts take as it is meant: '1015', '101500' and
    '101559.5' all lie between '1015' and '101559.999999'."""
    first, last = span("TM", low), span("TM", high)
    begins = f"{first[0]:%H%M%S.%f}".rstrip("0").rstrip(".") if first else low
    while len(begins) in (4, 6) and begins.endswith("00"):
        begins = begins[:-2]
    return f"{begins}-{last[1]:%H%M%S.%f}" if last else f"{begins}-{high}"


def without_oddities(text: str) -> str:
    """A key with '*' for what nodes do not take alike: to some '?' is one byte, ',' ends a value, and '%' is a wildcard."""
    if not text.strip("*?"):  # that there is a value at all
        return text
    return _WILDCARDS.sub("*", re.sub("[,?%]+", "*", text))


def is_taken_alike(text: str) -> bool:
    """Whether a key without wildcards means the same to every node."""
    return text.isascii() and without_oddities(text) == text


def rarest_word(text: str, widened: Callable[[str], str | None]) -> str | None:
    """Of the words of a name that is looked for in any order the one that leaves most of itself when it is `widened`, as
    '*word*'; None where nothing is left of any.

    One pattern holds one word only, since the others may stand before it or behind. Any name that is to be found has it.
    """
    asked = [one for word in name_words(text) if (one := widened(f"*{word}*"))]
    return max(asked, key=lambda one: sum(map(str.isalnum, one)), default=None)


def _stays(char: str, keep_ascii: bool, case_folded: bool) -> bool:
    if not char.isascii():
        return False
    return keep_ascii or not char.isalpha() or (case_folded and char in _NEVER_ACCENTED)
