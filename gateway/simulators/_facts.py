"""What a FHIR server would know of each study of a directory: identifiers, patient, times and places."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from functools import cached_property
from zoneinfo import ZoneInfo

from gateway.simulators._directory import Json, Study, first_text

DCM = "http://dicom.nema.org/resources/ontology/DCM"
SNOMED = "http://snomed.info/sct"
DICOM_UID = "urn:dicom:uid"
OID = re.compile(r"[0-2](\.(0|[1-9]\d*))+")

# Body Part Examined as SNOMED CT (PS3.16 Annex L); CHEST as the German national examples write it.
BODY_PARTS = {
    "ABDOMEN": ("818981001", "Abdomen"),
    "BRAIN": ("12738006", "Brain"),
    "BREAST": ("76752008", "Breast"),
    "CERVIX": ("71252005", "Cervix"),
    "CHEST": ("51185008", "Thoracic structure (body structure)"),
    "COLON": ("71854001", "Colon"),
    "FOOT": ("56459004", "Foot"),
    "HAND": ("85562004", "Hand"),
    "HEAD": ("69536005", "Head"),
    "HEART": ("80891009", "Heart"),
    "KIDNEY": ("64033007", "Kidney"),
    "KNEE": ("72696002", "Knee"),
    "LIVER": ("10200004", "Liver"),
    "LUNG": ("39607008", "Lung"),
    "NECK": ("45048000", "Neck"),
    "PELVIS": ("816092008", "Pelvis"),
    "PROSTATE": ("41216001", "Prostate"),
    "SPINE": ("421060004", "Spine"),
    "UTERUS": ("35039007", "Uterus"),
}


@dataclass(frozen=True)
class Naming:
    """How the hospital names things in FHIR: identifier systems, and the zone its clocks show (None: unknown)."""

    patient_system: str
    accession_system: str
    issuer_systems: Mapping[str, str]
    zone: ZoneInfo | None


@dataclass(frozen=True)
class Moment:
    """A FHIR date or dateTime and the span of time it stands for, `high` excluded."""

    text: str
    low: datetime
    high: datetime


@dataclass(frozen=True)
class Patient:
    """`value` is empty for a patient without an identifier; such a patient has one study only."""

    id: str
    system: str
    value: str
    name: Json
    birth_date: str
    sex: str

    @property
    def identifiers(self) -> list[tuple[str, str]]:
        return [(self.system, self.value)] if self.value else []

    @property
    def names(self) -> list[str]:
        """Every part of the name on its own: family and given names of all component groups."""
        return [part for group in self.name.values() for part in re.split(r"[\^ ]+", group) if part]


class Facts:
    """One study as this hospital's FHIR server knows it."""

    def __init__(self, study: Study, naming: Naming) -> None:
        self.study = study
        self._naming = naming
        self.id = "study-" + digest(study.uid, study.patient_id, study.issuer)

    @property
    def zone(self) -> tzinfo:
        """The zone that the server reads dates without an offset in."""
        return self._naming.zone or UTC

    @cached_property
    def patient(self) -> Patient:
        study = self.study
        key = (study.issuer, study.patient_id) if study.patient_id else ("", "", study.uid)
        names = study.attributes.get("00100010", {}).get("Value", [])
        return Patient(
            id="patient-" + digest(*key),
            system=self._patient_system(),
            value=study.patient_id,
            name=names[0] if names and isinstance(names[0], dict) else {},
            birth_date=fhir_date(study.text("00100030")),
            sex=study.text("00100040"),
        )

    def _patient_system(self) -> str:
        """The system for the issuer's label, else that of its OID, else the hospital's own."""
        label = self.study.issuer
        if label in self._naming.issuer_systems:
            return self._naming.issuer_systems[label]
        return _universal(self.study.attributes, "00100024") or as_uri(label) or self._naming.patient_system

    @property
    def accession(self) -> tuple[str, str] | None:
        """(system, Accession Number)."""
        number = self.study.text("00080050")
        if not number:
            return None
        return _universal(self.study.attributes, "00080051") or self._naming.accession_system, number

    @property
    def request_id(self) -> str:
        number = self.accession
        return "request-" + digest(*number, self.patient.id) if number else ""

    @cached_property
    def started(self) -> Moment | None:
        return self.moment(self.study.attributes, "00080020", "00080030")

    def moment(self, attributes: Json, date_tag: str, time_tag: str) -> Moment | None:
        """(0008,0201) decides the offset, else the hospital's zone; with neither, the day is all that is known."""
        zone: tzinfo | None = _offset(first_text(attributes, "00080201"))
        zone = zone if zone is not None else self._naming.zone
        return moment(first_text(attributes, date_tag), first_text(attributes, time_tag), zone)

    @cached_property
    def modalities(self) -> list[str]:
        return self.study.distinct("00080060") or ["OT"]

    @cached_property
    def body_sites(self) -> list[Json]:
        return [site for series in self.study.series if (site := body_site(series.attributes))]

    @property
    def series_uids(self) -> list[str]:
        return [series.uid for series in self.study.series]

    @property
    def instance_uids(self) -> list[str]:
        return [instance.uid for instance in self.study.instances]

    @property
    def sop_classes(self) -> list[str]:
        return self.study.distinct("00080016")


