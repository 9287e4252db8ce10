"""The Native DICOM Model as XML (PS3.19 A.1), written from data sets in the DICOM JSON model, one document each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gateway.model.dataset import PN_GROUPS, Attribute, Dataset, as_text
from gateway.model.vocabulary import creator_tag, is_private, keyword

MEDIA_TYPE = "application/dicom+xml"

_PROLOGUE = '<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel xml:space="preserve">'
_EPILOGUE = "</NativeDicomModel>"
_COMPONENTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
_MARKED = re.compile(r"""[&<>"\t\n\r]""")
_MARKS = {
    "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;",
}  # fmt: skip
# What XML 1.0 can neither hold nor refer to (2.2): control characters, lone surrogates, two that are no characters.
_IMPOSSIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_INSTEAD = "\ufffd"


def write(dataset: Dataset) -> bytes:
    """One data set as a whole XML document in UTF-8, attributes by tag; group lengths are left out (A.1.1).

    What XML cannot hold (a form feed, an escape) becomes U+FFFD. An empty value among others is an empty element, so that
    the numbers of the others stand.
    """
    return "".join((_PROLOGUE, *_attributes(dataset), _EPILOGUE)).encode("utf-8")


def _attributes(dataset: Dataset) -> Iterator[str]:
    for tag in sorted(dataset):
        if not tag.endswith("0000"):
            yield f"<DicomAttribute {_naming(tag, dataset)}vr={_quoted(str(dataset[tag].get('vr', 'UN')))}"
            yield from _content(dataset[tag])


def _naming(tag: str, dataset: Dataset) -> str:
    """The tag, and the keyword of PS3.6; a private one without its block, which its creator stands for (Table A.1.5-2)."""
    if is_private(tag):
        creator = creator_of(tag, dataset)
        return f'tag="{tag[:4]}00{tag[6:]}" privateCreator={_quoted(creator)} ' if creator else f'tag="{tag}" '
    name = keyword(tag)
    return f'tag="{tag}" ' + (f'keyword="{name}" ' if name else "")


def creator_of(tag: str, dataset: Dataset) -> str:
    """The private creator of a private data element (PS3.5 7.8.1): '' where there is none, and for the creator itself."""
    if creator_tag(tag) == tag:
        return ""
    values = dataset.get(creator_tag(tag), {}).get("Value") or [""]
    return as_text(values[0]).strip()


def _content(attribute: Attribute) -> Iterator[str]:
    inside = tuple(_values(attribute))
    if not inside:
        yield "/>"
        return
    yield ">"
    yield from inside
    yield "</DicomAttribute>"


def _values(attribute: Attribute) -> Iterator[str]:
    if "BulkDataURI" in attribute:
        yield f"<BulkData uri={_quoted(str(attribute['BulkDataURI']))}/>"
        return
    if "InlineBinary" in attribute:
        yield f"<InlineBinary>{_text(str(attribute['InlineBinary']))}</InlineBinary>"
        return
    write_one = {"SQ": _item, "PN": _name}.get(str(attribute.get("vr")), _value)
    for number, value in enumerate(attribute.get("Value", ()), 1):
        yield from write_one(number, value)


def _value(number: int, value: Any) -> Iterator[str]:
    yield f'<Value number="{number}">{_text(as_text(value))}</Value>'


def _item(number: int, value: Any) -> Iterator[str]:
    yield f'<Item number="{number}">'
    if isinstance(value, dict):
        yield from _attributes(value)
    yield "</Item>"


def _name(number: int, value: Any) -> Iterator[str]:
    yield f'<PersonName number="{number}">'
    groups = value if isinstance(value, dict) else dict(zip(PN_GROUPS, as_text(value).split("="), strict=False))
    for group in PN_GROUPS:
        if groups.get(group):
            yield f"<{group}>{''.join(_components(str(groups[group])))}</{group}>"
    yield "</PersonName>"


def _components(group: str) -> Iterator[str]:
    """The components that have a text, and the last one in any case: so 'Novak^Jan^^' is not taken for 'Novak^Jan'."""
    components = group.split("^", len(_COMPONENTS) - 1)
    for place, (name, component) in enumerate(zip(_COMPONENTS, components, strict=False), 1):
        if component or place == len(components):
            yield f"<{name}>{_text(component)}</{name}>"


def _text(text: str) -> str:
    return _MARKED.sub(_mark, _IMPOSSIBLE.sub(_INSTEAD, text))


def _mark(found: re.Match[str]) -> str:
    return _MARKS[found[0]]


def _quoted(text: str) -> str:
    return f'"{_text(text)}"'
