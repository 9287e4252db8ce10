"""The composition root: settings + node file + mappings -> the ASGI application. Nothing is built anywhere else."""

from __future__ import annotations

import asyncio
import gc
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pydicom.config
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from gateway.adapters.dicomweb import DicomwebAdapter
from gateway.adapters.dimse import DimseAdapter
from gateway.adapters.dimse.storage_scp import StorageReceiver
from gateway.adapters.fhir import FhirAdapter
from gateway.adapters.files import FilesAdapter
from gateway.adapters.http import auth as credentials
from gateway.adapters.http.client import HttpClient, Timeouts
from gateway.adapters.http.transport import TlsOptions
from gateway.cache.answers import Answers, Ttl
from gateway.cache.client import Cache
from gateway.cache.spool import Spool
from gateway.edge import identifiers, problems, routes
from gateway.edge.middleware import Authentication, Telemetry
from gateway.edge.proxies import Proxies
from gateway.errors import GatewayError, SettingsError
from gateway.federation import nodes as node_file
from gateway.federation.fanout import cancel_all, in_parallel
from gateway.federation.federate import Federation
from gateway.federation.merge import Domains
from gateway.federation.node import Node
from gateway.federation.nodes import (
    Auth,
    BasicAuth,
    BearerAuth,
    ClientCredentials,
    Connection,
    DimseConnection,
    FhirConnection,
    FilesConnection,
    HttpConnection,
    NodeConfig,
    NodeFile,
    Tls,
)
from gateway.federation.pixels import Pixels
from gateway.federation.retrieve import Retrieval
from gateway.federation.spooled import SpooledSeries
from gateway.mapping.ask import Asker
from gateway.mapping.load import load_all
from gateway.mapping.read import Reader
from gateway.mapping.schema import Mapping as FormatMapping
from gateway.model.seam import Adapter, Location
from gateway.pipeline import Pipeline, Views
from gateway.privacy.view import PlainView, View
from gateway.security.audit import Audit
from gateway.security.caller import Caller
from gateway.security.guard import check_start, is_exposed
from gateway.security.identity import OidcIdentity, OpenIdentity
from gateway.security.policy import Policy
from gateway.settings import Settings
from gateway.store.patients import PatientIds
from gateway.telemetry import configure, log


@dataclass(frozen=True, slots=True)
class PlainViews:
    """Every caller sees everything it is let near: the only view until de-identification is configured."""

    def of(self, caller: Caller) -> View:
        return PlainView()


@dataclass(slots=True)
class Builder:
    """Builds adapters and remembers them, so that all are opened and closed together."""

    receiver: StorageReceiver | None = None
    built: list[Adapter] = field(default_factory=list)
    by_address: dict[tuple[str, str], Adapter] = field(default_factory=dict)

    def adapter(self, config: NodeConfig, connection: Connection, mapping: FormatMapping) -> Adapter:
        """The adapter for one connection of a node; does no I/O."""
        adapter = _ADAPTERS[type(connection)](self, config, connection, mapping)
        self.built.append(adapter)
        return adapter

    def opener(self, config: NodeConfig) -> Callable[[Location], Awaitable[Adapter]]:
        """Opens the addresses that a node hands out: DICOMweb, with the node's own credentials inside its `allow` list."""

        async def open_location(location: Location) -> Adapter:
            key = (config.id, location.address)
            if key not in self.by_address:
                http = http_client(config, location.address, _auth_of(config.connection), _tls_of(config.connection))
                adapter = DicomwebAdapter(config.id, http=http, quirks=_quirks(config))
                await adapter.open()
                self.by_address.setdefault(key, adapter)
            return self.by_address[key]

        return open_location


def _files(_: Builder, config: NodeConfig, connection: Any, mapping: FormatMapping) -> Adapter:
    assert isinstance(connection, FilesConnection)
    return FilesAdapter(
        config.id,
        directory=connection.directory,
        index=connection.index,
        rescan=connection.rescan,
        character_set=config.character_set or mapping.character_set,
    )


def _dimse(builder: Builder, config: NodeConfig, connection: Any, mapping: FormatMapping) -> Adapter:
    assert isinstance(connection, DimseConnection)
    return DimseAdapter(
        config.id,
        host=connection.host,
        port=connection.port,
        called_ae_title=connection.called_ae_title,
        calling_ae_title=connection.calling_ae_title,
        max_associations=connection.max_associations,
        connect_timeout=config.connect_deadline,
        response_timeout=config.idle_deadline,
        tls=_tls_context(connection.tls, config.id) if connection.tls else None,
        retrieve=connection.retrieve,
        move_receiver=builder.receiver,
        move_destination_ae=builder.receiver.ae_title if builder.receiver else "",
        move_calling_ae_titles=connection.move_calling_ae_titles,
        character_set=config.character_set or mapping.character_set,
        relational=connection.relational,
        patient_root=connection.patient_root,
        name_matching=connection.name_matching,
    )


