"""`conformance`: the DICOM conformance statement (PS3.2), as Markdown, from the tables that the code itself works by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from starlette.routing import Route

from gateway import __version__
from gateway.adapters.dimse.probing import PATIENT_ROOT, STUDY_ROOT
from gateway.adapters.dimse.storage_contexts import COMMON_CLASSES, IMAGE_SYNTAXES
from gateway.cli import console
from gateway.edge import capabilities, routes
from gateway.edge.dicomweb import qidoquery
from gateway.edge.dicomweb.representations import OFFERED, Representation
from gateway.edge.negotiation import FRAME_TYPES
from gateway.federation import nodes
from gateway.federation.nodes import NodeConfig
from gateway.model.vocabulary import RETURNED, SERIES_KEYS, STUDY_KEYS, Level, keyword, uid_name, vr
from gateway.wire.charset import DEFINED_TERMS
from gateway.wire.transfer import FORBIDDEN_ON_THE_WEB

_SEARCHED = {
    Level.STUDY: STUDY_KEYS,
    Level.SERIES: SERIES_KEYS,
    Level.IMAGE: qidoquery.INSTANCE_KEYS,
}
MODELS = tuple(str(uid) for root in (STUDY_ROOT, PATIENT_ROOT) for uid in (root.find, root.get, root.move))
_KINDS = {
    "DA": "single value, range", "TM": "single value, range", "DT": "single value, range", "UI": "single value, list of UIDs",
    "PN": "single value, wildcard, fuzzy", "IS": "single value", "DS": "single value", "SQ": "sequence",
}  # fmt: skip
_PACS, _FHIR = "dimse", "fhir"


def run(file: Path | None) -> None:
    """Prints the statement; with a node file also how each node of it is spoken to. Raises SettingsError for a wrong one."""
    with console.refusals():
        configured = nodes.read(file).enabled if file else []
        print("\n".join(statement(configured)))


def statement(configured: Sequence[NodeConfig] = ()) -> Iterator[str]:
    """The lines of the statement, in the order of PS3.2 Annex A."""
    yield f"# DICOM conformance statement: imaging gateway {__version__}"
    yield from _overview()
    yield from _introduction()
    yield "\n## 4 Networking"
    yield from _model(configured)
    yield from _search()
    yield from _retrieve()
    yield from _dimse()
    yield from _configuration()
    yield "\n## 5 Media interchange\n\nNone. A directory of DICOM files can be a node; it is read, never written."
    yield from _character_sets()
    yield from _security()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield ""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _overview() -> Iterator[str]:
    yield "\n## 1 Conformance statement overview\n"
    yield "The gateway answers DICOMweb and FHIR for many archives at once. It stores nothing but a cache."
    service = {"search": "QIDO-RS", "capabilities": "Capabilities (8.9)"}
    given = dict.fromkeys(service.get(route.name, "WADO-RS") for route in _routes())
    rows = [(name, "no", "yes") for name in given]
    rows += [(uid_name(uid), "yes", "no") for uid in MODELS]
    rows += [("Storage, as the destination of C-MOVE and C-GET", "no", "yes"), ("UPS-RS, Workflow", "no", "no")]
    yield from _table(("service", "user (SCU, user agent)", "provider (SCP, origin server)"), rows)


def _routes() -> list[Route]:
    return [route for route in routes.dicomweb() if isinstance(route, Route)]


def _introduction() -> Iterator[str]:
    yield "\n## 3 Introduction\n"
    yield "Printed by `imaging-gateway conformance` from the tables that the program works by. Sections are those of PS3.2 Annex A;"
    yield "the README's conformance table says row by row what PS3.18 asks for, what is done, and which test shows it."


def _model(configured: Sequence[NodeConfig]) -> Iterator[str]:
    yield "\n### 4.1 Implementation model\n"
    yield "A request is authorised, put to every node that the caller may ask, each in its own protocol, and answered with each"
    yield "study once. Every row of every node is matched again. To an archive that speaks DIMSE only the gateway is a DIMSE proxy"
    yield "(CP-2473): three search resources are then mandatory and three optional; here all six are served."
    if not configured:
        yield "\nWithout a node file no node is listed: `imaging-gateway conformance --nodes nodes.toml` lists them."
        return
    head = ("resource", *(f"{node.id} ({node.adapter})" for node in configured))
    yield from _table(head, ((name, *(of(node) for node in configured)) for name, of in _OF_NODES))


def _native(node: NodeConfig) -> str:
    return {_PACS: "DIMSE proxy: C-FIND", _FHIR: "proxy: FHIR ImagingStudy"}.get(node.adapter, "native")


def _relational(node: NodeConfig) -> str:
    if node.adapter == _PACS:
        return "DIMSE proxy: relational C-FIND" if node.relational else "DIMSE proxy: level by level, within a budget"
    return _native(node) if node.relational else f"{_native(node)}, study by study within a budget"


def _pieces(node: NodeConfig) -> str:
    return {_PACS: "proxy: from one retrieve of the series", _FHIR: "its DICOMweb endpoint"}.get(node.adapter, "native")


_OF_NODES: tuple[tuple[str, Callable[[NodeConfig], str]], ...] = (
    ("`/studies`, `/studies/{s}/series`, `/studies/{s}/series/{e}/instances`", _native),
    ("`/series`, `/instances`, `/studies/{s}/instances`", _relational),
    ("WADO-RS instances", lambda node: "its DICOMweb endpoint" if node.adapter == _FHIR else "native"),
    ("WADO-RS metadata, frames, bulk data", _pieces),
)


def _search() -> Iterator[str]:
    yield "\n### 4.2 QIDO-RS (PS3.18 10.6)"
    rows = ((f"`{route.path}`", ", ".join(_names(OFFERED))) for route in _routes() if route.name == "search")
    yield from _table(("resource", "media types"), rows)
    for level, keys in _SEARCHED.items():
        yield f"\n#### Keys and attributes at the {level.value} level"
        shown = RETURNED[level]
        tags = sorted({*keys, *shown}, key=lambda tag: (tag not in shown, keyword(tag)))
        yield from _table(("attribute", "tag", "matching", "returned"), (_attribute(t, keys, shown) for t in tags))
    yield "\nWith any key: universal matching. Persons' names are matched without case and diacritics, everything else"
    yield "case-sensitively. Attributes of sequences by dotted paths. Private attributes are returned, not matched."
    yield from _table(("parameter", "meaning"), _PARAMETERS)


_PARAMETERS = (
    ("`limit`, `offset`", "pages, in a stable order; what is left over is told in a Warning"),
    ("`includefield`", "a list, repeated, or `all`"),
    ("`fuzzymatching`", "each word of the key begins a word of the name, in any order, in any component group"),
    ("`emptyvaluematching`", '`""` matches an attribute without a value (PS3.4 C.2.2.2.7)'),
    ("`multiplevaluematching`", "values with a backslash between them are all to be there (PS3.4 C.2.2.2.8)"),
    ("`TimezoneOffsetFromUTC`", "dates and times of the request are at that offset"),
)


def _names(offered: Iterable[Representation]) -> Iterator[str]:
    return (f"`{one.name}`" for one in offered)


def _attribute(tag: str, keys: frozenset[str], shown: Sequence[str]) -> tuple[str, str, str, str]:
    kind = _KINDS.get(vr(tag), "single value, wildcard") if tag in keys else "-"
    return keyword(tag), f"({tag[:4]},{tag[4:]})", kind, "always" if tag in shown else "on request"


def _retrieve() -> Iterator[str]:
    yield "\n### 4.3 WADO-RS and other resources (PS3.18 10.4, 10.5)"
    rows = []
    for route in _routes():
        if route.name not in ("search", "capabilities"):
            types = capabilities.REPRESENTATIONS.get(route.name, ())
            types = (f"as in {len(FRAME_TYPES)} types of PS3.18 8.7.3",) if route.name == "frames" else types
            methods = ", ".join(sorted(route.methods or ()))
            rows.append((f"`{route.path}`", methods, ", ".join(f"`{each}`" for each in types) or "see README"))
    yield from _table(("resource", "methods", "media types"), rows)
    forbidden = ", ".join(uid_name(uid) for uid in sorted(FORBIDDEN_ON_THE_WEB))
    yield f"\nInstances go out in the transfer syntax that they are stored in; {forbidden} are rewritten as Explicit VR Little"
    yield "Endian (8.7.3.5.2). Bulk data is available by ranges of bytes. 410 is answered for a study that was found before and"
    yield "that each node now says it does not have, where a Redis keeps the record of that; else 404."


def _dimse() -> Iterator[str]:
    yield "\n### 4.4 DIMSE, as a user of archives and as the destination of their C-MOVE"
    yield from _table(("SOP class", "UID", "role"), ((uid_name(uid), uid, "SCU") for uid in MODELS))
    rows = ((uid_name(uid), uid) for uid in COMMON_CLASSES)
    yield "\nStorage SOP classes accepted (others as an archive names them in its answers):"
    yield from _table(("SOP class", "UID"), rows)
    yield from _table(("transfer syntax", "UID"), ((uid_name(uid), uid) for uid in IMAGE_SYNTAXES))
    yield "\nExtended negotiation: relational queries are offered; fuzzy semantic matching is not: names are matched here."


def _configuration() -> Iterator[str]:
    yield "\n### 4.5 Configuration\n"
    yield "AE titles, addresses and ceilings of each node are in the node file; the README lists its keys and all settings."


def _character_sets() -> Iterator[str]:
    yield "\n## 6 Support of character sets\n"
    yield "Everything goes out in Unicode UTF-8 (ISO_IR 192). From nodes these are read, and keys are written in a node's own:"
    yield "\n" + ", ".join(DEFINED_TERMS) + "."


def _security() -> Iterator[str]:
    yield "\n## 7 Security\n"
    yield "TLS 1.2 and later, here or at a proxy. Bearer tokens of an OpenID Connect issuer with SMART scopes; without an"
    yield "issuer the gateway answers on the loopback interface only. One audit record for each request, and one before its first"
    yield "byte for what is streamed or stored."
