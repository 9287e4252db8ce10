"""Requests made by chance: real ones of OHIF, dicomweb-client, FHIR clients and old viewers, bent and broken in every part.

Each is made from (seed, number) alone, so that any of them can be made again by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from urllib.parse import quote

from gateway.edge.fhir.studyquery import PARAMETERS
from gateway.model.vocabulary import SERIES_KEYS, STUDY_KEYS, keyword


@dataclass(frozen=True)
class Held:
    """One instance that there is: what random requests are mostly about."""

    study: str
    series: str
    instance: str
    patient: str
    name: str
    day: str
    accession: str
    body: bytes = field(repr=False, default=b"")


@dataclass
class Made:
    """One request. `leaves` is the chunk of the answer after which the caller goes away; `chunks` is how the body comes."""

    number: int
    method: str
    path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    chunks: int = 1
    leaves: int | None = None

    def __str__(self) -> str:
        head = b" ".join((self.method.encode(), self.path + (b"?" + self.query if self.query else b"")))
        return f"#{self.number} {head[:400]!r} {self.headers!r} {len(self.body)} bytes of body"


_DISK, _BABBLER, _ARCHIVE = (f"/nodes/{name}/dicom-web" for name in ("disk", "babbler", "archive"))
DICOMWEB = (*(_DISK,) * 6, *(_BABBLER,) * 3, "/dicom-web")
SLOWER = ("/nodes/pacs/dicom-web", "/nodes/web/dicom-web", "/nodes/fhir/dicom-web")
FHIR = ("/fhir", "/fhir/r4", "/fhir/r5")
SEARCHES = (
    "studies?limit=101&offset=0&fuzzymatching=true&includefield=00081030,00080060,00080090,00100030",
    "studies?limit=101&offset=0&fuzzymatching=true&StudyDate={day}-{day}&PatientName=*{name}*&00080061=CT",
    "studies?00100020={patient}&limit=101&offset=0&fuzzymatching=true&includefield=00081030%2C00080060",
    "studies/{study}/series?includefield=0008103E,00200011",
    "studies/{study}/series?includefield=all",
    "studies/{study}/instances?limit=50",
    "studies/{study}/series/{series}/instances?includefield=00080016&includefield=NumberOfFrames",
    "studies?PatientID={patient}&PatientName={name}&StudyInstanceUID={study}&limit=7&offset=7",
    "studies?StudyInstanceUID={study},{study}&includefield=all",
    "studies?AccessionNumber={accession}&ModalitiesInStudy=MR&StudyTime=000000-235959",
    "series?SeriesInstanceUID={series}&Modality=CT&SeriesNumber=1",
    "instances?SOPInstanceUID={instance}&Rows=64",
    "studies?OtherPatientIDsSequence.PatientID={patient}",
    "series?RequestAttributesSequence.ScheduledProcedureStepID=1",
    "studies?StudyDate={day}-&TimezoneOffsetFromUTC=%2B0200&emptyvaluematching=true&multiplevaluematching=true",
)
RETRIEVES = (
    "studies/{study}", "studies/{study}/metadata", "studies/{study}/series/{series}",
    "studies/{study}/series/{series}/metadata?includefield=all", "studies/{study}/series/{series}/instances/{instance}",
    "studies/{study}/series/{series}/instances/{instance}/metadata",
    "studies/{study}/series/{series}/instances/{instance}/frames/1",
    "studies/{study}/series/{series}/instances/{instance}/frames/1,2,1",
    "studies/{study}/series/{series}/instances/{instance}/bulkdata/7FE00010",
    "studies/{study}/series/{series}/instances/{instance}/bulkdata/00081115.1.0020000E",
    "studies/{study}/rendered", "studies/{study}/thumbnail?viewport=64,64",
    "studies/{study}/series/{series}/instances/{instance}/rendered?window=40,400,linear&viewport=100,100&quality=80",
    "studies/{study}/series/{series}/instances/{instance}/frames/1/rendered?annotation=patient",
    "studies/{study}/series/{series}/instances/{instance}/thumbnail",
    "wado?requestType=WADO&studyUID={study}&seriesUID={series}&objectUID={instance}&contentType=image/jpeg&rows=64&columns=64",
    "wado?requestType=WADO&studyUID={study}&seriesUID={series}&objectUID={instance}&frameNumber=1&region=0,0,0.5,0.5&windowCenter=40"
    "&windowWidth=400&imageQuality=50&annotation=patient,technique&contentType=image/png",
    "wado?requestType=WADO&studyUID={study}&seriesUID={series}&objectUID={instance}&contentType=application/dicom"
    "&transferSyntax=1.2.840.10008.1.2.1",
)  # fmt: skip
RESOURCES = (
    "ImagingStudy?_count=20&_sort=-started", "ImagingStudy?identifier=urn:dicom:uid|urn:oid:{study}",
    "ImagingStudy?patient.identifier={patient}&modality=CT,MR", "ImagingStudy?started=ge2020-01-01&started=lt2030",
    "ImagingStudy?_id={study}&_include=ImagingStudy:patient&_include=ImagingStudy:endpoint",
    "ImagingStudy?_summary=count&status=available", "ImagingStudy?_count=0&_totalMethod=count", "ImagingStudy/{study}",
    "ImagingStudy?bodysite=http://snomed.info/sct|76752008&series={series}&instance={instance}",
    "ImagingStudy?patient=Patient/0123456789abcdef0123456789abcdef&_cursor=abc",
    "ImagingStudy?_elements=id,started&_revinclude=DiagnosticReport:imaging-study&_lastUpdated=gt2020",
    "ImagingStudy?modality:not=CT&started:missing=true&patient.name:exact={name}&_format=xml",
    "Patient/0123456789abcdef0123456789abcdef", "Patient?identifier={patient}&name={name}&birthdate=1970",
    "DiagnosticReport?patient.identifier={patient}&status=final&issued=ge2020", "DiagnosticReport?study=ImagingStudy/{study}",
    "ServiceRequest?identifier={accession}&authored=2020&_format=xml", "DiagnosticReport/01234567-1",
    "Endpoint/disk", "Organization/disk", "metadata", "metadata?_format=application/fhir%2Bxml",
    "$export?_type=ImagingStudy&_since=2020-01-01T00:00:00Z", "ImagingStudy/_search", "Observation/1",
)  # fmt: skip
OTHERS = ("/", "/nodes", "/live", "/ready", "/openapi.json", "/metrics", "/.well-known/oauth-protected-resource", "/no")
ACCEPTS = (
    "*/*", "", "application/dicom+json", "application/json", "application/dicom", "text/html",
    "multipart/related; type=application/octet-stream; transfer-syntax=*", "image/jpeg", "image/*;q=0.5, image/png",
    'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1',
    'multipart/related; type="application/dicom"; transfer-syntax=*, application/json;q=0.1',
    'multipart/related; type="application/dicom+xml"', 'multipart/related; type="image/jls"; transfer-syntax=1.2.840.10008.1.2.4.80',
    "application/dicom;transfer-syntax=1.2.840.10008.1.2.4.90;q=0.9, */*;q=0", "application/fhir+xml",
    "application/fhir+json; fhirVersion=5.0", "application/fhir+json; fhirVersion=4.0, application/json", "application/*",
    'multipart/related; type="image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50"', "video/mp4", "application/fhir+ndjson",
)  # fmt: skip
TYPES = ("ImagingStudy", "Patient", "Endpoint,Organization", "ImagingStudy,Patient,Endpoint") * 5
NAMES = tuple(sorted(filter(None, map(keyword, STUDY_KEYS | SERIES_KEYS))))
ODD = (
    "", "*", "?", '""', "%", "%00", "%FF%FE", "%ED%A0%80", "\\", ",", ",,", "-", "--", "=", "&", ";", "|", "$", "'", "+",
    "0", "-1", "1e999", "nan", "9" * 40, "٣", "1.2.3", "1..2", "1." * 40, "20250231", "19000101-29991231", "-20250101", "20250101-",
    "2500", "235959.999999-", "2025-01-01T00:00:00+14:00", "gt2025-13-01", "9999-12-31T23:59:60Z", "0000", "ap0001-01-01",
    "Ża*", "Παπα*", "Иван?", "山田^太郎", "O'Brien^\\", "*" * 300, "a" * 5000, "%C5%BB%C3%B3", "../../etc/passwd", "%2e%2e%2f",
    "true", "false", "all", "disk", "disk,web", "nowhere", "urn:oid:1.2", "|", "||", "a|b|c", "Patient/x", "http://x/Patient/1",
    "\x00", "\r\nX: y", "\t", "\u202e", "\ud800", "🩻" * 50,
)  # fmt: skip


class Maker:
    """Makes requests about what there is."""

    def __init__(self, seed: int, held: Sequence[Held]) -> None:
        self._seed = seed
        self._held = held

    def make(self, number: int) -> Made:
        """The request of that number."""
        chance = Random(f"{self._seed}/{number}")
        held = chance.choice(self._held)
        method, path, headers, body = self._base(chance, held)
        path, _, query = path.partition("?")
        pairs = [piece for piece in query.split("&") if piece]
        for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3, 6))):
            pairs = chance.choice(_PAIRS)(chance, pairs, path)
        raw = (
            "&".join(pairs).encode("utf-8", "surrogatepass").replace(b" ", b"+").replace(b"\r", b"").replace(b"\n", b"")
        )
        if chance.random() < 0.05:
            raw = _bent(chance, raw)
        if chance.random() < 0.08:
            path = _path(chance, path)
        made = Made(number, method, _quoted(path, "/%$.:").encode(), raw, headers + _headers(chance, path), body)
        made.chunks = chance.choice((1, 1, 2, 7))
        if chance.random() < 0.03:
            made.leaves = chance.choice((0, 0, 1, 2))
        return made

    def _base(self, chance: Random, held: Held) -> tuple[str, str, list[tuple[bytes, bytes]], bytes]:
        kind = chance.random()
        method = (
            "GET" if chance.random() < 0.96 else chance.choice(("HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH"))
        )
        root = chance.choice(SLOWER) if chance.random() < 0.04 else chance.choice(DICOMWEB)
        if kind < 0.42:
            return method, f"{root}/{_filled(chance.choice(SEARCHES), held)}", [], b""
        if kind < 0.60:
            return method, f"{root}/{_filled(chance.choice(RETRIEVES), held)}", [], b""
        if kind < 0.87:
            resource = _filled(chance.choice(RESOURCES), held)
            node = chance.choice(("node=disk",) * 12 + ("node=babbler",) * 6 + ("node=disk,web", ""))
            joint = "&" if "?" in resource else "?"
            return method, f"{chance.choice(FHIR)}/{resource}{joint if node else ''}{node}", [], b""
        if kind < 0.89:
            return method, chance.choice(OTHERS), [], b""
        if kind < 0.96:
            return ("POST", *_stored(chance, held, chance.choice((root, _ARCHIVE))))
        return ("POST", *_form(chance, held))


def _quoted(text: str, safe: str = "") -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe=safe)


def _filled(template: str, held: Held) -> str:
    values = {name: _quoted(str(getattr(held, name))) for name in ("patient", "name", "accession")}
    return template.format(study=held.study, series=held.series, instance=held.instance, day=held.day, **values)


def _stored(chance: Random, held: Held, root: str) -> tuple[str, list[tuple[bytes, bytes]], bytes]:
    """STOW-RS: a multipart body, mostly with one thing wrong."""
    boundary = chance.choice(("b", "b", "b", "b" * 70, "a b", "--", "ż", "", "=?", "b\\"))
    mark = boundary.encode()
    whole = b""
    for _ in range(chance.choice((0, 1, 1, 2, 5))):
        type_ = chance.choice(
            (
                *("application/dicom",) * 6,
                "application/dicom+json",
                "text/plain",
                "",
                "application/dicom; x=" + "y" * 40,
            )
        )
        data = chance.choice(
            (*(held.body,) * 4, held.body[: chance.randrange(400)], b"", b"DICM", b"[]", chance.randbytes(200))
        )
        data = data if chance.random() < 0.5 else _bent(chance, data)
        whole += b"--" + mark + b"\r\nContent-Type: " + type_.encode() + b"\r\n\r\n" + data + b"\r\n"
    whole += chance.choice(
        (*(b"--" + mark + b"--\r\n",) * 4, b"--" + mark + b"--", b"", b"--" + mark, b"--" + mark + b"--x")
    )
    if chance.random() < 0.3:
        whole = _bent(chance, whole)
    content = chance.choice(
        (
            *(f'multipart/related; type="application/dicom"; boundary="{boundary}"',) * 6, f"multipart/related;boundary={boundary}",
            "multipart/related", "application/dicom", f"multipart/form-data; boundary={boundary}", "application/json", "",
        )
    )  # fmt: skip
    study = chance.choice(("", f"/{held.study}", "/1.2.3", "/x"))
    return f"{root}/studies{study}", [(b"content-type", content.encode("latin-1", "replace"))], whole


def _form(chance: Random, held: Held) -> tuple[str, list[tuple[bytes, bytes]], bytes]:
    """POST _search and $export."""
    path, _, query = _filled(chance.choice(RESOURCES), held).partition("?")
    parameters = {
        "resourceType": "Parameters",
        "parameter": [{"name": "_type", "valueString": chance.choice((*TYPES, *ODD))}],
    }
    kind, body = chance.choice(
        (
            ("application/x-www-form-urlencoded", query.encode()),
            ("application/x-www-form-urlencoded; charset=utf-16", chance.choice(ODD).encode("utf-8", "surrogatepass")),
            ("application/fhir+json", json.dumps(parameters).encode()),
            ("application/fhir+json", chance.choice((b"", b"{", b"[" * 3000, b"null", b'{"resourceType":1}', b"\xff"))),
            ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="_id"\r\n\r\n1\r\n--x--'),
        )
    )
    path = chance.choice((path, "ImagingStudy/_search", "$export", "Patient/_search", "Patient/$export"))
    more = [(b"prefer", b"respond-async")] if "$" in path else []
    path += chance.choice(("?node=disk", "?node=archive", "?node=disk,web", "")) if more else ""
    return f"{chance.choice(FHIR)}/{path}", [(b"content-type", kind.encode()), *more], body


Pairs = list[str]


def _drop(chance: Random, pairs: Pairs, _: str) -> Pairs:
    return [pair for pair in pairs if chance.random() < 0.6]


def _double(chance: Random, pairs: Pairs, _: str) -> Pairs:
    return [*pairs, chance.choice(pairs)] if pairs else pairs


def _other_value(chance: Random, pairs: Pairs, _: str) -> Pairs:
    """A value that is odd, as it is or percent-encoded."""
    if not pairs:
        return pairs
    at = chance.randrange(len(pairs))
    name, _, value = pairs[at].partition("=")
    odd = chance.choice(ODD)
    odd = chance.choice((odd, _quoted(odd), value + odd, odd + value, f"{value},{odd}"))
    return [*pairs[:at], f"{name}={odd}", *pairs[at + 1 :]]


def _another(chance: Random, pairs: Pairs, path: str) -> Pairs:
    """A further parameter of the edge that is asked."""
    if path.startswith("/fhir"):
        name = chance.choice(tuple(PARAMETERS))
        name += chance.choice(("", "", "", ":missing", ":exact", ":not", ":of-type", ":", ".x", ":Patient.name"))
    else:
        name = chance.choice(
            (chance.choice(NAMES), "limit", "offset", "includefield", "fuzzymatching", "accept", "node", "charset")
        )
        name = chance.choice(
            (name, name, name.lower(), f"{name}.{chance.choice(NAMES)}", "00100020", "0010,0020", "7FE00010")
        )
    return [*pairs, f"{name}={chance.choice(ODD)}"]


def _renamed(chance: Random, pairs: Pairs, _: str) -> Pairs:
    if not pairs:
        return [chance.choice(ODD)]
    at = chance.randrange(len(pairs))
    name, joint, value = pairs[at].partition("=")
    name = chance.choice((name.upper(), name + chance.choice(ODD), chance.choice(ODD), name[:-1], _quoted(name)))
    return [*pairs[:at], name + chance.choice((joint, "", "==")) + value, *pairs[at + 1 :]]


def _shuffled(chance: Random, pairs: Pairs, _: str) -> Pairs:
    return chance.sample(pairs, len(pairs))


_PAIRS: tuple[Callable[[Random, Pairs, str], Pairs], ...] = (
    _drop, _double, _other_value, _other_value, _other_value, _another, _another, _renamed, _shuffled,
)  # fmt: skip


def _bent(chance: Random, raw: bytes) -> bytes:
    """Some bytes lost, doubled, or others."""
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(raw) + 1)
        end = at + chance.choice((0, 1, 1, 3, 20))
        raw = (
            raw[:at]
            + chance.choice((b"", chance.randbytes(1), raw[at:end] * 2, b"%", b"\x00", b"--", b"\r\n"))
            + raw[end:]
        )
    return raw


def _path(chance: Random, path: str) -> str:
    pieces = path.split("/")
    at = chance.randrange(1, len(pieces))
    pieces[at] = chance.choice(
        (chance.choice(ODD), pieces[at] + "/", pieces[at].upper(), "..", "", "1.2", "frames", "%2F")
    )
    return "/".join(pieces).encode("utf-8", "replace").decode().replace("?", "%3F").replace("#", "%23")


def _headers(chance: Random, path: str) -> list[tuple[bytes, bytes]]:
    """An Accept header that lets most requests come further than to itself."""
    usual = "application/fhir+json" if path.startswith("/fhir") else "application/dicom+json"
    accept = chance.choice((usual, "*/*", f"{usual}, */*;q=0.1")) if chance.random() < 0.6 else _accept(chance)
    found = [(b"accept", accept.encode("latin-1", "replace"))] if chance.random() < 0.9 else []
    for name, values in _HEADERS.items():
        if chance.random() < 0.04:
            found.append((name, chance.choice(values)))
    return found


def _accept(chance: Random) -> str:
    ranges = [chance.choice(ACCEPTS) for _ in range(chance.choice((1, 1, 1, 2, 4)))]
    text = chance.choice((", ", ",", ";", " ")).join(ranges)
    if chance.random() < 0.25:
        at = chance.randrange(len(text) + 1)
        text = (
            text[:at]
            + chance.choice(('"', ";q=", ";q=0.5", ";q=nan", ",", "=", "\\", "*", "/", ";;", "a" * 300, "é"))
            + text[at:]
        )
    return text.replace("\r", "").replace("\n", "")


_HEADERS = {
    b"if-none-match": (b"*", b'W/"x"', b'"', b",,,", b'"a", W/"b"'),
    b"prefer": (b"handling=lenient", b"handling=strict", b"respond-async", b"handling", b";;=,"),
    b"range": (b"bytes=0-9", b"bytes=-5", b"bytes=9-1", b"bytes=0-0,5-6", b"lines=1", b"bytes=" + b"9" * 40 + b"-"),
    b"cache-control": (b"no-cache", b"no-store", b"max-age=0", b"max-age=x"),
    b"accept-encoding": (b"gzip", b"zstd;q=1, *;q=0", b"", b"br, gzip;q=0", b"identity;q=0"),
    b"accept-charset": (b"utf-8", b"latin-1", b"klingon"),
    b"traceparent": (b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"00-0-0-0", b"\xff" * 60),
    b"forwarded": (b"for=1.2.3.4;host=evil.example;proto=https", b'for="[::1', b";;;"),
    b"x-forwarded-for": (b"1.2.3.4, 5.6.7.8", b"x", b""),
    b"authorization": (b"Bearer x", b"Basic ", b"Bearer " + b"a" * 3000, b"\xff"),
    b"origin": (b"https://viewer.example", b"null"),
    b"content-length": (b"0", b"5"),
    b"expect": (b"100-continue",),
}