def _tls_context(tls: Tls, node: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca_bundle)
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError):
        raise SettingsError(f"node[{node}].connection.tls: the certificates cannot be read") from None
    return context


def _dicomweb(_: Builder, config: NodeConfig, connection: Any, __: FormatMapping) -> Adapter:
    assert isinstance(connection, HttpConnection)
    return DicomwebAdapter(
        config.id,
        http=http_client(config, connection.url, connection.auth, connection.tls, connection.max_connections),
        qido_prefix=connection.qido_prefix,
        wado_prefix=connection.wado_prefix,
        stow_prefix=connection.stow_prefix,
        quirks=_quirks(config),
    )


def _fhir(_: Builder, config: NodeConfig, connection: Any, __: FormatMapping) -> Adapter:
    assert isinstance(connection, FhirConnection)
    http = http_client(config, connection.url, connection.auth, connection.tls, connection.max_connections)
    return FhirAdapter(config.id, http=http, version=connection.version)


_ADAPTERS: Mapping[type[Connection], Callable[[Builder, NodeConfig, Any, FormatMapping], Adapter]] = {
    FilesConnection: _files,
    DimseConnection: _dimse,
    HttpConnection: _dicomweb,
    FhirConnection: _fhir,
}


def http_client(config: NodeConfig, url: str, auth: Auth, tls: Tls, max_connections: int = 16) -> HttpClient:
    """The HTTP client of one node, with its deadlines, its credentials and its allow list."""
    return HttpClient(
        config.id,
        base_url=url,
        auth=_credentials(auth),
        tls=TlsOptions(tls.ca_bundle, tls.certificate, tls.key),
        timeouts=Timeouts(
            connect=config.connect_deadline,
            first_byte=config.first_byte_deadline,
            idle=config.idle_deadline,
            total=config.search_deadline,
        ),
        allow=config.allow,
        max_connections=max_connections,
    )


def _credentials(auth: Auth) -> credentials.HttpAuth:
    if isinstance(auth, BasicAuth):
        return credentials.Basic(auth.username, auth.password.get_secret_value())
    if isinstance(auth, BearerAuth):
        return credentials.Bearer(auth.token.get_secret_value())
    if isinstance(auth, ClientCredentials):
        return credentials.ClientCredentials(
            auth.token_url, auth.client_id, auth.client_secret.get_secret_value(), auth.private_key, auth.scope
        )
    return None


def _quirks(config: NodeConfig) -> frozenset[str] | None:
    return None if config.quirks is None else frozenset(config.quirks)


def _auth_of(connection: Connection) -> Auth:
    return connection.auth if isinstance(connection, (HttpConnection, FhirConnection)) else node_file.NoAuth()


def _tls_of(connection: Connection) -> Tls:
    return connection.tls if isinstance(connection, (HttpConnection, FhirConnection)) else Tls()


def build_node(config: NodeConfig, builder: Builder, formats: Mapping[str, FormatMapping], ttl: Ttl) -> Node:
    """One node at work. Raises SettingsError naming the key of a mapping that there is not."""
    mapping = formats.get(config.mapping_name)
    if mapping is None:
        known = ", ".join(sorted(formats))
        raise SettingsError(
            f"node[{config.id}].mapping: there is no mapping '{config.mapping_name}'; there are {known}"
        )
    mapping, retrieve = mapping.knowing(config.issuers), config.retrieve
    return Node(
        config,
        builder.adapter(config, config.connection, mapping),
        Asker(mapping, config.issuer, character_set=config.character_set),
        Reader(mapping, config.id, config.issuer, time_zone=config.time_zone),
        builder.opener(config),
        builder.adapter(config, retrieve.connection, formats["dicom"]) if retrieve else None,
        ttl,
    )


def receiver_of(file: NodeFile) -> StorageReceiver | None:
    """Our C-MOVE destination: only the DIMSE nodes themselves may send to it, from their own addresses."""
    if file.move_receiver is None:
        return None
    allowed: dict[str, list[str]] = {}
    for config in file.enabled:
        if isinstance(config.connection, DimseConnection):
            for title in config.connection.move_calling_ae_titles or (config.connection.called_ae_title,):
                allowed.setdefault(title, []).append(config.connection.host)
    settings = file.move_receiver
    return StorageReceiver(settings.ae_title, settings.host, settings.port, allowed)


