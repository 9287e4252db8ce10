"""Keeps bytes in Redis for a while, and never fails: a cache that is gone is a cache that knows nothing."""

from __future__ import annotations

import asyncio
import contextvars
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import orjson

from gateway.cache import envelope, measures
from gateway.cache.connections import TAGS_A_CALL
from gateway.cache.embedded import EmbeddedServer
from gateway.cache.listening import Listener
from gateway.cache.purges import EVERYTHING_KEPT, Purge, Step, carry_out
from gateway.cache.sealing import Seal
from gateway.cache.session import Session, Unanswered, end
from gateway.cache.tags import Tag, index_key
from gateway.cache.together import Together
from gateway.cache.values import pack, unpack

T = TypeVar("T")

_IN_A_THREAD_ABOVE = 256 * 1024
_LATELY, _SETTLED = 5.0, 0.5
"""Seconds that a purge may take to be heard, and to be carried out."""
_MOST_WRITTEN, _FEW_TAGS = 500, 200
"""How many answers are remembered for that; those that mention more than a few count as mentioning everything."""


class Cache(Session):
    """Bytes by key. No method raises for what Redis does or fails to do; all belong to the event loop that opened it.

    What could not be written or deleted while Redis was away is deleted before it is up again: nothing outdated comes back.
    """

    def __init__(
        self,
        url: str | None,
        server: EmbeddedServer | None,
        timeout: float,
        retry_after: float,
        seal: Seal | None = None,
    ) -> None:
        super().__init__(url, server, timeout, retry_after)
        self.hits = self.misses = 0
        self.is_shared = url is not None and server is None
        self._together = Together(self.get_many)
        self._seal = seal
        self._name = secrets.token_hex(8)
        self._written: deque[tuple[float, str, frozenset[Tag] | None]] = deque(maxlen=_MOST_WRITTEN)
        self._late: set[asyncio.Task[None]] = set()
        self._told: list[Callable[[Purge], None]] = []
        self._listener = Listener(
            lambda: self._link, self._name, self._heard, self._missed_some, self._doubt, max(1.0, retry_after)
        )
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        url: str | None = None,
        *,
        timeout: float = 0.25,
        retry_after: float = 1.0,
        maxmemory: str = "256mb",
        seal: Seal | None = None,
    ) -> Cache:
        """A cache on the Redis at `url` (see `connections.connect`); None starts an embedded one, "off" means none.

        A Redis that does not answer is no error: the cache starts "down". Raises SettingsError for what is not a URL.
        With a `seal` everything is encrypted, and what is not is a miss.
        """
        server = None
        if url is None:
            server = EmbeddedServer(maxmemory=maxmemory)
            await server.open()
            url = server.url
        cache = cls(None if url == "off" else url, server, timeout, retry_after, seal)
        if cache._link is not None and not await cache._probe():
            cache._fall(cache.trouble)
        if cache.is_shared:
            # Neither this nor the recovery belongs to a request: they must not carry the context of one.
            listen = cache._listener.run()
            cache._listening = asyncio.create_task(listen, name="cache purges", context=contextvars.Context())
        return cache

    async def close(self) -> None:
        self.state = "off"
        await end(self._listening)
        for task in list(self._late):
            await end(task)
        await self._together.close()
        await super().close()

    @property
    def is_coherent(self) -> bool:
        """Whether every purge is heard: only then may a layer within the process (see `on_purge`) be believed."""
        return self._server is not None or (self.state == "up" and self._listener.hears)

    async def get(self, key: str) -> bytes | None:
        """The value; None when it is not there. What one turn of the event loop asks for is one round trip."""
        return await self._together.get(key)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values in the order of the keys, in one round trip; None for each that is not there."""
        stored = await self.ask(lambda link: link.mget(keys)) if keys else []
        pairs = zip(keys, stored or [None] * len(keys), strict=True)
        values = [None if each is None else await self.unpacked(key, each) for key, each in pairs]
        found = len(values) - values.count(None)
        self.hits += found
        self.misses += len(values) - found
        return values

    async def unpacked(self, key: str, stored: bytes) -> bytes | None:
        """The value of an entry as it lies in Redis; None for what nobody of ours put there."""
        return await _off_the_loop(lambda: self._unpacked(key, stored), len(stored))

    async def set(self, key: str, value: bytes, ttl: float, tags: frozenset[Tag] = frozenset()) -> bool:
        """Keeps the value for `ttl` seconds, to be found by its tags. False when it is not kept; an older value is then gone
        as well."""
        packed = await _off_the_loop(lambda: self._packed(key, value), len(value)) if ttl > 0 else None
        if packed is not None:
            px = max(1, int(ttl * 1000))
            # Its index first: an entry that no purge finds must not be.
            if await self._indexed(key, sorted(tags), px) and await self.ask(lambda link: link.set(key, packed, px)):
                if self.is_shared:
                    lately = asyncio.get_running_loop().time(), key, tags if len(tags) <= _FEW_TAGS else None
                    self._written.append(lately)
                return True
            self.failures += self.state == "up"
        await self.delete(key)
        return False

    async def _indexed(self, key: str, tags: Sequence[Tag], px: int) -> bool:
        for first in range(0, len(tags), TAGS_A_CALL):
            indexes = [index_key(tag) for tag in tags[first : first + TAGS_A_CALL]]
            if not await self.ask(lambda link, some=indexes: link.index(some, key, int(time.time() * 1000), px)):  # type: ignore[misc]
                return False
        return True

    async def delete(self, *keys: str) -> None:
        """Forgets the keys: now, or before the cache is up again."""
        if keys and await self.ask(lambda link: link.unlink(keys)) is None:
            self._miss(keys)

    async def get_json(self, key: str, default: Any = None) -> Any:
        """The value as JSON; `default` when there is none, or none that is JSON."""
        value = await self.get(key)
        try:
            return default if value is None else orjson.loads(value)
        except orjson.JSONDecodeError:
            return default

    async def set_json(self, key: str, value: Any, ttl: float) -> bool:
        """Like `set`. Raises TypeError for a value without a JSON form: that is the caller's own mistake."""
        return await self.set(key, orjson.dumps(value), ttl)

    def on_purge(self, callback: Callable[[Purge], None]) -> None:
        """Has `callback` hear every purge, of this replica and of the others, before it is carried out in Redis; it must
        not fail. It hears "all" as well when one may have been missed; see `is_coherent`."""
        self._told.append(callback)

    async def forget(self, *keys: str) -> int:
        """Forgets the keys here, in Redis and on every replica; returns how many entries that were in Redis."""
        return await self._purge(Purge("keys", keys))

    async def purge_node(self, node: str) -> int:
        """As `forget`, all that came from a node, and every federated answer."""
        return await self._purge(Purge("node", (node,)))

    async def purge_searches(self, node: str) -> int:
        """As `forget`, what a node answered to searches: it has something new, and who knows what that belongs to."""
        return await self._purge(Purge("searches", (node,)))

    async def purge_study(self, uid: str) -> int:
        """As `forget`, all that mentions a study, or was asked for it and found nothing."""
        return await self._purge(Purge("study", (uid,)))

    async def purge_patient(self, issuer: str, identifier: str) -> int:
        """As `forget`, all that mentions a patient, or was asked for him and found nothing."""
        return await self._purge(Purge.of_patient(issuer, identifier))

    async def purge_all(self) -> int:
        return await self._purge(EVERYTHING_KEPT)

    async def _purge(self, purge: Purge) -> int:
        self._tell(purge)
        self._remember(purge)
        try:
            return await self._carry_out(purge, self.insist)
        except Unanswered:
            self._miss(purges=[purge])
            return 0
        finally:
            self._tell(purge)  # what was read meanwhile may have been there still

    async def _carry_out(self, purge: Purge, step: Step) -> int:
        return await carry_out(purge, self._name, step, self._tags_of)

    def _heard(self, purge: Purge) -> None:
        """Of another replica, which may have ended when Redis turns out to have lost it."""
        self._remember(purge)
        self._tell(purge)
        if overtaken := self._written_lately(purge):
            task = asyncio.create_task(self._take_back(overtaken), name="cache purge heard late")
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    def _missed_some(self) -> None:
        """Some purges may not have been heard."""
        self._tell(Purge("all"))

    def _doubt(self) -> None:
        """Commands may find a server that began anew on a new connection, and never notice."""
        self._fall("purges are not heard")

    async def _take_back(self, keys: Sequence[str]) -> None:
        """Once who purges has had them forgotten, and counted."""
        await asyncio.sleep(_SETTLED)
        await self.delete(*keys)

    def _written_lately(self, purge: Purge) -> list[str]:
        """The keys of what this replica may have written after the purge was made and before it was heard."""
        since, tags = asyncio.get_running_loop().time() - _LATELY, purge.tags()

        def drops(key: str, borne: frozenset[Tag] | None) -> bool:
            return purge.drops_key(key) or (bool(tags) and (borne is None or bool(borne & tags)))

        return [key for when, key, borne in self._written if when > since and drops(key, borne)]

    def _tell(self, purge: Purge) -> None:
        measures.purges.labels(purge.kind).inc()
        for callback in self._told:
            callback(purge)

    def _packed(self, key: str, value: bytes) -> bytes | None:
        packed = pack(value)
        return packed if packed is None or self._seal is None else self._seal.close(packed, key)

    def _unpacked(self, key: str, stored: bytes) -> bytes | None:
        packed = stored if self._seal is None else self._seal.open(stored, key)
        return None if packed is None else unpack(packed)

    def _tags_of(self, key: str, stored: bytes) -> frozenset[Tag] | None:
        value = self._unpacked(key, stored)
        if value is None:
            return None
        entry = envelope.opened(value)
        return entry.tags if entry else frozenset()


async def _off_the_loop(work: Callable[[], T], size: int) -> T:
    """Large values are packed in a thread: zstandard, crc32 and AES release the interpreter lock meanwhile."""
    return work() if size < _IN_A_THREAD_ABOVE else await asyncio.to_thread(work)
