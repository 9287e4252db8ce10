"""The mapping language: what a mappings/*.toml file may say. mappings/README.md is its reference for people."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gateway.errors import InvalidMapping, InvalidQuery
from gateway.mapping.transforms import TRANSFORMS
from gateway.model.moments import named_zone
from gateway.model.vocabulary import Level, path, vr
from gateway.wire.charset import require_known
from gateway.wire.fhirjson import compiled

Scalar = str | int | float
Fixed = Scalar | list[Scalar]


class _Table(BaseModel):
    """A closed TOML table: an unknown key is an error that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Issuer(_Table):
    """One assigning authority under all its names. `issuer` is what (0010,0021) says here."""

    issuer: str = Field(min_length=1)
    oid: str = Field("", pattern=r"^([0-9]+(\.[0-9]+)*)?$")
    uri: str = ""

    @property
    def systems(self) -> tuple[str, ...]:
        """The FHIR Identifier.system values that mean this authority."""
        return tuple(filter(None, (self.uri, f"urn:oid:{self.oid}" if self.oid else "")))


class Code(_Table):
    """A coded term (PS3.3 8.8): `system` is the Coding Scheme Designator, such as SCT, LN or DCM."""

    system: str
    code: str
    display: str = ""


class Entry(_Table):
    """Where one attribute comes from. `item` describes the items of a sequence, one per element at `path`."""

    path: str | None = None
    using: str | None = None
    codes: str | None = None
    fixed: Fixed | None = None
    default: Fixed | None = None
    item: dict[str, Entry] | None = None

    @field_validator("using")
    @classmethod
    def _known_transform(cls, name: str | None) -> str | None:
        if name is not None and name not in TRANSFORMS:
            raise ValueError(f"'{name}' is not a transform; there are {', '.join(sorted(TRANSFORMS))}")
        return name

    @model_validator(mode="after")
    def _says_one_thing(self) -> Entry:
        if self.fixed is not None and any((self.path, self.using, self.codes, self.item, self.default is not None)):
            raise ValueError("'fixed' stands alone")
        if self.item is not None and any((self.using, self.codes, self.default is not None)):
            raise ValueError("'item' goes with 'path' only")
        return self


class Children(_Table):
    """Where a record holds its lower levels, each path from the level above."""

    series: str
    instance: str = ""


class LeaveOut(_Table):
    """Records that their node itself calls none: those that have one of `values` at `path`."""

    path: str
    values: list[str] = Field(min_length=1)


class Ask(_Table):
    """A search that an example translates: keyword -> QIDO-RS text, and what the node is asked.

    `expect` maps a native path to its text, a list of texts, or 'low/high'. `here` are the keys that are matched here.
    """

    query: dict[str, str]
    level: Level = Level.STUDY
    expect: dict[str, str | list[str]] = {}
    here: list[str] = []
    empty: bool = False


class Expect(_Table):
    """Keyword -> value, per level; 'started' is the FHIR moment. '' is an attribute that must be empty or absent.

    A DICOM record is one row of whichever level is expected; a FHIR study gives its series and instances in order. With
    `nothing` it is left out.
    """

    nothing: bool = False
    study: dict[str, Any] | None = None
    series: list[dict[str, Any]] = []
    instance: list[dict[str, Any]] = []


class Example(_Table):
    """The proof: what a node sends, and what it means."""

    given: str | dict[str, Any]
    expect: Expect
    ask: list[Ask] = []


class Mapping(_Table):
    """Everything known about one format. `digest` names the content: the cache forgets when a file changes."""

    format: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str = Field(min_length=1)
    protocol: Literal["dicom", "fhir"]
    versions: list[Literal["STU3", "R4", "R4B", "R5"]] = []
    character_set: str = ""
    time_zone: str = ""
    quirks: list[Annotated[str, Field(min_length=1)]] = []
    issuers: list[Issuer] = []
    codes: dict[str, dict[str, str | Code]] = {}
    children: Children | None = None
    leave_out: LeaveOut | None = None
    study: dict[str, Entry] = {}
    series: dict[str, Entry] = {}
    instance: dict[str, Entry] = {}
    example: list[Example] = Field(min_length=1)
    digest: str = ""

    @field_validator("character_set")
    @classmethod
    def _known_character_set(cls, terms: str) -> str:
        return require_known(terms)

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        if name and named_zone(name) is None:
            raise ValueError(f"'{name}' is not an IANA time zone")
        return name

    @model_validator(mode="after")
    def _is_consistent(self) -> Mapping:
        if self.protocol == "fhir" and not self.versions:
            raise ValueError('a fhir mapping names the FHIR versions it reads: versions = ["R4"]')
        if self.protocol == "dicom" and (self.children or self.versions):
            raise ValueError("'children' and 'versions' are for fhir mappings")
        for level in ("study", "series", "instance"):
            for name, entry in getattr(self, level).items():
                self._check_entry(f"{level}.{name}", name, entry)
        if self.leave_out:
            _check_path(self.protocol, "leave_out", self.leave_out.path)
        if self.children:
            _check_path("fhir", "children.series", self.children.series)
            _check_path("fhir", "children.instance", self.children.instance or "instance")
        return self

    def _check_entry(self, place: str, name: str, entry: Entry) -> None:
        try:
            tags = path(name)
        except InvalidQuery:
            raise ValueError(f"{place}: '{name}' is not a DICOM keyword or tag") from None
        if entry.fixed is None and entry.path is None and self.protocol == "fhir":
            raise ValueError(f"{place}: needs 'path' or 'fixed'")
        if entry.codes is not None and entry.codes not in self.codes:
            raise ValueError(f"{place}.codes: there is no [codes.{entry.codes}]")
        if (entry.item is not None) and (len(tags) > 1 or vr(tags[0]) != "SQ"):
            raise ValueError(f"{place}: 'item' is for sequences")
        if len(tags) > 1:
            raise ValueError(f"{place}: give the sequence itself, with 'item'")
        _check_path(self.protocol, place, entry.path)
        for inner, below in (entry.item or {}).items():
            self._check_entry(f"{place}.item.{inner}", inner, below)

    def entries(self, level: Level) -> dict[str, Entry]:
        """The entries of one level, by DICOM keyword or tag."""
        return {Level.STUDY: self.study, Level.SERIES: self.series, Level.IMAGE: self.instance}[level]

    @cached_property
    def names_of_issuers(self) -> dict[str, Issuer]:
        """Every name of every issuer: its own, its OID bare and as a URN, its URI."""
        return {name: one for one in reversed(self.issuers) for name in (one.issuer, one.oid, *one.systems) if name}

    def knowing(self, issuers: Sequence[Issuer]) -> Mapping:
        """The same mapping with a node's own issuers, which go before those of the format."""
        if not issuers:
            return self
        given = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate({**given, "issuers": [*issuers, *self.issuers]})

    def canonical_issuer(self, name: str) -> str:
        """The issuer as (0010,0021) says it here; a name that is not listed is its own."""
        found = self.names_of_issuers.get(name)
        return found.issuer if found else name


def _check_path(protocol: str, place: str, native: str | None) -> None:
    if native is None:
        return
    try:
        if protocol == "fhir":
            compiled(native)
        else:
            path(native)
    except (InvalidMapping, InvalidQuery) as error:
        raise ValueError(f"{place}.path: {error.detail}") from None
