"""Running a mapping's own examples: what was expected, what came instead."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from gateway.errors import GatewayError, InvalidMapping
from gateway.mapping.ask import Asker
from gateway.mapping.read import Reader
from gateway.mapping.schema import Ask, Example, Expect, Mapping
from gateway.model.dataset import Dataset, as_text, attribute, items, values
from gateway.model.moments import series_started, started
from gateway.model.query import Match, Operator, Query, parse_match
from gateway.model.seam import NativeMatch, Record
from gateway.model.study import Row
from gateway.model.vocabulary import Level, path, tag, vr
from gateway.wire.dicomjson import DicomRecord
from gateway.wire.fhirjson import FhirRecord

_NODE, _ISSUER = "example", "EXAMPLE"  # the node of an example, and its patient_id_issuer


def failures(mapping: Mapping) -> list[str]:
    """One line per expectation that does not hold, beginning with its key; [] when all do."""
    found: list[str] = []
    for number, example in enumerate(mapping.example):
        place = f"example.{number}"
        try:
            found += _reading(mapping, example, place)
            for ask_number, ask in enumerate(example.ask):
                found += _asking(mapping, ask, f"{place}.ask.{ask_number}")
        except GatewayError as error:
            found.append(f"{place}: {error.detail}")
    return found


def _reading(mapping: Mapping, example: Example, place: str) -> Iterable[str]:
    record = _record(mapping, example.given)
    reader = Reader(mapping, _NODE, _ISSUER)
    for name, level, expected in _expected(example.expect):
        rows = reader.rows(record, level)
        key = f"{place}.expect.{name}"
        if len(rows) != len(expected):
            yield f"{key}: expected {len(expected)} of them, got {len(rows)}"
        for row, wanted in zip(rows, expected, strict=False):
            yield from _differences(row, wanted, key, reader.time_zone)


def _expected(expect: Expect) -> Iterable[tuple[str, Level, list[dict[str, Any]]]]:
    if expect.nothing:
        yield "nothing", Level.STUDY, []
    if expect.study is not None:
        yield "study", Level.STUDY, [expect.study]
    if expect.series:
        yield "series", Level.SERIES, expect.series
    if expect.instance:
        yield "instance", Level.IMAGE, expect.instance


def _differences(row: Row, wanted: dict[str, Any], key: str, time_zone: str) -> Iterable[str]:
    for name, value in wanted.items():
        if name == "started":
            moment = started if row.level is Level.STUDY else series_started
            got: Any = moment(row.attributes, time_zone)
        else:
            got = _shown(row.attributes, path(name)[0])
        if got != _as_shown(value):
            yield f"{key}.{name}: expected {_as_shown(value)!r}, got {got!r}"


def _shown(attributes: Dataset, tag_: str) -> Any:
    """A value as examples write it: text, a list of texts, items as tables of keywords; '' for none."""
    if vr(tag_) == "SQ" and items(attributes, tag_):
        return [{name: _shown(item, name) for name in item} for item in items(attributes, tag_)]
    found = [as_text(value) for value in values(attributes, tag_)]
    return found if len(found) > 1 else found[0] if found else ""


def _as_shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {tag(name): _as_shown(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_as_shown(one) for one in value]
    return as_text(value)


def _record(mapping: Mapping, given: Any) -> Record:
    """Raises InvalidMapping for what no node of the mapping's protocol could send."""
    try:
        content = json.loads(given) if isinstance(given, str) else given
        return DicomRecord(_dataset(content)) if mapping.protocol == "dicom" else _fhir_record(content)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        raise InvalidMapping(f"'given' is not a record of protocol {mapping.protocol}") from None


def _dataset(content: dict[str, Any]) -> Dataset:
    """DICOM JSON as it is, or a table of keywords and values."""
    return {tag(name): _attribute(tag(name), value) for name, value in content.items()}


def _attribute(tag_: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and "vr" in value:
        return value
    listed = value if isinstance(value, list) else [value]
    if vr(tag_) == "SQ":
        return {"vr": "SQ", "Value": [_dataset(item) for item in listed]}
    return attribute(tag_, listed)


def _fhir_record(content: dict[str, Any]) -> FhirRecord:
    """An ImagingStudy, or a Bundle: its first ImagingStudy, with the others there to be referred to."""
    if content["resourceType"] != "Bundle":
        return FhirRecord(content)
    resources = [entry["resource"] for entry in content["entry"]]
    known = {f"{one['resourceType']}/{one['id']}": one for one in resources}
    return FhirRecord(next(one for one in resources if one["resourceType"] == "ImagingStudy"), known.get)


def _asking(mapping: Mapping, ask: Ask, place: str) -> Iterable[str]:
    keys = [parse_match(path(name), raw) for name, raw in ask.query.items()]
    plan = Asker(mapping, _ISSUER).plan(Query(ask.level, matches=tuple(filter(None, keys))))
    if (plan.native is None) != ask.empty:
        yield f"{place}.empty: expected {ask.empty}, got {plan.native is None}"
    got = {match.path: _text(match) for match in plan.native.match} if plan.native else {}
    if got != ask.expect:
        yield f"{place}.expect: expected {ask.expect!r}, got {got!r}"
    here = [match.name for match in plan.here]
    if sorted(here) != sorted(ask.here):
        yield f"{place}.here: expected {ask.here!r}, got {here!r}"


def _text(match: NativeMatch | Match) -> str | list[str]:
    if match.operator is Operator.RANGE:
        return "/".join(match.values)
    return list(match.values) if match.operator is Operator.LIST else match.values[0]
