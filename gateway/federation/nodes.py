"""The node file: one [[node]] per hospital or national endpoint, read and checked before anything starts."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from gateway.errors import SettingsError, fault_of
from gateway.mapping.schema import Issuer
from gateway.model.moments import named_zone
from gateway.wire.charset import require_known

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_LO = re.compile(r"[ -\[\]-~]{1,64}")
NodeId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,15}$")]
_Fail = Callable[[tuple[str | int, ...], str], None]
AeTitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[^\\\x00-\x1f]+$")]
Seconds = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(_Table):
    """TLS towards a node. Verification cannot be turned off; a private CA is added with `ca_bundle`."""

    ca_bundle: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class NoAuth(_Table):
    kind: Literal["none"] = "none"


class BasicAuth(_Table):
    kind: Literal["basic"]
    username: str
    password: SecretStr


class BearerAuth(_Table):
    kind: Literal["bearer"]
    token: SecretStr


class ClientCredentials(_Table):
    """OAuth 2.0 client credentials, with a secret or with private_key_jwt (SMART Backend Services)."""

    kind: Literal["client_credentials"]
    token_url: str
    client_id: str
    client_secret: SecretStr = SecretStr("")
    private_key: Path | None = None
    scope: str = ""

    @model_validator(mode="after")
    def _has_one_credential(self) -> ClientCredentials:
        if bool(self.client_secret) == bool(self.private_key):
            raise ValueError("give either client_secret or private_key")
        return self


Auth = Annotated[NoAuth | BasicAuth | BearerAuth | ClientCredentials, Field(discriminator="kind")]


class FilesConnection(_Table):
    """A directory of DICOM files."""

    directory: Path
    index: Path | None = None
    rescan: Seconds = 2.0


class DimseConnection(_Table):
    """A DICOM application entity. `retrieve` auto = C-GET, and C-MOVE where C-GET is refused.

    `move_calling_ae_titles` are the titles it calls us with when it answers a C-MOVE, where that is not its own.
    `name_matching` exact is for a PACS known to match names without case and diacritics, as PS3.4 wants.
    """

    host: str = Field(pattern=r"^[^\s/@]+$")
    port: int = Field(ge=1, le=65535)
    called_ae_title: AeTitle
    calling_ae_title: AeTitle = "IMAGING-GW"
    retrieve: Literal["auto", "get", "move"] = "auto"
    move_calling_ae_titles: tuple[AeTitle, ...] = ()
    relational: bool = False
    patient_root: bool = False
    name_matching: Literal["wide", "exact"] = "wide"
    max_associations: int = Field(4, ge=1, le=64)
    tls: Tls | None = None


class HttpConnection(_Table):
    """A DICOMweb service."""

    url: str = Field(pattern=r"^https?://")
    auth: Auth = NoAuth()
    tls: Tls = Tls()
    qido_prefix: str = ""
    wado_prefix: str = ""
    stow_prefix: str = ""
    relational: bool = True
    max_connections: int = Field(16, ge=1, le=256)


class FhirConnection(_Table):
    """A FHIR server. The pixels are at the DICOMweb addresses of its Endpoint resources, inside `allow`."""

    url: str = Field(pattern=r"^https?://")
    version: Literal["STU3", "R4", "R4B", "R5"] = "R4"
    auth: Auth = NoAuth()
    tls: Tls = Tls()
    max_connections: int = Field(16, ge=1, le=256)


Connection = FilesConnection | DimseConnection | HttpConnection | FhirConnection
CONNECTIONS: Mapping[str, type[Connection]] = {
    "files": FilesConnection,
    "dimse": DimseConnection,
    "dicomweb": HttpConnection,
    "fhir": FhirConnection,
}
DEFAULT_MAPPINGS = {"files": "dicom", "dimse": "dicom", "dicomweb": "dicom"}
DEFAULT_FHIR_MAPPINGS = {"STU3": "fhir-stu3", "R4": "fhir-r4", "R4B": "fhir-r4", "R5": "fhir-r5"}
AdapterName = Literal["files", "dimse", "dicomweb", "fhir"]


class _Connected(_Table):
    adapter: AdapterName
    connection: Connection

    @field_validator("connection", mode="wrap")
    @classmethod
    def _connection_of_adapter(cls, raw: Any, handler: Any, info: Any) -> Connection:
        if isinstance(raw, BaseModel):
            return raw  # type: ignore[return-value]
        adapter = info.data.get("adapter")
        return CONNECTIONS[adapter].model_validate(raw) if adapter in CONNECTIONS else handler(raw)


class RetrieveConfig(_Connected):
    """Where the pixels are when that is another service than the one searched."""


class BreakerLimits(_Table):
    """When a node that does not answer is left alone for `open` seconds: after `failures` failures in a row, or when `rate`
    of at least twice as many outcomes within `window` seconds were failures. `failures` 0 turns it off."""

    failures: Annotated[int, Field(ge=0)] = 5
    rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    window: Seconds = 30.0
    open: Seconds = 15.0


Availability = Literal["", "ONLINE", "NEARLINE", "OFFLINE"]


class NodeTtl(_Table):
    """Seconds that this node's answers are reused, where that is not as long as everybody's (GATEWAY_*_TTL)."""

    find: NotNegative | None = None
    location: NotNegative | None = None
    metadata: NotNegative | None = None
    negative: NotNegative | None = None

    def given(self) -> dict[str, float]:
        """Only those that are set."""
        return self.model_dump(exclude_none=True)


class StoreRules(_Table):
    """What is stored at a node. At the federated root: what callers of these `purposes` of use store, or with `default` what
    goes nowhere else; at its own root whatever comes. `store = true` is `default` alone.

    With `set_issuer` an instance whose patient id names no issuer is given the node's, and says so in itself.
    """

    default: bool = False
    purposes: tuple[str, ...] = ()
    set_issuer: bool = False


class NodeConfig(_Connected):
    """One hospital or national endpoint. Times are seconds.

    `availability` is where all its studies are, whatever its rows say: NEARLINE is a tape library or another slow store.
    `issuers` are the hospital's own assigning authorities under all their names, beside those of its format.
    """

    id: NodeId
    name: str
    country: str = Field("", pattern="^([A-Z]{2})?$")
    organisation: str = ""
    mapping: str = ""
    patient_id_issuer: str = Field("", max_length=64)
    issuers: tuple[Issuer, ...] = ()
    time_zone: str = ""
    character_set: str = ""
    retrieve: RetrieveConfig | None = None
    priority: int = 100
    enabled: bool = True
    capabilities: frozenset[Literal["find", "retrieve", "describe", "frames", "bulkdata", "store"]] | None = None
    allow: tuple[str, ...] = ()
    quirks: tuple[str, ...] | None = None
    purposes: tuple[str, ...] = ()
    connect_deadline: Seconds = 5.0
    search_deadline: Seconds = 10.0
    first_byte_deadline: Seconds = 30.0
    nearline_first_byte_deadline: Seconds = 120.0
    idle_deadline: Seconds = 30.0
    availability: Availability = ""
    breaker: BreakerLimits = BreakerLimits()
    retries: int = Field(2, ge=0, le=10)
    max_concurrent: int = Field(16, ge=1, le=256)
    max_queued: int = Field(64, ge=0)
    max_results: int = Field(10_000, ge=1)
    node_maximum: int | None = Field(None, ge=1)
    descent_parents: int = Field(200, ge=0)
    descent_seconds: Seconds = 5.0
    ttl: NodeTtl = NodeTtl()
    store: StoreRules = StoreRules()

    @field_validator("store", mode="before")
    @classmethod
    def _is_default(cls, raw: Any) -> Any:
        return {"default": raw} if isinstance(raw, bool) else raw

    @model_validator(mode="after")
    def _can_store(self) -> NodeConfig:
        is_chosen = self.store.default or bool(self.store.purposes)
        if is_chosen and self.capabilities is not None and "store" not in self.capabilities:
            raise ValueError("store: the node's capabilities are without 'store'")
        if self.store.set_issuer and not _LO.fullmatch(self.patient_id_issuer):
            raise ValueError("store.set_issuer: needs a patient_id_issuer in ASCII")
        return self

    @field_validator("time_zone")
    @classmethod
    def _is_a_zone(cls, name: str) -> str:
        if name and named_zone(name) is None:
            raise ValueError("is not an IANA time zone, such as Europe/Warsaw")
        return name

    @field_validator("character_set")
    @classmethod
    def _is_known(cls, terms: str) -> str:
        return require_known(terms)

    @property
    def issuer(self) -> str:
        """The assigning authority of its patient ids; a node that names none is an authority of its own."""
        return self.patient_id_issuer or f"node:{self.id}"

    @property
    def at_once(self) -> int:
        """How many operations it works on at a time: no more than it has associations or connections for, so that what
        waits waits in the node's queue, and is not taken for the node's own silence."""
        connections = [self.connection, *([self.retrieve.connection] if self.retrieve else [])]
        return min(self.max_concurrent, *(_most_of(one, self.max_concurrent) for one in connections))

    @property
    def mapping_name(self) -> str:
        """The mapping it names, else the default of its adapter."""
        if self.mapping:
            return self.mapping
        if isinstance(self.connection, FhirConnection):
            return DEFAULT_FHIR_MAPPINGS[self.connection.version]
        return DEFAULT_MAPPINGS[self.adapter]

    @property
    def relational(self) -> bool:
        """Whether SERIES and IMAGE rows can be asked without the UIDs above."""
        return not isinstance(self.connection, FhirConnection) and getattr(self.connection, "relational", True)


def _most_of(connection: Connection, otherwise: int) -> int:
    """How many associations or connections one has."""
    return int(getattr(connection, "max_associations", getattr(connection, "max_connections", otherwise)))


class MoveReceiver(_Table):
    """Our own C-MOVE destination: the AE title, and the address that the PACS can reach it at."""

    ae_title: AeTitle = "IMAGING-GW"
    host: str = "127.0.0.1"
    port: int = Field(11115, ge=0, le=65535)


class PatientDomain(_Table):
    """Issuers that share one space of identifiers: the same id is the same person."""

    issuers: frozenset[str] = Field(min_length=2)


class NodeFile(_Table):
    """The whole file."""

    node: tuple[NodeConfig, ...] = ()
    same_patient_domain: tuple[PatientDomain, ...] = ()
    move_receiver: MoveReceiver | None = None

    @model_validator(mode="after")
    def _ids_are_unique(self) -> NodeFile:
        seen: set[str] = set()
        for node in self.node:
            if node.id in seen:
                raise ValueError(f"two nodes have the id '{node.id}'")
            seen.add(node.id)
        return self

    @model_validator(mode="after")
    def _stores_in_one_place(self) -> NodeFile:
        """What comes in by the federated root has one place to go."""
        taken: set[str] = set()
        for node in self.enabled:
            for purpose in (*("",) * node.store.default, *dict.fromkeys(node.store.purposes)):
                if purpose in taken:
                    what = f"for the purpose '{purpose}'" if purpose else "by default"
                    raise ValueError(f"two nodes store what comes {what}")
                taken.add(purpose)
        return self

    @cached_property
    def enabled(self) -> tuple[NodeConfig, ...]:
        return tuple(node for node in self.node if node.enabled)


def read(path: Path, environment: Mapping[str, str] = os.environ) -> NodeFile:
    """The node file with ${VAR} filled in. Raises SettingsError naming the file and the key; never a value."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError:
        raise SettingsError(f"{path}: cannot be read; make it from the example in README.md") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not TOML: {error}") from None
    file, faults = parse(raw, environment)
    if file is None:
        raise SettingsError(f"{path}: {faults[0]}")
    return file