def digest(*parts: str) -> str:
    """Ids that say nothing of what they stand for."""
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def as_uri(label: str) -> str:
    """An issuer as a URI: an OID with its scheme, a URI as it is, '' for a label that is neither."""
    if OID.fullmatch(label):
        return f"urn:oid:{label}"
    return label if re.match(r"(https?:|urn:)", label) else ""


def _universal(attributes: Json, sequence: str) -> str:
    items = attributes.get(sequence, {}).get("Value", [])
    return as_uri(first_text(items[0], "00400032")) if items else ""


def body_site(attributes: Json) -> Json:
    """Anatomic Region Sequence where it is in SNOMED CT, else Body Part Examined; {} when neither is there."""
    for item in attributes.get("00082218", {}).get("Value", []):
        if first_text(item, "00080102") == "SCT":
            return {
                "system": SNOMED,
                "code": first_text(item, "00080100"),
                "display": first_text(item, "00080104") or first_text(item, "00080100"),
            }
    part = first_text(attributes, "00180015").strip().upper()
    if part in BODY_PARTS:
        code, display = BODY_PARTS[part]
        return {"system": SNOMED, "code": code, "display": display}
    return {"display": part} if part else {}


def fhir_date(text: str) -> str:
    """YYYY-MM-DD, or '' for what is no date. The ACR-NEMA form with dots is read too (PS3.5 6.2 DA)."""
    try:
        return datetime.strptime(text.replace(".", "").strip(), "%Y%m%d").date().isoformat()
    except ValueError:
        return ""


def _offset(text: str) -> tzinfo | None:
    found = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", text.strip())
    if not found:
        return None
    minutes = int(found[2]) * 60 + int(found[3])
    return timezone(timedelta(minutes=minutes if found[1] == "+" else -minutes))


def moment(day: str, time: str, zone: tzinfo | None) -> Moment | None:
    """A DICOM date and time as a FHIR moment; None without a date."""
    iso = fhir_date(day)
    if not iso:
        return None
    clock = re.fullmatch(r"(\d\d):?(\d\d)(?::?([0-5]\d)(?:\.(\d{1,6}))?)?\s*", time)
    if clock is None or zone is None or clock[1] > "23" or clock[2] > "59":
        midnight = datetime.combine(date.fromisoformat(iso), datetime.min.time(), zone or UTC)
        return Moment(iso, midnight, midnight + timedelta(days=1))
    micro = int((clock[4] or "").ljust(6, "0"))
    low = datetime.fromisoformat(f"{iso}T{clock[1]}:{clock[2]}:{clock[3] or '00'}").replace(
        tzinfo=zone, microsecond=micro
    )
    text = low.isoformat(timespec="milliseconds" if micro // 1000 else "seconds")
    return Moment(text, low, low + timedelta(milliseconds=1) if micro // 1000 else low + timedelta(seconds=1))
