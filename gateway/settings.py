"""This process's settings: GATEWAY_* environment variables, read once, frozen (secrets come from nowhere else)."""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.errors import SettingsError, fault_of

# Of the command `query`, which asks a gateway.
_ASIDE = frozenset({"URL", "TOKEN"})


def _listed(given: Any) -> Any:
    """A list from its JSON; pydantic-settings would raise what names no variable, with the value in it."""
    if not isinstance(given, str):
        return given
    try:
        found = json.loads(given)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ValueError('is not a JSON list, such as ["first", "second"]')
    return found


Texts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """Every field is the environment variable GATEWAY_<FIELD>; README.md lists them all."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", env_ignore_empty=True, frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="address to listen on; off loopback needs GATEWAY_OIDC_ISSUER")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on")
    nodes: Path = Field(Path("nodes.toml"), description="the node file: one [[node]] per hospital or national endpoint")
    mappings: Path | None = Field(None, description="a directory of further mapping files, read after the shipped ones")
    public_root: str = Field(
        "", description="the URL callers see, e.g. https://imaging.example.eu; default: from the request"
    )

    reload: bool = Field(True, description="the node file is re-read when it changes; SIGHUP re-reads it in any case")
    retire_seconds: float = Field(
        600.0, ge=0, description="seconds that requests under way may go on with nodes that a new node file has not"
    )
    workers: int = Field(1, ge=1, le=64, description="processes that serve; they share one port and one cache")
    drain_delay: float = Field(
        0.0, ge=0, description="seconds after SIGTERM that connections are still taken, while /ready answers 503"
    )
    drain_seconds: float = Field(30.0, ge=0, description="seconds that requests under way then have to end")

    redis_url: SecretStr | None = Field(
        None, description="redis://, unix://, redis+cluster:// or redis+sentinel:// URL; default: an embedded Valkey"
    )
    cache: bool = Field(True, description="false runs without any look-up cache")
    kept_bytes: int = Field(64 * 1024**2, ge=0, description="bytes of whole answers a process keeps; 0 keeps none")
    cache_timeout: float = Field(
        0.25, gt=0, description="seconds that Redis may take to answer before it counts as down"
    )
    find_ttl: float = Field(30.0, ge=0, description="seconds that a node's answer to a search is reused")
    location_ttl: float = Field(300.0, ge=0, description="seconds that a study's location is reused")
    metadata_ttl: float = Field(3600.0, ge=0, description="seconds that a series' metadata is reused")
    negative_ttl: float = Field(10.0, ge=0, description="seconds that a node's having nothing is reused")
    stale_seconds: float = Field(
        30.0, ge=0, description="seconds that an older answer serves while the node is asked anew; 0: none does"
    )
    stale_if_error_seconds: float = Field(
        300.0, ge=0, description="seconds that an older answer stands in, marked, for a silent node; 0: none does"
    )
    local_cache_bytes: int = Field(
        32 * 1024**2, ge=0, description="bytes of answers kept within the process, in front of Redis; 0: none"
    )
    sightings_days: float = Field(
        400.0,
        ge=0,
        description="days that Redis remembers a study's first sight, its last change and whose it is; 0: not at all",
    )
    cache_key: SecretStr | None = Field(
        None, description="32 bytes in base64: encrypts what lies in Redis (AES-GCM); default: in the clear"
    )

    spool: Path = Field(Path(tempfile.gettempdir()), description="where the bounded spool makes its private directory")
    spool_bytes: int = Field(2 * 1024**3, ge=0, description="bytes the spool may hold; 0 turns it off")
    spool_seconds: float = Field(600.0, ge=0, description="seconds an instance stays in the spool after its last use")

    store_instance_bytes: int = Field(
        4 * 1024**3, gt=0, description="bytes that one instance sent for storing may have, also inflated"
    )
    store_request_bytes: int = Field(64 * 1024**3, gt=0, description="bytes that one request to store may have")
    store_idle: float = Field(
        60.0, gt=0, description="seconds that a caller may send nothing in the middle of a request to store"
    )
    default_transfer_syntax: str = Field(
        "stored", pattern="^(stored|explicit)$", description="what goes out where no transfer-syntax is asked for"
    )
    imaging_processes: int = Field(
        2, ge=1, le=64, description="processes that decode and render pixels, of each worker"
    )
    imaging_seconds: float = Field(30.0, gt=0, description="seconds that decoding or rendering one image may take")
    imaging_pixels: int = Field(64 * 1024**2, ge=1, description="the most pixels that are decoded at once")

    probe: bool = Field(True, description="false does not ask nodes at start what they can do")
    search_deadline: float = Field(20.0, gt=0, description="seconds for a whole federated search")
    strict_accept: bool = Field(False, description="true answers 406 to a missing Accept header (PS3.18 8.7.5)")
    bare_patient_id: str = Field("refuse", pattern="^(refuse|warn)$", description="a PatientID borne by two issuers")
    validate_fhir: bool = Field(
        False, description="true holds every FHIR answer against fhir.resources first; slow, for testing"
    )
    fhir_profile: str = Field(
        "base", pattern="^(base|eu|mii)$", description="profile of ImagingStudy where _profile names none"
    )
    page_size: int = Field(50, ge=1, le=1000, description="FHIR page size when _count is absent")

    secret: SecretStr | None = Field(
        None,
        description="keys Patient ids, cursors and audit hashes, 16 characters or more; default: a new one per start",
    )
    oidc_issuer: str = Field(
        "", description="OIDC issuer whose tokens are accepted; empty: no authentication, loopback only"
    )
    oidc_audience: str = Field("imaging-gateway", description="the aud that a token must carry")
    oidc_ca_bundle: Path | None = Field(None, description="CA bundle for the issuer's TLS")
    open_purpose: str = Field("", description="purpose of use of every caller of a gateway without an issuer")
    rate_limit: float = Field(0.0, ge=0, description="requests a second that one caller may make of a process; 0: any")
    rate_burst: int = Field(
        100, ge=1, description="requests that a caller may make at once before the rate limit holds"
    )
    trusted_proxies: Texts = Field((), description="JSON list of proxy addresses whose Forwarded is believed")
    cors_origins: Texts = Field((), description="JSON list of web origins that browsers may call from")
    cross_origin_resource_policy: str = Field(
        "",
        pattern="^(same-origin|same-site|cross-origin)?$",
        description="Cross-Origin-Resource-Policy of every answer: cross-origin lets pages that are isolated load from here",
    )
    cross_origin_embedder_policy: str = Field(
        "",
        pattern="^(require-corp|credentialless|unsafe-none)?$",
        description="Cross-Origin-Embedder-Policy of every answer, for a viewer that is served through the same proxy",
    )
    cross_origin_opener_policy: str = Field(
        "",
        pattern="^(same-origin|same-origin-allow-popups|unsafe-none)?$",
        description="Cross-Origin-Opener-Policy of every answer",
    )
    compress: bool = Field(True, description="JSON and XML go out as gzip or zstd to those who take it")
    tls_certificate: Path | None = Field(None, description="PEM certificate chain, to serve HTTPS directly")
    tls_key: Path | None = Field(None, description="PEM private key of tls_certificate")

    export_directory: Path | None = Field(
        None, description="where exports are kept, for all replicas; default: a private one, which a restart loses"
    )
    export_bytes: int = Field(10 * 1024**3, ge=0, description="bytes that all exports may take; 0 turns $export off")
    export_seconds: float = Field(86_400.0, gt=0, description="seconds that an export is kept after its last step")
    export_page: int = Field(
        1000, ge=1, le=10_000, description="studies that an export asks for at once, and of a file"
    )
    export_jobs: int = Field(8, ge=1, description="exports that may be under way, of all callers")
    export_jobs_per_caller: int = Field(2, ge=1, description="exports that one caller may have under way")
    export_at_once: int = Field(1, ge=0, le=16, description="pages of exports that a process works on at once; 0: none")

    store: Path | None = Field(
        None, description="SQLite file that keeps Patient ids over a restart; default: memory only"
    )
    audit: Path | None = Field(
        None,
        description="file that audit records are appended to, refused tokens and callers who ask too often "
        "among them; default: standard error",
    )
    otel_endpoint: str = Field(
        default_factory=lambda: os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
        pattern="^(https?://.*)?$",
        description="base URL of an OTLP/HTTP collector that takes spans; needs the extra otel",
    )
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="log level")

    @property
    def on_loopback(self) -> bool:
        """Whether the server can be reached from this machine only."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address, as a URL's `hostname` gives it, means this machine only."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 6.3
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read(**overrides: object) -> Settings:
    """The settings of this process; `overrides` win over the environment. Raises SettingsError naming the variable."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = "GATEWAY_" + "_".join(str(step) for step in first["loc"]).upper()
        raise SettingsError(f"{name}: {fault_of(first)}", parameter=name) from None


def strangers(environment: Mapping[str, str]) -> dict[str, str]:
    """The GATEWAY_* variables that are no settings, each with the setting that may be meant, or ''."""
    known = {field.upper() for field in Settings.model_fields} | _ASIDE
    named = {name: name.upper().removeprefix("GATEWAY_") for name in environment if name.upper().startswith("GATEWAY_")}
    near = {name: difflib.get_close_matches(word, known, 1, 0.75) for name, word in named.items() if word not in known}
    return {name: f"GATEWAY_{found[0]}" if found else "" for name, found in near.items()}
