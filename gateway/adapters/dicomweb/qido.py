"""QIDO-RS requests as each node understands them: which keys go out, how spelled, and what must be matched here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from gateway.errors import InvalidQuery
from gateway.model.query import Operator
from gateway.model.seam import NativeMatch, NativeQuery, Report, Shown
from gateway.model.vocabulary import INSTANCE_UID, SERIES_UID, STUDY_UID, Level, path, path_name, vr
from gateway.wire.widen import rarest_word, widen_name, widen_times, without_oddities

NO_PERCENT_DECODING = "no-percent-decoding"
IGNORES_HEX_TAGS = "ignores-hex-tags"
IGNORES_LIMIT = "ignores-limit"
IGNORES_OFFSET = "ignores-offset"
IGNORES_KEY = "ignores-"  # followed by a keyword
NO_RELATIONAL = "no-relational-search"
FOLDS_NAMES = "folds-names"
CASE_SENSITIVE_NAMES = "case-sensitive-names"
FUZZY_NAMES = "fuzzy-names"
"""Said by an administrator only: with fuzzymatching=true the node finds every name in which each word of the key begins a
word. What nodes mean by it differs so much (some go by sound) that no few searches could show it."""

_TEXT_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})  # wildcards: PS3.4 C.2.2.2.4
# Legal in a query (RFC 3986 3.4) and taken alike by nodes that decode it and nodes that do not.
_PLAIN = "*,?:/-._~"
# Goes out raw to a node that does not decode: what is left is either not sendable or means something to servers.
_UNDECODED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789*,?:/-._~^!$'()@\\")


@dataclass(frozen=True, slots=True)
class Search:
    """One QIDO-RS search: the resource, its query without limit and offset, and which keys do what."""

    resource: str
    query: str
    matched: frozenset[str]
    ignored: frozenset[str]
    unknown: frozenset[str]

    @property
    def is_relational(self) -> bool:
        """Whether all studies are searched below the study level, which not every node does (PS3.18 10.6.1)."""
        return self.resource in ("series", "instances")

    @property
    def has_parent(self) -> bool:
        return self.resource.startswith("studies/")

    def page(self, offset: int, limit: int | None) -> str:
        """The query string of one page."""
        paging = [f"limit={limit}"] if limit is not None else []
        paging += [f"offset={offset}"] if offset else []
        return "&".join(filter(None, (self.query, *paging)))

    def report(self, *, truncated: bool, gaps: tuple[str, ...] = (), sample: tuple[Shown, ...] = ()) -> Report:
        return Report(self.matched, self.ignored, self.unknown, truncated, gaps=gaps, sample=sample)


@dataclass(frozen=True, slots=True)
class _Key:
    """A key as sent; `whole` says that the node's own match of it is the whole answer."""

    name: str
    value: str
    whole: bool


@lru_cache(512)
def build(query: NativeQuery, quirks: frozenset[str]) -> Search:
    """The search for a query. fuzzymatching is asked only of a node that is said to mean by it what we do (FUZZY_NAMES);
    of any other a broader key is asked, and names are matched here."""
    keys: dict[str, _Key] = {}
    matched, unknown = set(), set()
    for match in (*_parents(query), *query.match):
        try:
            key = _key(match, quirks, is_below=bool(query.study))
        except InvalidQuery:
            unknown.add(match.path)
            continue
        if key is None or key.name in keys:  # an attribute may appear only once (PS3.18 8.3.4.1)
            continue
        keys[key.name] = key
        if key.whole:
            matched.add(match.path)
    asked = {match.path for match in query.match}
    parameters = [f"{key.name}={key.value}" for key in keys.values()] + _include(query)
    if FUZZY_NAMES in quirks and any(match.operator is Operator.FUZZY for match in query.match):
        parameters.append("fuzzymatching=true")
    return Search(
        _resource(query),
        "&".join(parameters),
        frozenset(matched & asked),
        frozenset(asked - matched - unknown),
        frozenset(unknown),
    )


