"""A DICOMweb origin server over a directory of DICOM files (PS3.18 10), with quirks and faults seen in the field."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Self, cast
from urllib.parse import unquote_plus

from pydicom.datadict import keyword_for_tag
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.model.vocabulary import Level, vr
from gateway.simulators._directory import (
    PATIENT_ID,
    SERIES_UID,
    STUDY_UID,
    Directory,
    Instance,
    Json,
    first_text,
    read_dataset,
    to_json,
)
from gateway.simulators._multipart import acceptable, accepted, media_range, multipart, multipart_size, wants_single
from gateway.simulators._peer import Delivered, Framing, Handler, Peer, PeerOptions, garbage
from gateway.simulators._qido import BadQuery, Search, matches, not_matchable, parse, rows, shown
from gateway.simulators._stow import receive, store_response
from gateway.simulators._values import (
    Bytes,
    bulk_value,
    declared_syntax,
    frame_count,
    frame_media_type,
    frames,
    whole_file,
)

DICOM_JSON, DICOM, OCTETS = "application/dicom+json", "application/dicom", "application/octet-stream"
PIXEL_DATA, ROWS = "7FE00010", "00280010"
Part = tuple[str, str, Bytes]


@dataclass(frozen=True)
class DicomwebOptions(PeerOptions):
    """What this server does otherwise than PS3.18 asks; the defaults do as it asks.

    Seen in the field: `no_percent_decoding`, `da_without_value` and `parameters_inside_quotes` (Orthanc 1.10 with
    DICOMweb 1.7), `status_204_for_none` (PS3.18 before CP-2473, tiny-pacs), `ignores_keys` (keywords), `ignores_offset`
    and `silent_maximum` (several), `ends_at_maximum` (Orthanc: no offset leads behind it, and one row more than it comes),
    `no_metadata` and `no_frames` (tiny-pacs), `absolute_bulk_host` (behind a proxy).

    `parameters_inside_quotes` puts the transfer syntax into the quoted type of the whole body and takes it off the
    parts. `wrong_vr` sends PatientID as PN, dates as numbers, UIDs and Rows as text. `foreign_study` answers with
    another study than asked. `framing`, `truncate_after` and `stall_after` are as in Framing; with
    `no_closing_boundary`, `truncate_after` ends the body there in good order, so that only the boundary is missing.
    `availability` is the Instance Availability (0008,0056) of all it has, also while it is unwell.
    """

    no_percent_decoding: bool = False
    status_204_for_none: bool = False
    ignores_keys: frozenset[str] = frozenset()
    ignores_offset: bool = False
    max_results: int | None = None
    silent_maximum: bool = False
    ends_at_maximum: bool = False
    no_metadata: bool = False
    no_frames: bool = False
    quirk_unquoted_type: bool = False
    parameters_inside_quotes: bool = False
    lf_only: bool = False
    no_closing_boundary: bool = False
    framing: Literal["chunked", "content-length"] = "chunked"
    truncate_after: int | None = None
    stall_after: int | None = None
    wrong_vr: bool = False
    foreign_study: bool = False
    absolute_bulk_host: str | None = None
    da_without_value: bool = False
    boundary: str = ""
    availability: str = "ONLINE"

    def healthy(self) -> Self:
        return replace(super().healthy(), availability=self.availability)


class DicomwebSimulator(Peer):
    """QIDO-RS, WADO-RS and STOW-RS below `url`. Stored instances go into the directory itself.

    Instances are sent in the transfer syntax they are stored in, from disk chunk by chunk. `operations` counts
    search_studies, search_series, search_instances, search_study_series, search_study_instances,
    search_series_instances, retrieve_study, retrieve_series, retrieve_instance, study_metadata, series_metadata,
    instance_metadata, frames, bulkdata and store.
    """

    path = "/dicom-web"

    def __init__(self, directory: Path | str, options: DicomwebOptions | None = None) -> None:
        super().__init__(options or DicomwebOptions())
        self.directory = Directory(Path(directory))
        self._app = Starlette(routes=self._routes())

    @property
    def app(self) -> Starlette:
        return self._app

    def _routes(self) -> list[Route]:
        study, series = "/studies/{study}", "/studies/{study}/series/{series}"
        instance = series + "/instances/{instance}"
        table: list[tuple[str, str, str, Handler]] = [
            ("POST", "store", "/studies", self._store),
            ("POST", "store", study, self._store),
            ("GET", "search_studies", "/studies", partial(self._search, Level.STUDY)),
            ("GET", "search_series", "/series", partial(self._search, Level.SERIES)),
            ("GET", "search_instances", "/instances", partial(self._search, Level.IMAGE)),
            ("GET", "search_study_series", study + "/series", partial(self._search, Level.SERIES)),
            ("GET", "search_study_instances", study + "/instances", partial(self._search, Level.IMAGE)),
            ("GET", "search_series_instances", series + "/instances", partial(self._search, Level.IMAGE)),
            ("GET", "study_metadata", study + "/metadata", self._metadata),
            ("GET", "series_metadata", series + "/metadata", self._metadata),
            ("GET", "instance_metadata", instance + "/metadata", self._metadata),
            ("GET", "frames", instance + "/frames/{frames}", self._frames),
            ("GET", "bulkdata", instance + "/bulkdata/{bulk:path}", self._bulkdata),
            ("GET", "retrieve_instance", instance, self._retrieve),
            ("GET", "retrieve_series", series, self._retrieve),
            ("GET", "retrieve_study", study, self._retrieve),
        ]
        return [
            Route(self.path + where, self.counted(operation, handler), methods=[method])
            for method, operation, where, handler in table
        ]

    # -- QIDO-RS

    async def _search(self, level: Level, request: Request) -> Response:
        options = _options(request)
        try:
            search = parse(request.url.query, str if options.no_percent_decoding else unquote_plus)
        except BadQuery as bad:
            return Response(str(bad), 400)
        found = [row for row in self._found(level, search, request) for _ in range(1 + options.duplicates)]
        if options.ends_at_maximum and options.max_results is not None:
            found, options = found[: options.max_results + 1], replace(options, max_results=None)
        start = 0 if options.ignores_offset else search.offset
        page = _page(options, found[start:], search.limit)
        headers = _warnings(self.url, options, search, level, len(found) - start - len(page))
        if not page and options.status_204_for_none:
            return Response(status_code=204, headers=headers)
        return _json(page, request, headers)

    def _found(self, level: Level, search: Search, request: Request) -> list[Json]:
        """Every row that fits, as it is shown."""
        options, asked = _options(request), self._asked(request)
        ignored = {path for path in search.keys if options.ignores_keys & {_name(path), ".".join(path)}}
        keys = {path: value for path, value in search.keys.items() if path not in ignored}
        for path in not_matchable(search, level):
            keys.pop(path, None)
        if options.foreign_study and (STUDY_UID,) in keys:
            keys[STUDY_UID,] = self._foreign(keys[STUDY_UID,])
        return [
            shown(row, search, level, _levels_shown(level, asked), fill=options.da_without_value)
            for study, series, row in rows(
                self.directory.studies, level, _root(self.path, request), options.availability
            )
            if asked.get("study") in (None, study) and asked.get("series") in (None, series) and matches(row, keys)
        ]

    # -- WADO-RS

    async def _metadata(self, request: Request) -> Response:
        options, found = _options(request), self._instances(request)
        if options.no_metadata or not found:
            return Response("Not found", 404)
        host = options.absolute_bulk_host
        root = _root(self.path, request) if host is None else host.rstrip("/") + self.path
        return _json([_described(instance, root) for instance in found], request, {})

    async def _retrieve(self, request: Request) -> Response:
        found = self._instances(request)
        if not found:
            return Response("Not found", 404)
        ranges = accepted(request)
        served = [one for one in found if acceptable(ranges, DICOM, one.transfer_syntax)]
        if not served:
            return Response("Not acceptable", 406)
        if "instance" in request.path_params and wants_single(ranges, DICOM):
            return self._single(f"{DICOM}; transfer-syntax={served[0].transfer_syntax}", whole_file(served[0]), request)
        parts = [(DICOM, one.transfer_syntax, whole_file(one)) for one in served]
        return self._multipart(DICOM, parts, request, 200 if len(served) == len(found) else 206)

    async def _frames(self, request: Request) -> Response:
        listed = request.path_params["frames"].split(",")
        if not all(number.isdecimal() for number in listed):
            return Response("A frame list is numbers", 400)
        found = self._instances(request)
        if _options(request).no_frames or not found:
            return Response("Not found", 404)
        return self._frame_parts(found[0], [int(number) for number in listed], request)

    def _frame_parts(self, instance: Instance, numbers: list[int], request: Request) -> Response:
        values = frames(instance, numbers)
        if values is None:
            return Response("No such frame", 404)
        syntax, natural = declared_syntax(instance.transfer_syntax), frame_media_type(instance.transfer_syntax)
        ranges = accepted(request)
        chosen = next((kind for kind in (natural, OCTETS) if acceptable(ranges, kind, syntax)), None)
        if chosen is None:
            return Response("Not acceptable", 406)
        return self._multipart(chosen, [(chosen, syntax, value) for value in values], request)

    async def _bulkdata(self, request: Request) -> Response:
        """One value; encapsulated pixel data goes frame by frame, as its items are no value of their own."""
        found, path = self._instances(request), request.path_params["bulk"]
        if found and path == PIXEL_DATA and frame_media_type(found[0].transfer_syntax) != OCTETS:
            return self._frame_parts(found[0], list(range(1, frame_count(found[0]) + 1)), request)
        value = bulk_value(found[0], path) if found else None
        if value is None:
            return Response("Not found", 404)
        if wants_single(accepted(request), OCTETS):
            return self._single(OCTETS, value, request)
        return self._multipart(OCTETS, [(OCTETS, "1.2.840.10008.1.2.1", value)], request)

    # -- STOW-RS

    async def _store(self, request: Request) -> Response:
        media_type, parameters = media_range(request.headers.get("content-type", ""))
        if media_type != "multipart/related" or parameters.get("type", DICOM) != DICOM or "boundary" not in parameters:
            return Response("multipart/related of application/dicom with a boundary is needed", 415)
        wanted = request.path_params.get("study")
        received = await receive(request, parameters["boundary"], self.directory, wanted)
        if not received:
            return Response("no whole part in the body", 400)
        failed = sum(one.failure != 0 for one in received)
        status = 200 if not failed else 409 if failed == len(received) else 202
        return _json(store_response(received, _root(self.path, request)), request, {}, status)

    # -- which instances, and how they are sent

    def _asked(self, request: Request) -> dict[str, str]:
        """The UIDs of the path; those of another study where the server is made to confuse them."""
        asked = dict(request.path_params)
        if _options(request).foreign_study and "study" in asked:
            return {"study": self._foreign(asked["study"])}
        return asked

    def _foreign(self, uid: str) -> str:
        return next((study.uid for study in self.directory.studies if study.uid != uid), uid)

    def _instances(self, request: Request) -> list[Instance]:
        asked = self._asked(request)
        found = self.directory.instances(asked["study"], asked.get("series"), asked.get("instance"))
        return found[:1] if "instance" in request.path_params else found

    def _single(self, media_type: str, value: Bytes, request: Request) -> Response:
        return self._streamed(value.chunks(), value.size, media_type, request)

    def _multipart(self, media_type: str, parts: list[Part], request: Request, status: int = 200) -> Response:
        options = _options(request)
        boundary = options.boundary or secrets.token_hex(16)
        inside, closed = options.parameters_inside_quotes, not options.no_closing_boundary
        laid_out = [
            ([f"Content-Type: {kind}" + ("" if inside else f"; transfer-syntax={syntax}")], value)
            for kind, syntax, value in parts
        ]
        newline = "\n" if options.lf_only else "\r\n"
        size = multipart_size(laid_out, boundary, newline, closed=closed)
        body = multipart(laid_out, boundary, newline, closed=closed)
        whole = f"{media_type}; transfer-syntax={parts[0][1]}" if inside else media_type
        quoted = whole if options.quirk_unquoted_type else f'"{whole}"'
        return self._streamed(body, size, f"multipart/related; type={quoted}; boundary={boundary}", request, status)

    def _streamed(
        self, body: Iterable[bytes], size: int, content_type: str, request: Request, status: int = 200
    ) -> Response:
        options = _options(request)
        framing = Framing(options.framing, options.truncate_after, options.stall_after)
        if options.no_closing_boundary and framing.truncate_after is not None:
            body, size = _first(body, framing.truncate_after), min(size, framing.truncate_after)
            framing = replace(framing, truncate_after=None)
        headers = {"Content-Type": content_type}
        if framing.kind == "content-length":
            headers["Content-Length"] = str(size)
        return Delivered(self.delivered(body, framing), status, headers)


def _options(request: Request) -> DicomwebOptions:
    """The options that hold for this request."""
    return cast(DicomwebOptions, request.state.options)


def _root(path: str, request: Request) -> str:
    """The service root as the caller addressed it."""
    return f"{request.url.scheme}://{request.url.netloc}{path}"


def _name(path: tuple[str, ...]) -> str:
    return ".".join(keyword_for_tag(int(tag, 16)) or tag for tag in path)


def _page(options: DicomwebOptions, found: list[Json], limit: int | None) -> list[Json]:
    ceilings = [ceiling for ceiling in (limit, options.max_results) if ceiling is not None]
    return found[: min(ceilings)] if ceilings else found


def _warnings(service: str, options: DicomwebOptions, search: Search, level: Level, left: int) -> dict[str, str]:
    """The Warning header: what was not matched, and what a maximum of the server's own held back (PS3.18 10.6.3)."""
    warnings = [f"{_name(path)} is not matched at this level" for path in not_matchable(search, level)]
    if search.fuzzy:
        warnings.append("The fuzzymatching parameter is not supported. Only literal matching has been performed.")
    if left > 0 and options.max_results is not None and not options.silent_maximum:
        warnings.append(f"There are {left} additional results that can be requested")
    return {"Warning": ", ".join(f"299 {service}: {text}" for text in warnings)} if warnings else {}


