"""`cache purge`: has every gateway on one Redis forget what it keeps of a study, a patient, a node, or everything."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import typer

from gateway import settings
from gateway.cache.client import Cache
from gateway.cache.sealing import Seal, seal_of
from gateway.cli import console
from gateway.errors import InvalidQuery, SettingsError

# A person waits for this, and nobody else does.
_TIMEOUT = 5.0


def purge(what: Mapping[str, str]) -> None:
    """`what` is one of study, patient ('issuer|id'), node and all. Prints how many entries were dropped."""
    with console.refusals():
        if len(what) != 1:
            raise InvalidQuery("name one thing to purge: --study, --patient, --node or --all")
        read = settings.read()
        if read.redis_url is None:
            raise SettingsError(
                "GATEWAY_REDIS_URL is not set: each gateway then has a cache embedded in it, which nobody else reaches and "
                "which ends with it. Restart the gateway to empty it, or set GATEWAY_REDIS_URL here and there."
            )
        seal = seal_of(read.cache_key.get_secret_value()) if read.cache_key else None
        [(kind, value)] = what.items()
        dropped = asyncio.run(_purge(read.redis_url.get_secret_value(), kind, value, seal))
    if dropped is None:
        console.complain("Redis does not answer: nothing is sure to be purged; try again")
        raise typer.Exit(console.FOUND_WRONG)
    console.output().print(f"dropped {dropped} kept answers")


async def _purge(url: str, kind: str, value: str, seal: Seal | None) -> int | None:
    """How many entries were dropped; None when Redis did not answer to all of it."""
    cache = await Cache.open(url, timeout=_TIMEOUT, seal=seal)
    try:
        dropped = await _dropped(cache, kind, value)
        return None if cache.owes or cache.state != "up" else dropped
    finally:
        await cache.close()


async def _dropped(cache: Cache, kind: str, value: str) -> int:
    if kind == "study":
        return await cache.purge_study(value)
    if kind == "node":
        return await cache.purge_node(value)
    if kind == "all":
        return await cache.purge_all()
    issuer, bar, identifier = value.partition("|")  # as in FHIR, another bar is the identifier's
    if not bar or not identifier:
        raise InvalidQuery("--patient is ISSUER|ID, such as 'SU-KRAKOW|12345'")
    return await cache.purge_patient(issuer, identifier)
