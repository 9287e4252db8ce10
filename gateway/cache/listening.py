"""Hears the purges of the other replicas, and knows when it cannot hear them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from redis.asyncio.client import PubSub

from gateway.cache.connections import Link, quietly
from gateway.cache.purges import CHANNEL, Purge, heard

_log = logging.getLogger(__name__)


class Listener:
    """A subscription that is renewed whenever it is lost. `told` gets each purge; `missed` is called when some may have been,
    `lost` when a subscription is lost.

    `hears` is False while it is lost; it is noticed within two `interval`s, also on a connection that says nothing.
    """

    def __init__(
        self,
        link: Callable[[], Link | None],
        own: str,
        told: Callable[[Purge], None],
        missed: Callable[[], None],
        lost: Callable[[], None],
        interval: float,
    ) -> None:
        self._link, self._own, self._told, self._interval = link, own, told, interval
        self._missed, self._lost = missed, lost
        self.hears = False

    async def run(self) -> None:
        """Listens until it is cancelled."""
        while True:
            link = self._link()
            try:
                if link is not None:
                    await self._listen(link)
            except Exception as error:  # noqa: BLE001 - a lost subscription shows as anything; it is only begun anew
                _log.debug("purges cannot be heard: %s", type(error).__name__)
            await asyncio.sleep(self._interval)

    def _deafen(self) -> None:
        if self.hears:
            self.hears = False
            self._missed()
            self._lost()

    async def _listen(self, link: Link) -> None:
        async with asyncio.timeout(self._interval):
            subscription = await link.subscription()
        try:
            async with asyncio.timeout(self._interval):
                await subscription.subscribe(CHANNEL)
                while (await _next(subscription, self._interval) or {}).get("type") != "subscribe":
                    pass
            self._missed()  # what was purged meanwhile, and loaded before, must not be kept from here on
            self.hears = True
            await self._hear(subscription)
        finally:
            self._deafen()
            await quietly(subscription.aclose)

    async def _hear(self, subscription: PubSub) -> None:
        """Tells every message; raises TimeoutError when the server answers no ping within an interval."""
        is_asked = False
        while True:
            message = await _next(subscription, self._interval)
            if message is None:
                if is_asked:
                    raise TimeoutError
                is_asked = True
                async with asyncio.timeout(self._interval):
                    await subscription.ping()
                continue
            is_asked = False
            if message["type"] == "message" and (purge := heard(message["data"], self._own)):
                self._told(purge)


async def _next(subscription: PubSub, seconds: float) -> dict[str, Any] | None:
    message: dict[str, Any] | None = await subscription.get_message(ignore_subscribe_messages=False, timeout=seconds)
    return message
