"""`simulate`: one small real peer over a directory of DICOM files, with the faults of the field on demand."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from gateway.cli import console, serving
from gateway.errors import SettingsError
from gateway.simulators.dicomweb import DicomwebOptions, DicomwebSimulator
from gateway.simulators.dimse import DimseOptions, DimseSimulator
from gateway.simulators.fhir import FhirOptions, FhirSimulator, Version

Options = DimseOptions | DicomwebOptions | FhirOptions
OPTIONS: Mapping[str, type[Options]] = {"dimse": DimseOptions, "dicomweb": DicomwebOptions, "fhir": FhirOptions}
# An SSL context is an object, which no text can name.
_UNNAMED = frozenset({"tls"})
_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def run(
    protocol: str,
    directory: Path,
    host: str,
    port: int,
    ae_title: str,
    version: Version,
    switches: Sequence[str],
    *,
    until_eof: bool,
) -> None:
    """Prints one line, `<protocol> <address>`, once it listens; ends with SIGINT, SIGTERM or, if so told, its input."""
    with console.refusals(), serving.stoppable():
        if not directory.is_dir():
            raise SettingsError(f"--directory: {directory} is not a directory")
        options = options_of(protocol, switches)
        if port:
            serving.listen(host, port).close()
        with _pacs(directory, host, port, ae_title, version, options) as address:
            print(f"{protocol} {address}", flush=True)
            if until_eof:
                sys.stdin.buffer.read()
            else:
                threading.Event().wait()


@contextmanager
def _pacs(directory: Path, host: str, port: int, ae_title: str, version: Version, options: Options) -> Iterator[str]:
    """Runs the peer and gives its address: a URL, or AE title, host and port."""
    if isinstance(options, DimseOptions):
        with DimseSimulator(directory, ae_title, host, port, options) as pacs:
            yield f"{pacs.ae_title}@{pacs.host}:{pacs.port}"
        return
    peer = _http_peer(directory, version, options)
    peer.start(port, host)
    try:
        yield peer.url
    finally:
        peer.stop()


def _http_peer(
    directory: Path, version: Version, options: DicomwebOptions | FhirOptions
) -> DicomwebSimulator | FhirSimulator:
    if isinstance(options, DicomwebOptions):
        return DicomwebSimulator(directory, options)
    try:
        return FhirSimulator(directory, version, options)
    except ValueError as error:
        raise SettingsError(f"--fhir-version: {error}") from None


def options_of(protocol: str, switches: Iterable[str]) -> Options:
    """The options from texts such as 'no_get', 'max_results=5', 'ignored_keys=PatientID,StudyDate'.

    Raises SettingsError that names the switch.
    """
    kind = OPTIONS[protocol]
    known = types(protocol)
    given: dict[str, Any] = {}
    for switch in switches:
        name, has_value, text = switch.partition("=")
        name = name.replace("-", "_")
        if name not in known:
            raise SettingsError(f"--with {name}: a {protocol} peer has {', '.join(sorted(known))}")
        given[name] = _value(name, known[name], text if has_value else "true")
    return kind(**given)


def types(protocol: str) -> dict[str, Any]:
    """What a peer of this protocol can be told, and the type of each."""
    kind = OPTIONS[protocol]
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.name not in _UNNAMED}


def _value(name: str, wanted: Any, text: str) -> Any:
    try:
        return TypeAdapter(wanted).validate_python(_plain(wanted, text))
    except (ValidationError, ValueError):
        raise SettingsError(f"--with {name}: '{text}' is not a {' or '.join(_kinds(wanted))}") from None


def _plain(wanted: Any, text: str) -> Any:
    """A mapping is written as JSON; a list as JSON or with commas; everything else as it is."""
    if not _kinds(wanted) & {"mapping", "list"}:
        return text
    return json.loads(text) if text[:1] in ("{", "[") else text.split(",")


def _kinds(wanted: Any) -> set[str]:
    """'mapping', 'list', a choice or a plain type's name, for each alternative of a type."""
    alternatives = get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
    return {_kind(one) for one in alternatives if one is not NoneType}


def _kind(wanted: Any) -> str:
    origin = get_origin(wanted)
    if origin is Literal:
        return "one of " + ", ".join(filter(None, get_args(wanted)))
    if origin in (frozenset, tuple, Sequence):
        return "list"
    return "mapping" if origin is Mapping else _WORDS[wanted]


def explain(protocol: str) -> None:
    """Prints every switch of a peer, with its type and what the class says of them."""
    kind = OPTIONS[protocol]
    screen = console.output()
    screen.print(f"{protocol}: --with NAME or --with NAME=VALUE (lists: A,B; mappings: JSON)\n", markup=False)
    for name, wanted in types(protocol).items():
        screen.print(f"  {name:<26}{' or '.join(_kinds(wanted))}", markup=False)
    screen.print("\n" + (kind.__doc__ or ""), markup=False)
