"""Whether a data set answers a key: the matching of PS3.4 C.2.2.2, for whatever a node did not match itself.

Three answers: True, False, and None where the data set does not say (the attribute is absent): nothing is guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from gateway.model.dataset import NUMERIC_VRS, PN_GROUPS, Dataset, as_text, items, texts
from gateway.model.folding import fold, fold_name, name_words
from gateway.model.query import Match, Operator, Query
from gateway.model.spans import Span, lies_within, span
from gateway.model.study import Row
from gateway.model.vocabulary import ISSUER, PATIENT_ID, tag

DATE_TIME_PAIRS = {
    tag(f"{name}Date"): tag(f"{name}Time")
    for name in ("Study", "Series", "Acquisition", "Content", "PerformedProcedureStepStart", "PatientBirth")
}
Verdict = tuple[bool | None, list[Match]]
_OF_A_PATIENT = ((PATIENT_ID,), (ISSUER,))
_LEADING_SPACE_COUNTS = frozenset({"LT", "ST", "UT", "UC", "UR"})  # PS3.5 Table 6.2-1


_YES: Verdict = (True, [])


@lru_cache(maxsize=256)
def decider(query: Query) -> Callable[[Row], Verdict]:
    """Whether a row answers the whole query, and the keys it leaves undecided (empty unless the answer is None)."""
    if query.by_any_identifier:
        return _by_any_identifier(query)
    pairs = dict(combined(query))
    keys = [(key, pairs.get(key)) for key in query.matches if key not in pairs.values()]
    tests = [(key, clock, _on_dataset(key, clock)) for key, clock in keys]

    def decided(row: Row) -> Verdict:
        if (query.study and row.study != query.study) or (query.series and row.series and row.series != query.series):
            return False, []
        undecided: list[Match] = []
        for key, clock, test in tests:
            verdict = test(row.attributes)
            if verdict is False:
                return False, []
            if verdict is None:
                undecided.extend(filter(None, (key, clock)))
        return (None, undecided) if undecided else _YES

    return decided


def _by_any_identifier(query: Query) -> Callable[[Row], Verdict]:
    """A row whose patient bears the identifier beside his own has nothing more to say of whose it is. Of an issuer that gave him
    two, neither is certain."""
    own = replace(query, by_any_identifier=False)
    of_others = replace(own, matches=tuple(match for match in query.matches if match.path not in _OF_A_PATIENT))
    by_own, by_others = decider(own), decider(of_others)
    ids, issuers = (match.values if (match := query.match_on(*path)) else () for path in _OF_A_PATIENT)

    def decided(row: Row) -> Verdict:
        given = Counter(key.issuer for key in (row.patient, *row.linked))
        others = [key for key in row.linked if given[key.issuer] == 1]
        is_linked = any(key.id in ids and key.issuer in issuers for key in others)
        return by_others(row) if is_linked else by_own(row)

    return decided


def _on_dataset(match: Match, time_match: Match | None) -> Callable[[Dataset], bool | None]:
    if time_match:
        return lambda dataset: matches_span(match, time_match, dataset)
    if _is_universal(match):
        return lambda dataset: True
    path = match.path
    if match.operator is Operator.EMPTY:
        return lambda dataset: _is_empty(path, dataset)
    test = _test_of(match)
    return lambda dataset: _at(path, dataset, test)


def matches(match: Match, dataset: Dataset) -> bool | None:
    """One key against one data set. An attribute that is present but empty matches nothing but universal matching, and
    empty value matching (C.2.2.2.7).

    A sequence matches if any of its items does (C.2.2.2.6); a multi-valued attribute if any value does.
    """
    if match.operator is Operator.EMPTY:
        return _is_empty(match.path, dataset)
    return _is_universal(match) or _at(match.path, dataset, _test_of(match))


def _is_universal(match: Match) -> bool:
    return match.operator is Operator.WILDCARD and not match.values[0].strip("*")


def matches_span(date_match: Match, time_match: Match, dataset: Dataset) -> bool | None:
    """A date range and a time range that mean one span, from the first moment to the last (C.2.2.2.5.4).

    A day strictly inside the span needs no time. The keys are attributes of the data set itself, not of a sequence.
    """
    days = tuple(span("DA", day) for day in date_match.values)
    inside = matches(date_match, dataset)
    if not inside:
        return inside
    day = next(filter(None, (span("DA", text) for text in texts(dataset, date_match.path[0]))))
    if day not in days:
        return True
    clocks = tuple(span("TM", clock) if clock else None for clock in time_match.values)
    low, high = (clock if day == edge else None for clock, edge in zip(clocks, days, strict=True))
    return _at(time_match.path, dataset, lambda value: _is_within("TM", value, low, high))


def combined(query: Query) -> Iterator[tuple[Match, Match]]:
    """The (date key, time key) pairs that are both ranges, where the query means them as one span."""
    if not query.combined_datetime:
        return
    for match in query.matches:
        if match.operator is Operator.RANGE and len(match.path) == 1 and match.path[0] in DATE_TIME_PAIRS:
            time_match = query.match_on(DATE_TIME_PAIRS[match.path[0]])
            if time_match and time_match.operator is Operator.RANGE:
                yield match, time_match


def _at(path: tuple[str, ...], dataset: Dataset, test: Callable[[Any], bool]) -> bool | None:
    attribute = dataset.get(path[0])
    if attribute is None or "BulkDataURI" in attribute:  # bulk data left elsewhere says nothing
        return None
    if len(path) == 1:
        found = attribute.get("Value", ())
        return test(found[0]) if len(found) == 1 else any(map(test, found))
    verdicts = [_at(path[1:], item, test) for item in items(dataset, path[0])]
    if True in verdicts:
        return True
    return None if None in verdicts else False


def _is_empty(path: tuple[str, ...], dataset: Dataset) -> bool | None:
    """Whether the attribute has no value. An absent one may have none, or be one that is not told: None."""
    attribute = dataset.get(path[0])
    if attribute is None:
        return None
    if len(path) == 1:
        has_value = any(value not in (None, "", {}) for value in attribute.get("Value", ()))
        return not has_value and not any(attribute.get(key) for key in ("BulkDataURI", "InlineBinary"))
    verdicts = [_is_empty(path[1:], item) is not False for item in items(dataset, path[0])]
    return any(verdicts) or not verdicts  # what an item does not have, it has no value for


@lru_cache(maxsize=1024)
def _test_of(match: Match) -> Callable[[Any], bool]:
    """The test that one value of the attribute has to pass."""
    vr = match.vr
    if vr in ("DA", "TM", "DT"):
        return _temporal_test(match, vr)
    if vr in NUMERIC_VRS:
        return _numeric_test(match)
    if vr == "PN":
        return _name_test(match)
    return _text_test(match, vr)


def _text_test(match: Match, vr: str) -> Callable[[Any], bool]:
    """Case-sensitive; padding does not count (PS3.5 6.2)."""
    if match.operator is Operator.WILDCARD:
        pattern = wildcard(_unpadded(match.values[0], vr))
        return lambda value: bool(pattern.fullmatch(_unpadded(as_text(value), vr)))
    wanted = {_unpadded(value, vr) for value in match.values}
    return lambda value: _unpadded(as_text(value), vr) in wanted


def _unpadded(text: str, vr: str) -> str:
    text = text.rstrip(" \0")
    return fold(text if vr in _LEADING_SPACE_COUNTS else text.lstrip(" "))


@lru_cache(maxsize=4096)
def wildcard(pattern: str) -> re.Pattern[str]:
    """`*` as any characters, `?` as any one (C.2.2.2.4).

    Each piece is taken at its first place and kept there (an atomic group): a hostile key costs no backtracking.
    """
    first, *rest = ["".join("." if c == "?" else re.escape(c) for c in piece) for piece in pattern.split("*")]
    middle = "".join(f"(?>.*?{piece})" for piece in rest[:-1] if piece)
    return re.compile(first + middle + (f".*{rest[-1]}" if rest else ""), re.DOTALL)


def _name_test(match: Match) -> Callable[[Any], bool]:
    """PN without case and diacritics; a key without '=' may match any component group of the value (C.2.2.2.1)."""
    if match.operator is Operator.FUZZY:
        return _fuzzy_test(match)
    if match.operator is Operator.WILDCARD:
        tests = [_wildcard_name_groups(match.values[0])]
    else:
        tests = [[_exact_group(group) for group in value.split("=")] for value in match.values]

    def test(value: Any) -> bool:
        groups = _groups(value)
        return any(_match_groups(group_tests, groups) for group_tests in tests)

    return test


def _fuzzy_test(match: Match) -> Callable[[Any], bool]:
    """Each word of the key begins a word of the name, in any order and in any component group; case and diacritics do not
    count. What matches literally matches, too."""
    key = match.values[0]
    operator = Operator.WILDCARD if "*" in key or "?" in key else Operator.EXACT
    literal = _name_test(replace(match, operator=operator))
    beginnings = [_beginning(word) for word in name_words(key)]

    def test(value: Any) -> bool:
        if literal(value):
            return True
        words = name_words("^".join(_groups(value)))
        return all(any(begins(word) for word in words) for begins in beginnings)

    return test


def _beginning(word: str) -> Callable[[str], bool]:
    folded = fold_name(word)
    if "*" not in word and "?" not in word:
        return lambda other: fold_name(other).startswith(folded)
    patterns = wildcard(folded + "*"), wildcard(fold(word).lower() + "*")
    return lambda other: bool(patterns[0].fullmatch(fold_name(other)) or patterns[1].fullmatch(fold(other).lower()))


def _match_groups(tests: list[Callable[[str], bool] | None], groups: list[str]) -> bool:
    if len(tests) == 1 and tests[0]:
        return any(group and tests[0](group) for group in groups)
    return all(test is None or test(group) for test, group in zip(tests, groups, strict=False))


def _groups(value: Any) -> list[str]:
    """The three component groups of a PN value, '' where there is none; a bare text is taken apart at '='."""
    if isinstance(value, dict):
        found = [value.get(group) for group in PN_GROUPS]
        return [group if isinstance(group, str) else "" for group in found]
    return [*as_text(value).split("="), "", "", ""][:3]


def _exact_group(key: str) -> Callable[[str], bool] | None:
    if not key:
        return None
    wanted = fold_name(_components(key))
    return lambda group: fold_name(_components(group)) == wanted


def _wildcard_name_groups(key: str) -> list[Callable[[str], bool] | None]:
    return [_wildcard_group(group) if group else None for group in key.split("=")]


def _wildcard_group(key: str) -> Callable[[str], bool]:
    """Tried on the folded name and on the name as written, where '?' is one letter though 'ß' folds to two; and on each
    also with all five components, since trailing empty ones may be left out: 'Novak^*' finds 'Novak'."""
    key = _components(key)
    folded, written = wildcard(fold_name(key)), wildcard(fold(key).lower())

    def test(group: str) -> bool:
        short = _components(group)
        forms = (short, short + "^" * (4 - short.count("^")))
        return any(folded.fullmatch(fold_name(form)) or written.fullmatch(fold(form).lower()) for form in forms)

    return test


def _components(group: str) -> str:
    """A component group without padding and without its trailing empty components (PS3.5 6.2.1.1)."""
    return "^".join(component.strip() for component in group.split("^")).rstrip("^")


def _numeric_test(match: Match) -> Callable[[Any], bool]:
    if match.operator is Operator.RANGE:
        low, high = (_number(end) if end else None for end in match.values)
        return lambda value: (low is None or _number(value) >= low) and (high is None or _number(value) <= high)
    wanted = [_number(value) for value in match.values]
    return lambda value: _number(value) in wanted


def _number(value: Any) -> float:
    """NaN, which equals nothing, for what is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _temporal_test(match: Match, vr: str) -> Callable[[Any], bool]:
    """A malformed end matches nothing, rather than everything on its side."""
    ends = [match.values] if match.operator is Operator.RANGE else [(value, value) for value in match.values]
    spans = [(_end(vr, low), _end(vr, high)) for low, high in ends]
    if any(end is False for pair in spans for end in pair):
        return lambda value: False
    if vr != "DT" and len(spans) == 1:
        return _between(vr, *spans[0])
    return lambda value: any(_is_within(vr, value, low or None, high or None) for low, high in spans)


def _between(vr: str, low: Span | Literal[False] | None, high: Span | Literal[False] | None) -> Callable[[Any], bool]:
    """A day or a time of day in one range, as most searches have it of every row: neither has an offset to look at."""
    first, last = low[0] if low else datetime.min, high[1] if high else datetime.max

    def test(value: Any) -> bool:
        found = span(vr, as_text(value))
        return found is not None and first <= found[0] <= last

    return test


def _end(vr: str, value: str) -> Span | Literal[False] | None:
    """None for an open end, False for a malformed one."""
    return (span(vr, value) or False) if value else None


def _is_within(vr: str, value: Any, low: Span | None, high: Span | None) -> bool:
    found = span(vr, as_text(value))
    return found is not None and lies_within(found[0], low, high)
