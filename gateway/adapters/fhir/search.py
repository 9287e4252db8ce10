"""ImagingStudy searches in FHIR's words: which search parameter covers a DICOM key, on this version and this server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import product
from urllib.parse import parse_qsl, quote

from gateway.adapters.fhir.server import Server
from gateway.model.query import Operator
from gateway.model.seam import NativeMatch, NativeQuery
from gateway.model.vocabulary import (
    INSTANCE_UID,
    ISSUER,
    MODALITIES_IN_STUDY,
    MODALITY,
    PATIENT_ID,
    PATIENT_NAME,
    SERIES_UID,
    SOP_CLASS_UID,
    STUDY_DATE,
    STUDY_UID,
    path_name,
    tag,
)
from gateway.wire.widen import widen_name

Pair = tuple[str, str]
Search = tuple[Pair, ...]

_MOST_VALUES = 50  # of one key: a longer list makes an address that servers refuse
_MOST_SEARCHES = 6
_PAGE = 100
_FHIR_SPECIAL = re.compile(r"([\\,|$])")
_DAY = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)")


@dataclass(frozen=True, slots=True)
class Plan:
    """`searches` are ORed: each is the list of its parameters. `sent` are the native paths in them, by parameter.

    `exact` are those of the paths whose parameter says all that the key says.
    """

    searches: tuple[Search, ...]
    sent: Mapping[str, frozenset[str]]
    exact: frozenset[str]
    asked: frozenset[str]
    includes: tuple[str, ...]

    def query(self, search: Search, limit: int | None) -> str:
        count = _PAGE if limit is None else max(1, min(limit, _PAGE))
        pairs = [*search, *(("_include", include) for include in self.includes), ("_count", str(count))]
        return "&".join(f"{quote(name, safe=':.')}={quote(value, safe=':,')}" for name, value in pairs)

    def matched(self, unused: frozenset[str]) -> frozenset[str]:
        """The paths of which the server left no parameter unused."""
        return frozenset(path for path in self.exact if not {_base(name) for name in self.sent[path]} & unused)


@dataclass(slots=True)
class _Key:
    """The alternatives of one key: any of them may find what it looks for, so all are searched."""

    path: str
    alternatives: list[Search]
    exact: bool = True


def build(query: NativeQuery, server: Server) -> Plan:
    """What is asked of the server; keys without a parameter of its own stay to be matched here."""
    keys = [key for key in (_key(match, query, server) for match in _keys(query)) if key and key.alternatives]
    while _count(keys) > _MOST_SEARCHES:
        keys.remove(max(keys, key=lambda key: len(key.alternatives)))
    searches = tuple(tuple(pair for pairs in choice for pair in pairs) for choice in product(*_choices(keys)))
    return Plan(
        searches,
        {key.path: frozenset(name for pairs in key.alternatives for name, _ in pairs) for key in keys},
        frozenset(key.path for key in keys if key.exact),
        frozenset(match.path for match in query.match),
        _includes(server),
    )


def _choices(keys: list[_Key]) -> list[list[Search]]:
    return [key.alternatives for key in keys]


def _count(keys: list[_Key]) -> int:
    count = 1
    for key in keys:
        count *= len(key.alternatives)
    return count


def _keys(query: NativeQuery) -> Iterable[NativeMatch]:
    """The keys with the UIDs above; an issuer only goes with the patient id it belongs to."""
    yield from (match for match in query.match if match.of != (ISSUER,))
    for uid, tag_ in ((query.study, STUDY_UID), (query.series, SERIES_UID)):
        if uid:
            yield NativeMatch(path_name((tag_,)), Operator.EXACT, (uid,), of=(tag_,))


def _key(match: NativeMatch, query: NativeQuery, server: Server) -> _Key | None:
    if len(match.of) != 1 or len(match.values) > _MOST_VALUES:
        return None
    if match.of == (STUDY_DATE,):
        return _started(match, server)
    if match.of == (PATIENT_NAME,):
        return _name(match, server)
    if match.operator not in (Operator.EXACT, Operator.LIST):
        return None
    find = _TOKENS.get(match.of[0])
    pairs = find(match, query, server) if find else []
    usable = [pair for pair in pairs if server.has(pair[0])]
    # A server that cannot search identifiers inside references is taken to hold none that only they lead to.
    if any(not name.endswith(":identifier") for name, _ in pairs if not server.has(name)):
        return None
    return _Key(match.path, [(pair,) for pair in usable])


def _started(match: NativeMatch, server: Server) -> _Key | None:
    """A day is widened by one on either side: it is the node's day, the server may reckon in UTC."""
    if match.operator is Operator.RANGE:
        low, high = match.values
    elif match.operator is Operator.EXACT:
        low = high = match.values[0]
    else:
        return None
    bounds = [("ge", _day(low, -1)), ("le", _day(high, +1))]
    pairs = tuple(("started", prefix + day) for prefix, day in bounds if day)
    return _Key(match.path, [pairs], exact=False) if pairs and server.has("started") else None


def _day(value: str, shift: int) -> str:
    found = _DAY.match(value)
    try:
        return (date(*map(int, found.groups())) + timedelta(shift)).isoformat() if found else ""
    except (ValueError, OverflowError):
        return ""