def _resource(query: NativeQuery) -> str:
    """PS3.18 Table 10.6.1-2. Without parents the relational resources are asked."""
    if query.level is Level.STUDY:
        return "studies"
    below = f"studies/{quote(query.study, safe='')}/" if query.study else ""
    if query.level is Level.SERIES:
        return below + "series"
    return below + (f"series/{quote(query.series, safe='')}/" if query.study and query.series else "") + "instances"


def _parents(query: NativeQuery) -> Iterable[NativeMatch]:
    """The UIDs above that the path of the resource does not say."""
    if query.study and query.level is Level.STUDY:
        yield NativeMatch(path_name((STUDY_UID,)), Operator.EXACT, (query.study,))
    if query.series and (query.level is Level.SERIES or not query.study):
        yield NativeMatch(path_name((SERIES_UID,)), Operator.EXACT, (query.series,))


def _key(match: NativeMatch, quirks: frozenset[str], is_below: bool) -> _Key | None:
    """None where the key cannot be asked of this node. Raises InvalidQuery for a path that is no DICOM attribute."""
    tags = path(match.path)
    name = path_name(tags)
    is_hex = any(step[:1].isdigit() for step in name.split("."))
    if vr(tags[-1]) in ("DS", "IS") and is_below:
        return None  # '1' may be '01' there, and what a study has of them is little
    text = _text(match, vr(tags[-1]))
    if text is None or (is_hex and IGNORES_HEX_TAGS in quirks):
        return None
    if match.operator is Operator.FUZZY and FUZZY_NAMES not in quirks:
        asked = rarest_word(text, lambda word: _widened(word, "PN", quirks))
    elif match.operator is Operator.FUZZY:
        asked = text if NO_PERCENT_DECODING not in quirks or set(text) <= _UNDECODED else None
    else:
        asked = _widened(text, vr(tags[-1]), quirks)
    if asked is None:
        return None
    value = asked if NO_PERCENT_DECODING in quirks else quote(asked, safe=_PLAIN)
    return _Key(name, value, whole=asked == text and IGNORES_KEY + name not in quirks)


def _text(match: NativeMatch, vr_: str) -> str | None:
    """The values in the syntax of PS3.18 8.3.4.1; None for what it has no syntax for, a list of anything but UIDs."""
    if vr_ == "TM" and match.operator in (Operator.EXACT, Operator.RANGE):
        return widen_times(match.values[0], match.values[-1])
    if match.operator is Operator.RANGE:
        return "-".join(match.values)
    if match.operator is Operator.LIST and len(match.values) > 1:
        return ",".join(match.values) if vr_ == "UI" else None
    return match.values[0]


def _widened(text: str, vr_: str, quirks: frozenset[str]) -> str | None:
    """The value with wildcards for what this node would not match or not even read; None when nothing can be asked."""
    asked: str | None = text
    if vr_ == "PN" and FOLDS_NAMES not in quirks:
        asked = widen_name(text, keep_ascii=False, case_folded=CASE_SENSITIVE_NAMES not in quirks)
    if asked is not None and NO_PERCENT_DECODING in quirks:
        # Not a '?' each: such nodes count bytes, and a letter may be several.
        asked = "".join(char if char in _UNDECODED else "*" for char in asked)
    if asked is None or vr_ not in _TEXT_VRS:
        return asked if asked == text else None
    plain = without_oddities(asked)
    return asked if plain == asked else (plain.strip("*") and plain) or None


def _include(query: NativeQuery) -> list[str]:
    """includefield: whole sequences are asked for by their own tag, and the level's UID comes unasked."""
    if query.all_attributes:
        return ["includefield=all"]
    own = {Level.STUDY: STUDY_UID, Level.SERIES: SERIES_UID, Level.IMAGE: INSTANCE_UID}[query.level]
    roots: dict[str, None] = {}
    for native in query.return_:
        root = path(native)[0]
        if root != own:
            roots[path_name((root,))] = None
    return ["includefield=" + ",".join(roots)] if roots else []
