"""Turns a NativeQuery into a C-FIND identifier, and keeps account of what a node can have matched (PS3.4 C.2.2.2).

A key is pushed only in a form that cannot lose a row: the federation matches every row again, but a row that the node
left out is lost. So in the default, "wide", a person's name is pushed without the letters in which nodes differ from us
(PS3.4 leaves case and diacritics of PN to them, and they compare bytes), and other text without what is not ASCII.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from pydicom import Dataset as Identifier
from pydicom.dataelem import DataElement

from gateway.errors import InvalidQuery
from gateway.model.dataset import Dataset, text
from gateway.model.folding import fold_name
from gateway.model.query import Operator
from gateway.model.seam import NativeMatch, NativeQuery, Report
from gateway.model.vocabulary import (
    INSTANCE_UID,
    RETRIEVE_AE_TITLE,
    RETRIEVE_URL,
    RETURNED,
    SERIES_KEYS,
    SERIES_UID,
    SPECIFIC_CHARACTER_SET,
    STUDY_KEYS,
    STUDY_UID,
    Level,
    path,
    tag,
    vr,
)
from gateway.wire.charset import character_sets, codec_of, encode_key
from gateway.wire.widen import rarest_word, widen_times, without_oddities

KEYS_NOT_SUPPORTED = 0xFF01
_TEXT_VRS = frozenset({"AE", "CS", "LO", "LT", "SH", "ST", "UC", "UR", "UT"})
_ASCII_VRS = frozenset({"AE", "CS", "UR"})  # (0008,0005) says nothing of them (PS3.5 6.1.2.2)
_UNIQUE = frozenset({STUDY_UID, SERIES_UID, INSTANCE_UID})
_WANTED_OF_IMAGES = tuple(
    map(tag, ("ImageType", "ContentDate", "ContentTime", "AcquisitionDate", "AcquisitionTime", "AcquisitionNumber"))
)
_ALL = {Level.STUDY: STUDY_KEYS, Level.SERIES: SERIES_KEYS, Level.IMAGE: frozenset(_WANTED_OF_IMAGES)}
_NEVER_ASKED = frozenset({RETRIEVE_URL, tag("QueryRetrieveLevel"), tag("AvailableTransferSyntaxUID")})


@dataclass(frozen=True, slots=True)
class TextMatching:
    """How a node compares text. `exact`: as we do, so keys go out as they are given. Otherwise they go out wider.

    `ignores_case` says that the node was seen to compare names without case, `takes_times` that it was seen to find studies by
    ranges of their times; `character_set` is what it stores.
    """

    exact: bool = False
    ignores_case: bool = False
    takes_times: bool = False
    character_set: str = ""

    def name(self, key: str) -> tuple[str, bool]:
        """A PN key as it is pushed ('' for not at all), and whether it still means what was asked."""
        if self.exact:
            return self._encoded(key)
        steady = _steady_letters(self.character_set) if self.ignores_case and "=" not in key else frozenset()
        kept = re.sub(r"\*+", "*", "".join(c if c.lower() in steady else "*" for c in f"*{key}*"))
        return kept.strip("*") and kept, False

    def words(self, key: str) -> tuple[str, bool]:
        """A name that is looked for by the beginnings of its words in any order: one of them, anywhere in the name."""
        return rarest_word(key, lambda word: self.name(word)[0] or None) or "", False

    def text(self, key: str, vr_: str) -> tuple[str, bool]:
        """Any other text key, in the same way; padding does not count (PS3.5 6.2)."""
        key = key.strip(" ")
        if self.exact and (key.isascii() or vr_ not in _ASCII_VRS):
            return self._encoded(key)
        kept = re.sub(r"[^\x00-\x7f]+|\\", "*", key) if not key.isascii() else key
        kept = without_oddities(kept) if set("*?") & set(kept) else kept
        return self._encoded(key) if kept == key else (kept.strip("*") and kept, False)

    def _encoded(self, key: str) -> tuple[str, bool]:
        single = key.replace("\\", "?")  # a backslash would make two keys of one
        encoded = encode_key(single, self.character_set)
        return encoded.text, encoded.exact and single == key


@lru_cache(maxsize=64)
def _steady_letters(character_set: str) -> frozenset[str]:
    """The ASCII letters and digits that no other letter of the set folds to: in Latin-2 'k', but not 's' (Š, Ś, Ş).

    None in a set that is unknown or has several bytes a letter.
    """
    terms = character_sets(character_set)
    codec = codec_of(terms[0]) if len(terms) == 1 else ""
    if not codec.startswith("iso8859"):
        return frozenset()
    upper_half = bytes(range(0xA0, 0x100)).decode(codec, "ignore")
    folded = {plain for letter in upper_half for plain in fold_name(letter)}
    return frozenset(string.ascii_lowercase + string.digits) - folded


@dataclass(slots=True)
class FindRequest:
    """A C-FIND identifier and the account of its keys, by native path, kept up to date with every response."""

    identifier: Identifier
    pushed: dict[str, str] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)

    def note(self, status: int, row: Dataset) -> None:
        """A node that answers FF01, or without a value for a key, has not matched on it (PS3.4 C.4.1.1.4)."""
        for name, tag_ in list(self.pushed.items()):
            if tag_ not in _UNIQUE and (status == KEYS_NOT_SUPPORTED or not _has_value(row, tag_)):
                self._give_up(name)

    def _give_up(self, name: str) -> None:
        del self.pushed[name]
        self.ignored.add(name)

    def report(self, *, truncated: bool, known_ignored: Iterable[str] = ()) -> Report:
        """`known_ignored` are tags that the node was seen not to match on."""
        for name in [name for name, tag_ in self.pushed.items() if tag_ in set(known_ignored)]:
            self._give_up(name)
        return Report(
            frozenset(self.pushed), frozenset(self.ignored), frozenset(self.unknown), truncated, complete_rows=False
        )


def _has_value(row: Dataset, tag_: str) -> bool:
    attribute = row.get(tag_, {})
    return bool(attribute.get("Value")) if attribute.get("vr") == "SQ" else text(row, tag_) != ""


def request_of(query: NativeQuery, matching: TextMatching) -> FindRequest:
    """The identifier with keys, parents and return keys. A key that cannot be pushed safely is reported as ignored."""
    request = FindRequest(Identifier())
    for match in query.match:
        _add_key(request, match, matching)
    for parent, uid in ((STUDY_UID, query.study), (SERIES_UID, query.series)):
        if uid:
            _put(request.identifier, (parent,), uid)
    for tags in _return_keys(query, request):
        _put(request.identifier, tags, None)
    request.identifier.QueryRetrieveLevel = str(query.level)
    _declare_character_set(request.identifier, matching)
    return request


def _add_key(request: FindRequest, match: NativeMatch, matching: TextMatching) -> None:
    try:
        tags = path(match.path)
    except InvalidQuery:
        request.unknown.add(match.path)
        return
    value, is_same = _pushed_value(match, vr(tags[-1]), matching)
    if value:
        _put(request.identifier, tags, value)
    else:
        _put(request.identifier, tags, None)
    if value and is_same:
        request.pushed[match.path] = tags[0]
    else:
        request.ignored.add(match.path)


def _pushed_value(match: NativeMatch, vr_: str, matching: TextMatching) -> tuple[str | list[str], bool]:
    """What goes out ('' for nothing), and whether it means what was asked.

    Numbers never go out, and times as a range of all their texts, where the node was seen to take that: nodes compare texts, and
    10:15 has many ('1015', '101500.000').
    """
    if vr_ == "UI" and match.operator in (Operator.EXACT, Operator.LIST):
        return list(match.values), True
    if vr_ == "DA" and match.operator in (Operator.EXACT, Operator.RANGE):
        return "-".join(match.values), True
    if vr_ == "TM" and match.operator in (Operator.EXACT, Operator.RANGE):
        return (widen_times(match.values[0], match.values[-1]) if matching.takes_times else ""), False
    if match.operator is Operator.FUZZY and vr_ == "PN":
        return matching.words(match.values[0])
    if len(match.values) != 1 or match.operator not in (Operator.EXACT, Operator.WILDCARD):
        return "", False
    if vr_ == "PN":
        return matching.name(match.values[0])
    return matching.text(match.values[0], vr_) if vr_ in _TEXT_VRS else ("", False)


def _return_keys(query: NativeQuery, request: FindRequest) -> Iterable[tuple[str, ...]]:
    unique = {
        Level.STUDY: (STUDY_UID,),
        Level.SERIES: (STUDY_UID, SERIES_UID),
        Level.IMAGE: (STUDY_UID, SERIES_UID, INSTANCE_UID),
    }[query.level]
    every = _ALL[query.level] if query.all_attributes else ()
    for tag_ in (SPECIFIC_CHARACTER_SET, RETRIEVE_AE_TITLE, *unique, *RETURNED[query.level], *every):
        if tag_ not in _NEVER_ASKED:
            yield (tag_,)
    for name in query.return_:
        try:
            yield path(name)
        except InvalidQuery:
            request.unknown.add(name)


def _put(dataset: Identifier, tags: tuple[str, ...], value: str | list[str] | None) -> None:
    """A key or, with None, a return key; inside sequences in their one item. A return key never overwrites a key."""
    number = int(tags[0], 16)
    if len(tags) > 1:
        if number not in dataset or not dataset[number].value:
            dataset[number] = DataElement(number, "SQ", [Identifier()])
        _put(dataset[number].value[0], tags[1:], value)
    elif value is not None or number not in dataset:
        vr_ = vr(tags[0])
        dataset[number] = DataElement(number, vr_, [] if vr_ == "SQ" else value)


def _declare_character_set(identifier: Identifier, matching: TextMatching) -> None:
    """(0008,0005) of the request: the node's where a key is not ASCII, else empty, which asks for it back."""
    is_ascii = all(str(element.value).isascii() for element in identifier.iterall() if element.VR != "SQ")
    identifier.SpecificCharacterSet = None if is_ascii else list(character_sets(matching.character_set))