def _name(match: NativeMatch, server: Server) -> _Key | None:
    """FHIR strings match by their beginning, whatever the case; only some servers look past diacritics."""
    widened = widen_name(match.values[0], keep_ascii=False, case_folded=True) or ""
    beginning = re.split("[*?^=]", widened, maxsplit=1)[0].strip()
    if not beginning or not server.has("patient.name"):
        return None
    return _Key(match.path, [(("patient.name", _escaped(beginning)),)], exact=False)


def _escaped(value: str) -> str:
    return _FHIR_SPECIAL.sub(r"\\\1", value)


def _any(values: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(values))


def _bare(values: Iterable[str]) -> list[str]:
    return [_escaped(value.removeprefix("urn:oid:")) for value in values]


def _uids(parameter: str, *, system: str = "") -> Callable[[NativeMatch, NativeQuery, Server], list[Pair]]:
    """UIDs as 'urn:oid:' texts, and bare: servers hold either. STU3's are of type uri and have no bare form."""

    def pairs(match: NativeMatch, query: NativeQuery, server: Server) -> list[Pair]:
        uids = _bare(match.values)
        spelled = [f"urn:oid:{uid}" for uid in uids] + ([] if server.version == "STU3" else uids)
        return [(parameter, _any(system + uid for uid in spelled))]

    return pairs


def _study_uid(match: NativeMatch, query: NativeQuery, server: Server) -> list[Pair]:
    if server.version == "STU3":
        return _uids("study")(match, query, server)
    return _uids("identifier", system="urn:dicom:uid|")(match, query, server)


def _instance_uid(match: NativeMatch, query: NativeQuery, server: Server) -> list[Pair]:
    return _uids("uid" if server.version == "STU3" else "instance")(match, query, server)


def _codes(parameter: str) -> Callable[[NativeMatch, NativeQuery, Server], list[Pair]]:
    return lambda match, query, server: [(parameter, _any(map(_escaped, match.values)))]


def _accession(match: NativeMatch, query: NativeQuery, server: Server) -> list[Pair]:
    """Every place where the mapping reads the number from."""
    value = _any(map(_escaped, match.values))
    places = [place.strip() for place in match.path.split("|")]
    named = {
        "accession.": "accession",
        "identifier.": "identifier",
        "basedOn.resolve()": f"{server.based_on}.identifier",
        "basedOn.identifier": f"{server.based_on}:identifier",
    }
    found = [(name, value) for place in places for start, name in named.items() if place.startswith(start)]
    return found if len(found) == len(places) else []


def _patient_id(match: NativeMatch, query: NativeQuery, server: Server) -> list[Pair]:
    """By the Patient resource, and by the identifier in the reference where the mapping reads that, too."""
    issuer = next((other for other in query.match if other.of == (ISSUER,)), None)
    systems = issuer.values if issuer and issuer.operator in (Operator.EXACT, Operator.LIST) else ()
    ids = list(map(_escaped, match.values))
    value = _any([f"{_escaped(system)}|{id_}" for id_ in ids for system in systems] or ids)
    found = [("patient.identifier", value)] if ".resolve()" in match.path else []
    if re.search(r"(subject|patient)\.identifier", match.path) and server.version != "STU3":
        found.append((f"{server.patient}:identifier", value))
    return found


def patient_id(query: NativeQuery, server: Server) -> list[Pair]:
    """The parameters, of whatever refers to patients, that find those of the query; none where it has no plain id."""
    of_id = (match for match in query.match if match.of == (PATIENT_ID,) and match.operator is not Operator.WILDCARD)
    return [pair for match in of_id for pair in _patient_id(match, query, server)]


_TOKENS: Mapping[str, Callable[[NativeMatch, NativeQuery, Server], list[Pair]]] = {
    STUDY_UID: _study_uid,
    SERIES_UID: _uids("series"),
    INSTANCE_UID: _instance_uid,
    SOP_CLASS_UID: _uids("dicom-class"),
    MODALITY: _codes("modality"),
    MODALITIES_IN_STUDY: _codes("modality"),
    PATIENT_ID: _patient_id,
    tag("AccessionNumber"): _accession,
    tag("PatientBirthDate"): _codes("patient.birthdate"),
    tag("PatientSex"): _codes("patient.gender"),
}


def _includes(server: Server) -> tuple[str, ...]:
    """What the rows are read from besides the study: the patient, the order and the referrer."""
    wanted = (server.patient, server.based_on, "referrer")
    return tuple(include for name in wanted if (include := f"ImagingStudy:{name}") in server.includes)


def _base(parameter: str) -> str:
    return re.split("[:.]", parameter, maxsplit=1)[0]


def unused(search: Search, self_link: str) -> frozenset[str]:
    """The parameters sent that a server does not say it used, without modifiers and chains, which servers respell."""
    used = {_base(name) for name, _ in parse_qsl(self_link.partition("?")[2].partition("#")[0])}
    return frozenset(_base(name) for name, _ in search) - used


def unpromised(search: Search) -> frozenset[str]:
    """The parameters of a search that a CapabilityStatement does not promise."""
    return frozenset(name for name, _ in search if ":" in name or "." in name)


def wanting(server: Server) -> list[str]:
    """The parameters that most searches come down to and that the server does not have."""
    uid = "study" if server.version == "STU3" else "identifier"
    return [name for name in (uid, "patient", "started", "modality") if not server.has(name)]