def _levels_shown(level: Level, asked: dict[str, str]) -> tuple[Level, ...]:
    """The levels above whose attributes are added, as the path does not say which study or series it is (10.6.3.3)."""
    if level is Level.STUDY or "series" in asked:
        return ()
    if level is Level.SERIES:
        return () if "study" in asked else (Level.STUDY,)
    return (Level.SERIES,) if "study" in asked else (Level.STUDY, Level.SERIES)


def _described(instance: Instance, root: str) -> Json:
    """The metadata of an instance; what is long is an address below it (PS3.18 F.2.2)."""
    place = f"studies/{instance.study_uid}/series/{instance.series_uid}/instances/{instance.uid}/bulkdata"
    return to_json(read_dataset(instance.path), f"{root}/{place}/{{}}".format)


def _json(body: object, request: Request, headers: dict[str, str], status: int = 200) -> Response:
    options = _options(request)
    if options.garbage_json:
        return garbage(DICOM_JSON)
    if options.wrong_vr and isinstance(body, list):
        body = [_misread(row) for row in body]
    return Response(json.dumps(body, allow_nan=False), status, headers, DICOM_JSON)


def _misread(row: Json) -> Json:
    """A row whose VRs are not those of PS3.6."""
    wrong = dict(row)
    for tag in row:
        value = first_text(row, tag)
        if tag == PATIENT_ID:
            wrong[tag] = {"vr": "PN", "Value": [{"Alphabetic": value}]}
        elif vr(tag) == "DA" and value.isdecimal():
            wrong[tag] = {"vr": "IS", "Value": [int(value)]}
        elif tag in (ROWS, STUDY_UID, SERIES_UID):
            wrong[tag] = {"vr": "LO", "Value": [value]}
    return wrong


def _first(body: Iterable[bytes], length: int) -> Iterator[bytes]:
    for chunk in body:
        yield chunk[:length]
        length -= len(chunk)
        if length <= 0:
            return
