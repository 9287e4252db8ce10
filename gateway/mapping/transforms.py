"""The named transforms that a mapping entry may use: how a native value is read, and how a key is asked for in turn.

A transform without `ask` has no inverse: its keys are not sent to the node but matched here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gateway.model.anatomy import BODY_PARTS, LATERALITIES
from gateway.model.query import Operator
from gateway.model.seam import Record

Read = Callable[[str], str | None]
ReadRecord = Callable[[Record], str | None]
Asked = tuple[Operator, tuple[str, ...]]
Ask = Callable[[Operator, tuple[str, ...]], Asked | None]


@dataclass(frozen=True, slots=True)
class Transform:
    """`read` takes one native value as text, or `read_record` one element; None is nothing said.

    `ask` takes the operator and values of a key and gives those the node is asked with; None when it cannot be asked.
    """

    read: Read | None = None
    read_record: ReadRecord | None = None
    ask: Ask | None = None


def _each(convert: Callable[[str], str | None]) -> Ask:
    """The inverse of a transform that turns every value into one other; a wildcard cannot go through it."""

    def ask(operator: Operator, values: tuple[str, ...]) -> Asked | None:
        if operator is Operator.WILDCARD:
            return None
        converted = [convert(value) if value else "" for value in values]
        if None in converted:
            return None
        return operator, tuple(value for value in converted if value is not None)

    return ask


def _strip_urn_oid(value: str) -> str:
    return value.removeprefix("urn:oid:")


_DATE_TIME = re.compile(
    r"(?P<y>\d{4})-(?P<m>\d\d)-(?P<d>\d\d)(T(?P<t>\d\d(:\d\d(:\d\d(\.\d+)?)?)?)(?P<z>Z|[+-]\d\d:\d\d)?)?"
)


def _dicom_date(value: str) -> str | None:
    """A year or a month alone is not a DICOM date."""
    found = _DATE_TIME.fullmatch(value)
    return found["y"] + found["m"] + found["d"] if found else None


def _fhir_date(value: str) -> str | None:
    return f"{value[:4]}-{value[4:6]}-{value[6:]}" if re.fullmatch(r"\d{8}", value) else None


def _dicom_time(value: str) -> str | None:
    """FHIR allows any number of decimals, TM six."""
    found = _DATE_TIME.fullmatch(value)
    if not found or not found["t"]:
        return None
    clock, _, fraction = found["t"].replace(":", "").partition(".")
    return f"{clock}.{fraction[:6]}" if fraction.strip("0") else clock


def _timezone_offset(value: str) -> str | None:
    found = _DATE_TIME.fullmatch(value)
    if not found or not found["z"]:
        return None
    return "+0000" if found["z"] == "Z" else found["z"].replace(":", "").replace("-0000", "+0000")


def _human_name(record: Record) -> str | None:
    """HumanName as PN: family^given^middle^prefix^suffix (PS3.5 6.2.1); without parts, its text or the text it is."""
    given = _words(record.value("given"))
    parts = [
        " ".join(_words(record.value("family"))),
        given[0] if given else "",
        " ".join(given[1:]),
        " ".join(_words(record.value("prefix"))),
        " ".join(_words(record.value("suffix"))),
    ]
    if any(parts[:3]):
        return "^".join(part.replace("^", " ").replace("=", " ") for part in parts).rstrip("^")
    text = record.value("text") or record.value("$this")
    return text if isinstance(text, str) else None


_REPRESENTATION = (
    "extension.where(url = 'http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation').valueCode"
)


def _patient_name(record: Record) -> str | None:
    """The official name of a Patient, else the first that is not an old one; all component groups where names are marked so
    (ISO 21090)."""
    names = list(record.children("name"))
    uses = [name.value("use") for name in names]
    official = [name for name, use in zip(names, uses, strict=True) if use == "official"]
    current = [name for name, use in zip(names, uses, strict=True) if use not in ("old", "maiden")]
    groups = {_group(name): _human_name(name) or "" for name in reversed(official or current or names)}
    ordered = "=".join(groups.get(kind, "") for kind in ("ABC", "IDE", "SYL")).rstrip("=")
    return ordered or groups.get(None)


def _group(name: Record) -> object:
    return name.value(_REPRESENTATION) if name.value("extension.url") else None


def _words(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)] if value else []


def _ask_human_name(operator: Operator, values: tuple[str, ...]) -> Asked | None:
    """The family name as far as it is sure, as a beginning: FHIR's string search; the row is matched in full here."""
    if len(values) != 1 or operator not in (Operator.EXACT, Operator.WILDCARD):
        return None
    sure = re.split(r"[*?^=]", values[0], maxsplit=1)[0].strip()
    return (Operator.WILDCARD, (f"{sure}*",)) if sure else None


def _table(native_to_dicom: dict[str, str]) -> Transform:
    """A fixed value set: what it does not list says nothing."""
    inverse: dict[str, list[str]] = {}
    for native, term in native_to_dicom.items():
        inverse.setdefault(term, []).append(native)

    def ask(operator: Operator, values: tuple[str, ...]) -> Asked | None:
        if operator not in (Operator.EXACT, Operator.LIST):
            return None
        natives = tuple(native for value in values for native in inverse.get(value, ()))
        return (Operator.EXACT if len(natives) == 1 else Operator.LIST, natives) if natives else None

    return Transform(read=native_to_dicom.get, ask=ask)


TRANSFORMS = {
    "strip_urn_oid": Transform(read=_strip_urn_oid, ask=_each("urn:oid:{}".format)),
    "dicom_date": Transform(read=_dicom_date, ask=_each(_fhir_date)),
    "dicom_time": Transform(read=_dicom_time),
    "timezone_offset": Transform(read=_timezone_offset),
    "fhir_human_name": Transform(read_record=_human_name, ask=_ask_human_name),
    "fhir_patient_name": Transform(read_record=_patient_name, ask=_ask_human_name),
    "fhir_gender": _table({"male": "M", "female": "F", "other": "O"}),
    "sct_body_part": _table(BODY_PARTS),
    "sct_laterality": _table(LATERALITIES),
    "upper": Transform(read=str.upper),
    "strip_leading_zeros": Transform(read=lambda value: value.lstrip("0") or "0"),
}


def read_all(name: str, native: Iterable[str]) -> list[str]:
    """The values a transform makes of native texts, those that say nothing left out."""
    read = TRANSFORMS[name].read
    return [made for value in native if read and (made := read(value))]