def variables(path: Path) -> frozenset[str]:
    """The names of the ${VAR} in a file; none where it cannot be read."""
    try:
        return frozenset(_VARIABLE.findall(path.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError):
        return frozenset()


def parse(raw: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> tuple[NodeFile | None, list[str]]:
    """The file from its TOML, or None and every fault as 'node[pl-krakow].connection.port: ...'; never a value."""
    faults: list[str] = []
    filled = _fill(raw, environment, (), lambda key, fault: faults.append(f"{_place(key, raw)}: {fault}"))
    try:
        file = NodeFile.model_validate(filled)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        faults += [f"{_place(fault['loc'], raw)}: {fault_of(fault)}" for fault in found]
    return (None, faults) if faults else (file, [])


def _fill(value: Any, environment: Mapping[str, str], key: tuple[str | int, ...], fail: _Fail) -> Any:
    """Every ${VAR} in every text replaced from the environment."""
    if isinstance(value, dict):
        return {name: _fill(inner, environment, (*key, name), fail) for name, inner in value.items()}
    if isinstance(value, list):
        return [_fill(inner, environment, (*key, index), fail) for index, inner in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if match.group(1) not in environment:
            fail(key, f"the environment variable {match.group(1)} is not set")
        return environment.get(match.group(1), match.group(0))

    return _VARIABLE.sub(variable, value)


def _place(key: Sequence[str | int], raw: Mapping[str, Any]) -> str:
    """A key as people find it: a node by its id, not by its number."""
    steps = [str(step) for step in key]
    if len(steps) > 1 and steps[0] == "node" and steps[1].isdigit():
        named = raw["node"][int(steps[1])]
        steps[0:2] = [f"node[{named.get('id', steps[1]) if isinstance(named, dict) else steps[1]}]"]
    return ".".join(steps) or "the file"
