"""FHIR resources as XML: the JSON form written with the elements in the order of the specification (FHIR R4 2.6.1, xml).

`fhirelements.json` has for each type its elements in that order, each with its type where that is a complex one; a test holds
it against fhir.resources. What the table does not know is refused, never left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

_TABLE = Path(__file__).with_name("fhirelements.json")
_SPECIAL = re.compile('[&<>"\t\n\r\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]')
_WRITTEN = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}

Types = dict[str, dict[str, tuple[int, str]]]


@cache
def _types(is_r5: bool) -> Types:
    """By type and element: its place, and its type ('' for a primitive, 'Resource' for any resource)."""
    listed: dict[str, str] = json.loads(_TABLE.read_text(encoding="utf-8"))["R5" if is_r5 else "R4"]
    return {
        name: {
            element.partition(":")[0]: (place, element.partition(":")[2])
            for place, element in enumerate(elements.split())
        }
        for name, elements in listed.items()
    }


def element_names(kind: str, *, is_r5: bool) -> frozenset[str]:
    """The elements that a resource of this type can have."""
    return frozenset(_types(is_r5)[kind])


def encode(resource: dict[str, Any], *, is_r5: bool) -> bytes:
    """The resource as an XML document in UTF-8. Raises KeyError for a type or element that the version has not.

    A character that XML cannot carry at all is written as U+FFFD.
    """
    out = ['<?xml version="1.0" encoding="UTF-8"?>']
    _write_resource(out, resource, _types(is_r5), ' xmlns="http://hl7.org/fhir"')
    return "".join(out).encode()


def _write_resource(out: list[str], resource: dict[str, Any], types: Types, attributes: str = "") -> None:
    kind = resource["resourceType"]
    out.append(f"<{kind}{attributes}>")
    members = {name: value for name, value in resource.items() if name != "resourceType"}
    _write_members(out, members, types[kind], types)
    out.append(f"</{kind}>")


def _write_members(out: list[str], members: dict[str, Any], elements: dict[str, tuple[int, str]], types: Types) -> None:
    names = {name.lstrip("_") for name in members}
    for name in sorted(names, key=lambda each: elements[each][0]):
        type_ = elements[name][1]
        if type_:
            value = members[name]
            for one in value if isinstance(value, list) else (value,):
                _write_complex(out, name, one, type_, types)
        else:
            for value, more in _primitives(members.get(name), members.get(f"_{name}")):
                _write_primitive(out, name, value, more, types)


def _write_complex(out: list[str], name: str, value: dict[str, Any], type_: str, types: Types) -> None:
    if type_ == "Resource":
        out.append(f"<{name}>")
        _write_resource(out, value, types)
        out.append(f"</{name}>")
        return
    attributes = "".join(
        f' {key}="{_escaped(value[key])}"'
        for key in ("id", "url")
        if key in value and (key == "id" or type_ == "Extension")
    )
    out.append(f"<{name}{attributes}>")
    members = {k: v for k, v in value.items() if k != "id" and not (k == "url" and type_ == "Extension")}
    _write_members(out, members, types[type_], types)
    out.append(f"</{name}>")


def _primitives(value: Any, more: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Each value of a primitive element with its id and extensions, which JSON keeps beside it (`_name`)."""
    values = value if isinstance(value, list) else [value]
    others = more if isinstance(more, list) else [more]
    return ((one, other or {}) for one, other in zip_longest(values, others))


def _write_primitive(out: list[str], name: str, value: Any, more: dict[str, Any], types: Types) -> None:
    if name == "div":  # Narrative.div is XHTML itself
        out.append(str(value))
        return
    identifier = f' id="{_escaped(more["id"])}"' if "id" in more else ""
    text = "" if value is None else f' value="{_escaped(_text(value))}"'
    out.append(f"<{name}{identifier}{text}")
    if "extension" not in more:
        out.append("/>")
        return
    out.append(">")
    for extension in more["extension"]:
        _write_complex(out, "extension", extension, "Extension", types)
    out.append(f"</{name}>")


def _text(value: Any) -> str:
    return ("false", "true")[value] if isinstance(value, bool) else str(value)


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda found: _WRITTEN.get(found[0], "\ufffd"), text) if _SPECIAL.search(text) else text
