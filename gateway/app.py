"""The composition root: settings + node file + mappings -> the ASGI application. Nothing is built anywhere else."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pydicom.config
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware

from gateway import __version__, tracing
from gateway.allocator import give_back, hold_a_reserve, share_one_heap, tune_the_collector
from gateway.assembly import Builder, build_node
from gateway.cache.answers import Answers, Stale, Ttl
from gateway.cache.bodies import Bodies
from gateway.cache.client import Cache
from gateway.cache.namesakes import NamesakeRecord
from gateway.cache.sealing import seal_of
from gateway.cache.sightings import Sightings
from gateway.cache.spool import Spool
from gateway.cache.work import queue_of
from gateway.edge import problems, routes
from gateway.edge.encoding import Compression
from gateway.edge.estate import Estate, Residence
from gateway.edge.export.operation import polls
from gateway.edge.export.pages import Pages
from gateway.edge.fhir import identifiers
from gateway.edge.kept import KeptAnswers
from gateway.edge.leaving import Leaving
from gateway.edge.middleware import Authentication, Telemetry, isolation
from gateway.edge.proxies import Proxies
from gateway.edge.ratelimit import RateLimit
from gateway.errors import GatewayError
from gateway.exporting.engine import Engine
from gateway.federation.fanout import cancel_all
from gateway.federation.federate import Federation
from gateway.federation.merge import Domains
from gateway.federation.namesakes import Namesakes
from gateway.federation.node import Node
from gateway.federation.nodes import NodeConfig, NodeFile
from gateway.federation.offsets import Offsets
from gateway.federation.pictures import Pictures
from gateway.federation.pixels import Pixels
from gateway.federation.retrieve import Retrieval
from gateway.federation.sighted import Record
from gateway.federation.spooled import SpooledSeries
from gateway.federation.storing import Storing
from gateway.federation.whose import Claims
from gateway.imaging.processes import Imaging
from gateway.leftovers import below_spool, held
from gateway.loop_lag import watch_the_loop
from gateway.mapping.schema import Mapping as FormatMapping
from gateway.pipeline import Pipeline, Views
from gateway.privacy.view import PlainView, View
from gateway.reload import Estates
from gateway.security.audit import Audit
from gateway.security.caller import Caller
from gateway.security.guard import check_start, is_exposed
from gateway.security.identity import OidcIdentity, OpenIdentity
from gateway.security.policy import Policy
from gateway.security.turned_away import TurnedAway
from gateway.settings import Settings
from gateway.source import Reading, Source
from gateway.store.exports import Exports
from gateway.store.patients import PatientIds
from gateway.telemetry import configure, log

_PLAIN = PlainView()


@dataclass(frozen=True, slots=True)
class PlainViews:
    """Every caller sees everything it is let near: the only view until de-identification is configured."""

    def of(self, caller: Caller) -> View:
        return _PLAIN


def create_app(
    settings: Settings, file: NodeFile | None = None, views: Views | None = None, *, shared: Path | None = None
) -> Starlette:
    """The application; nothing is opened before its lifespan starts. `shared` is the private directory that it shares with other
    workers. Raises SettingsError and InvalidMapping."""
    check_start(settings)
    configure(settings.log_level)
    # pydicom warns of odd values by quoting them, and values are patient data.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    spans = tracing.Export(settings.otel_endpoint, __version__)
    source = Source(settings.nodes, settings.mappings, file, shared=shared, follows=settings.reload)
    first = source.first()
    proxies = Proxies(settings.trusted_proxies)
    identity: OpenIdentity | OidcIdentity = OpenIdentity(settings.open_purpose)
    if settings.oidc_issuer:
        identity = OidcIdentity(settings.oidc_issuer, settings.oidc_audience, settings.oidc_ca_bundle)
    if is_exposed(settings) and settings.secret is None:
        log().warning("no secret: ids, cursors and audit hashes change at each start", key="GATEWAY_SECRET")
    secret = settings.secret.get_secret_value().encode() if settings.secret else secrets.token_bytes(32)
    bodies, turned_away = Bodies(settings.kept_bytes if settings.cache else 0), TurnedAway()
    app = Starlette(
        routes=routes.table(),
        middleware=[
            Middleware(Telemetry, headers=isolation(settings)),
            *_cors(settings),
            *([Middleware(Compression)] if settings.compress else []),
            # Within CORS and telemetry: a page of another origin is told of a fault of ours too, with its request id.
            Middleware(ServerErrorMiddleware, problems.fault),
            Middleware(
                Authentication,
                identity,
                proxies,
                require_tls=is_exposed(settings),
                public_root=settings.public_root,
                turned_away=turned_away,
            ),
            *_rate_limit(settings, turned_away),
            Middleware(Residence),
            Middleware(KeptAnswers, bodies, settings.find_ttl),
            Middleware(Leaving),
        ],
        exception_handlers={
            GatewayError: problems.gateway_error,
            HTTPException: problems.http_error,
        },
        lifespan=lambda app: _lifespan(app, settings, source, first, secret, identity, views or PlainViews(), spans),
    )
    app.state.settings, app.state.identity = settings, identity
    app.state.ready, app.state.draining = False, False
    app.state.cursor_secret, app.state.bodies, app.state.turned_away = secret, bodies, turned_away
    return app


def _rate_limit(settings: Settings, turned_away: TurnedAway) -> list[Middleware]:
    if not settings.rate_limit:
        return []
    return [Middleware(RateLimit, settings.rate_limit, settings.rate_burst, turned_away)]


_CORS_HEADERS = (
    "Accept", "Authorization", "Cache-Control", "Content-Type", "If-None-Match", "If-Range", "Prefer", "Range",
    "traceparent",
)  # fmt: skip


def _cors(settings: Settings) -> list[Middleware]:
    if not settings.cors_origins:
        return []
    exposed = [
        "Warning",
        "ETag",
        "Link",
        "Retry-After",
        "Age",
        "WWW-Authenticate",
        "X-Request-Id",
        "Server-Timing",
        "Content-Location",
        "X-Progress",
        "Expires",
        "Content-Range",
        "Accept-Ranges",
    ]
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "HEAD", "POST", "DELETE", "OPTIONS"],
            allow_headers=_CORS_HEADERS,
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
    source: Source,
    first: Reading,
    secret: bytes,
    identity: OpenIdentity | OidcIdentity,
    views: Views,
    spans: tracing.Export,
) -> AsyncIterator[None]:
    """Opens everything in order of need, and closes it in reverse."""
    share_one_heap()
    async with AsyncExitStack() as stack:
        seal = seal_of(settings.cache_key.get_secret_value()) if settings.cache_key else None
        cache = await Cache.open(_redis_url(settings), timeout=settings.cache_timeout, seal=seal)
        stack.push_async_callback(cache.close)
        app.state.bodies.is_coherent = lambda: cache.is_coherent
        cache.on_purge(app.state.bodies.drop)
        stale = Stale(settings.stale_seconds, settings.stale_if_error_seconds)
        answers = Answers(cache, stale, settings.local_cache_bytes)
        stack.push_async_callback(answers.close)
        spool = Spool(settings.spool, max_bytes=settings.spool_bytes, max_age=settings.spool_seconds)
        scratch = await stack.enter_async_context(held(partial(below_spool, settings.spool)))
        spooled = SpooledSeries(spool, scratch)
        cache.on_purge(spooled.purged)
        patients, audit = PatientIds(secret, settings.store), Audit(settings.audit, secret)
        imaging = Imaging(settings.imaging_processes, settings.imaging_seconds, settings.imaging_pixels)
        for part in (spans, spool, patients, audit, identity, imaging):
            await part.open()
            stack.push_async_callback(part.close)
        app.state.turned_away.write = audit.write
        stack.callback(app.state.turned_away.close)
        ttl = Ttl(settings.find_ttl, settings.location_ttl, settings.metadata_ttl, negative=settings.negative_ttl)

        offsets, seen, claims = Offsets(cache), Record(Sightings(cache, settings.sightings_days)), Claims()
        namesakes = Namesakes(NamesakeRecord(cache, settings.sightings_days))
        stack.push_async_callback(seen.close)

        def make_node(config: NodeConfig, builder: Builder, formats: Mapping[str, FormatMapping]) -> Node:
            return build_node(config, builder, formats, ttl)

        def make_estate(file: NodeFile, formats: Mapping[str, FormatMapping], nodes: dict[str, Node]) -> Estate:
            domains = Domains(tuple(domain.issuers for domain in file.same_patient_domain))
            federation = Federation(
                nodes, answers, domains, settings.search_deadline, settings.bare_patient_id == "refuse"
            )
            retrieval = Retrieval(federation, Pixels(answers, spooled))
            storing = Storing(answers, domains, scratch, settings.store_instance_bytes, claims)
            pictures = Pictures(retrieval, imaging)
            pipeline = Pipeline(
                federation, retrieval, Policy(), views, audit, offsets, storing, pictures, seen, namesakes
            )
            pipeline.gives_explicit = settings.default_transfer_syntax == "explicit"
            return Estate(pipeline, _time_zones(file, formats), _issuers(file, formats))

        def put(estate: Estate) -> None:
            app.state.estate = estate
            app.state.bodies.clear()  # what was answered over other nodes

        estates = Estates(settings, source, make_node, make_estate, put, spooled.forget)
        stack.push_async_callback(estates.close)
        await estates.open(*first)
        stack.push_async_callback(spooled.close)
        app.state.reload, app.state.node_file_state = estates.reload, lambda: estates.node_file
        app.state.patients, app.state.cache_state = patients, lambda: cache.state
        exports = Exports(settings.export_directory or scratch / "exports", settings.export_bytes)
        pages = Pages(exports, patients, secret, settings.validate_fhir, lambda: app.state.estate)
        exporting = Engine(exports, queue_of(cache), pages, settings.export_at_once, settings.export_seconds)
        if settings.export_bytes:
            await exporting.open()
            stack.push_async_callback(exporting.close)
        app.state.exporting, app.state.export_polls = exporting, polls()
        stack.push_async_callback(cancel_all, [asyncio.create_task(watch_the_loop()), asyncio.create_task(give_back())])
        hold_a_reserve()
        tune_the_collector()
        app.state.ready = True
        log().info("started", nodes=len(first[0].enabled), state=cache.state)
        try:
            yield
        finally:
            app.state.ready = False


def _redis_url(settings: Settings) -> str | None:
    if not settings.cache:
        return "off"
    return settings.redis_url.get_secret_value() if settings.redis_url else None