def create_app(settings: Settings, file: NodeFile | None = None, views: Views | None = None) -> Starlette:
    """The application; nothing is opened before its lifespan starts. Raises SettingsError and InvalidMapping."""
    check_start(settings)
    configure(settings.log_level)
    # pydicom warns of odd values by quoting them, and values are patient data.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    file = file or node_file.read(settings.nodes)
    formats = load_all([settings.mappings] if settings.mappings else [])
    proxies = Proxies(settings.trusted_proxies)
    identity: OpenIdentity | OidcIdentity = OpenIdentity(settings.open_purpose)
    if settings.oidc_issuer:
        identity = OidcIdentity(settings.oidc_issuer, settings.oidc_audience, settings.oidc_ca_bundle)
    if is_exposed(settings) and settings.secret is None:
        log().warning("no secret: ids, cursors and audit hashes change at each start", key="GATEWAY_SECRET")
    secret = settings.secret.get_secret_value().encode() if settings.secret else secrets.token_bytes(32)
    app = Starlette(
        routes=routes.table(),
        middleware=[
            Middleware(Telemetry),
            *_cors(settings),
            Middleware(
                Authentication,
                identity,
                proxies,
                require_tls=is_exposed(settings),
                public_root=settings.public_root,
            ),
        ],
        exception_handlers={
            GatewayError: problems.gateway_error,
            HTTPException: problems.http_error,
            Exception: problems.fault,
        },
        lifespan=lambda app: _lifespan(app, settings, file, formats, secret, identity, views or PlainViews()),
    )
    app.state.settings, app.state.ready, app.state.identity = settings, False, identity
    app.state.time_zones = _time_zones(file, formats)
    app.state.issuers = _issuers(file, formats)
    app.state.cursor_secret = secret
    return app


def _cors(settings: Settings) -> list[Middleware]:
    if not settings.cors_origins:
        return []
    exposed = [
        "Warning",
        "ETag",
        "Link",
        "Retry-After",
        "WWW-Authenticate",
        "X-Request-Id",
        "Server-Timing",
        "Content-Location",
    ]
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "OPTIONS"],
            allow_headers=["Accept", "Authorization", "If-None-Match", "Prefer", "traceparent"],
            expose_headers=exposed,
        )
    ]


def _time_zones(file: NodeFile, formats: Mapping[str, FormatMapping]) -> dict[str, str]:
    known = {config.id: formats.get(config.mapping_name) for config in file.enabled}
    zones = {config.id: config.time_zone for config in file.enabled}
    return {node: zones[node] or (mapping.time_zone if mapping else "") for node, mapping in known.items()}


def _issuers(file: NodeFile, formats: Mapping[str, FormatMapping]) -> identifiers.Issuers:
    used = {config.mapping_name for config in file.enabled}
    own = [issuer for config in file.enabled for issuer in config.issuers]
    listed = own + [issuer for name in sorted(used) if name in formats for issuer in formats[name].issuers]
    return identifiers.declared((one.issuer, system) for one in listed for system in one.systems)


@asynccontextmanager
async def _lifespan(
    app: Starlette,
    settings: Settings,
    file: NodeFile,
    formats: Mapping[str, FormatMapping],
    secret: bytes,
    identity: OpenIdentity | OidcIdentity,
    views: Views,
) -> AsyncIterator[None]:
    """Opens everything in order of need, and closes it in reverse."""
    async with AsyncExitStack() as stack:
        cache = await Cache.open(_redis_url(settings), timeout=settings.cache_timeout)
        stack.push_async_callback(cache.close)
        answers = Answers(cache)
        stack.push_async_callback(answers.close)
        spool = Spool(settings.spool, max_bytes=settings.spool_bytes, max_age=settings.spool_seconds)
        spooled = SpooledSeries(spool)
        patients, audit = PatientIds(secret, settings.store), Audit(settings.audit, secret)
        receiver = receiver_of(file)
        builder = Builder(receiver)
        ttl = Ttl(find=settings.find_ttl, location=settings.location_ttl, metadata=settings.metadata_ttl)
        nodes = {config.id: build_node(config, builder, formats, ttl) for config in file.enabled}
        for part in (spool, patients, audit, identity, *([receiver] if receiver else []), *builder.built):
            await part.open()
            stack.push_async_callback(part.close)
        stack.push_async_callback(_close_located, builder)
        stack.push_async_callback(spooled.close)
        domains = Domains(tuple(domain.issuers for domain in file.same_patient_domain))
        federation = Federation(nodes, answers, domains, settings.search_deadline, settings.bare_patient_id == "refuse")
        retrieval = Retrieval(federation, Pixels(answers, spooled))
        app.state.pipeline = Pipeline(federation, retrieval, Policy(), views, audit)
        app.state.patients, app.state.cache_state = patients, lambda: cache.state
        _tune_garbage_collector()
        if settings.probe:
            probing = asyncio.create_task(in_parallel(nodes.values(), Node.probe))
            stack.push_async_callback(cancel_all, [probing])
        app.state.ready = True
        log().info("started", nodes=len(nodes), state=cache.state)
        try:
            yield
        finally:
            app.state.ready = False


def _redis_url(settings: Settings) -> str | None:
    if not settings.cache:
        return "off"
    return settings.redis_url.get_secret_value() if settings.redis_url else None


async def _close_located(builder: Builder) -> None:
    for adapter in builder.by_address.values():
        await adapter.close()


def _tune_garbage_collector() -> None:
    """Large JSON answers under the default thresholds spend most of their time collecting nothing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


__all__ = ["Builder", "build_node", "create_app", "http_client"]
