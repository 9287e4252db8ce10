"""Builds the nodes: each block of the node file becomes adapters, a mapping and a Node at work; no I/O happens here."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gateway.adapters.dicomweb import DicomwebAdapter
from gateway.adapters.dicomweb.quirks import is_quirk
from gateway.adapters.dimse import DimseAdapter, StorageReceiver
from gateway.adapters.dimse.probing import QUIRKS as DIMSE_QUIRKS
from gateway.adapters.fhir import FhirAdapter
from gateway.adapters.files import FilesAdapter
from gateway.adapters.http import auth as credentials
from gateway.adapters.http.address import same_origin
from gateway.adapters.http.client import HttpClient, Timeouts
from gateway.adapters.http.transport import TlsOptions
from gateway.cache.answers import Ttl
from gateway.errors import NodeRefused, SettingsError
from gateway.federation import nodes as node_file
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
from gateway.mapping.ask import Asker
from gateway.mapping.read import Reader
from gateway.mapping.schema import Mapping as FormatMapping
from gateway.model.seam import Adapter, Location

_MOST_ADDRESSES = 250


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a node sends what we ask it to move: the AE title that it knows, and who listens."""

    receiver: StorageReceiver
    ae_title: str


@dataclass(slots=True)
class Builder:
    """Builds adapters and remembers them, so that all are opened and closed together."""

    destination: Destination | None = None
    built: list[Adapter] = field(default_factory=list)
    by_address: dict[tuple[str, str], Adapter] = field(default_factory=dict)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    def adapter(self, config: NodeConfig, connection: Connection, mapping: FormatMapping) -> Adapter:
        """The adapter for one connection of a node; does no I/O."""
        adapter = _ADAPTERS[type(connection)](self, config, connection, mapping)
        self.built.append(adapter)
        return adapter

    def opener(self, config: NodeConfig) -> Callable[[Location], Awaitable[Adapter]]:
        """Opens the addresses that a node hands out: DICOMweb, inside its `allow` list.

        The node's credentials go to its own origin only; a service elsewhere that needs some is given by `retrieve`.
        Each stays open, so there is a ceiling to how many addresses one node may lead to.
        """

        async def open_location(location: Location) -> Adapter:
            async with self._opening:
                return await opened(config.id, location.address)

        async def opened(node: str, address: str) -> Adapter:
            key = (node, address)
            if key not in self.by_address:
                if sum(of == node for of, _ in self.by_address) >= _MOST_ADDRESSES:
                    raise NodeRefused(node, f"leads to more than {_MOST_ADDRESSES} addresses of DICOMweb services")
                http = http_client(
                    config,
                    address,
                    _auth_at(address, config.connection),
                    _tls_of(config.connection),
                    config.max_concurrent,
                )
                adapter = DicomwebAdapter(config.id, http=http, quirks=_quirks(config))
                await adapter.open()
                self.by_address[key] = adapter
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
        response_timeout=max(config.idle_deadline, config.nearline_first_byte_deadline),
        tls=_tls_context(connection.tls, config.id) if connection.tls else None,
        retrieve=connection.retrieve,
        move_receiver=builder.destination.receiver if builder.destination else None,
        move_destination_ae=builder.destination.ae_title if builder.destination else "",
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
    """The HTTP client of one node, with its deadlines, its credentials and its allow list. Raises SettingsError."""
    # Both are read anew when they are needed, where nobody knows in which node's block they stand.
    if tls != Tls():
        _tls_context(tls, config.id)
    if isinstance(auth, ClientCredentials) and auth.private_key:
        _require_key(auth.private_key, config.id)
    return HttpClient(
        config.id,
        base_url=url,
        auth=_credentials(auth),
        tls=TlsOptions(tls.ca_bundle, tls.certificate, tls.key),
        timeouts=Timeouts(
            connect=config.connect_deadline,
            first_byte=max(config.first_byte_deadline, config.nearline_first_byte_deadline),
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
            auth.token_url,
            auth.client_id,
            auth.client_secret.get_secret_value(),
            private_key=auth.private_key,
            scope=auth.scope,
        )
    return None


def _require_key(path: Path, node: str) -> None:
    try:
        credentials.signing_key(path)
    except SettingsError as error:
        raise SettingsError(f"node[{node}].connection.auth.{error.detail}") from None


def _check_quirks(config: NodeConfig) -> None:
    """Raises SettingsError for a word that `ping` prints of no node: it would change nothing."""
    for word in config.quirks or ():
        if not (is_quirk(word) or word in DIMSE_QUIRKS):
            raise SettingsError(
                f"node[{config.id}].quirks: there is no '{word}'; `imaging-gateway ping` prints those it has"
            )


def _quirks(config: NodeConfig) -> frozenset[str] | None:
    return None if config.quirks is None else frozenset(config.quirks)


def _auth_at(address: str, connection: Connection) -> Auth:
    """The connection's credentials for an address of its own origin, none for any other."""
    if isinstance(connection, (HttpConnection, FhirConnection)) and same_origin(address, connection.url):
        return connection.auth
    return node_file.NoAuth()


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
    _check_quirks(config)
    mapping, retrieve = mapping.knowing(config.issuers), config.retrieve
    return Node(
        config,
        builder.adapter(config, config.connection, mapping),
        Asker(mapping, config.issuer, character_set=config.character_set),
        Reader(mapping, config.id, config.issuer, time_zone=config.time_zone),
        builder.opener(config),
        builder.adapter(config, retrieve.connection, formats["dicom"]) if retrieve else None,
        replace(ttl, **config.ttl.given()),
    )


def receiver_of(file: NodeFile) -> StorageReceiver | None:
    """Our C-MOVE destination: only the DIMSE nodes themselves may send to it, from their own addresses."""
    settings = file.move_receiver
    if settings is None:
        return None
    return StorageReceiver(settings.ae_title, settings.host, settings.port, callers_of([file]))


def destination_of(file: NodeFile, receiver: StorageReceiver | None) -> Destination | None:
    """That receiver under the title of this file."""
    return Destination(receiver, file.move_receiver.ae_title) if receiver and file.move_receiver else None


def callers_of(files: Iterable[NodeFile]) -> dict[str, list[str]]:
    """The AE titles that answer our C-MOVE, each with the addresses that it may call from."""
    allowed: dict[str, list[str]] = {}
    for config in (config for file in files for config in file.enabled):
        connections = (config.connection, config.retrieve.connection if config.retrieve else None)
        for connection in connections:
            if isinstance(connection, DimseConnection):
                for title in connection.move_calling_ae_titles or (connection.called_ae_title,):
                    allowed.setdefault(title, []).append(connection.host)
    return allowed
