"""Keeps bytes in Redis for a while, and never fails: a cache that is gone is a cache that knows nothing."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import orjson
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from gateway.cache.embedded import EmbeddedServer
from gateway.cache.keys import PREFIX, node_patterns
from gateway.cache.values import pack, unpack
from gateway.errors import SettingsError

T = TypeVar("T")
State = Literal["up", "down", "off"]

_log = logging.getLogger(__name__)

# One loop cannot keep more than these busy; more of them would only share its time and each take longer.
CONNECTIONS = 8
MAX_MISSED = 10_000
_IN_A_THREAD_ABOVE = 256 * 1024
_STEP = 500
_EVERYTHING = f"{PREFIX}:*"


class Cache:
    """Bytes by key. No method raises for what Redis does or fails to do; all belong to the event loop that opened it.

    `state` is "up", "down" (a task of its own asks again every `retry_after` seconds) or "off" (there is no server).
    A dead or hanging Redis costs those who are asking one `timeout` together, and nothing after that until it is back.
    What could not be written or deleted meanwhile is deleted before the cache is up again: nothing outdated comes back.
    """

    def __init__(self, url: str | None, server: EmbeddedServer | None, timeout: float, retry_after: float) -> None:
        self.state: State = "off" if url is None else "down"
        self.timeout, self.retry_after = timeout, retry_after
        self.hits = self.misses = self.failures = 0
        self._server = server
        self._client: Redis | None = None if url is None else _connect(url)
        self._permits = asyncio.Semaphore(CONNECTIONS)
        self._recovery: asyncio.Task[None] | None = None
        self._last_fall = float("-inf")
        self._missed_keys: set[str] = set()
        self._missed_patterns: set[str] = set()

    @classmethod
    async def open(
        cls, url: str | None = None, *, timeout: float = 0.25, retry_after: float = 1.0, maxmemory: str = "256mb"
    ) -> Cache:
        """A cache on the Redis at `url` (redis://, rediss://, unix://); None starts an embedded one, "off" means none.

        A Redis that does not answer is no error: the cache starts "down". Raises SettingsError for what is not a URL.
        """
        server = None
        if url is None:
            server = EmbeddedServer(maxmemory=maxmemory)
            await server.open()
            url = server.url
        cache = cls(None if url == "off" else url, server, timeout, retry_after)
        if cache._client is not None and not await cache._probe():
            cache._fall("no answer")
        return cache

    async def close(self) -> None:
        """Ends the recovery, the connections and the embedded server. The cache is "off" from then on."""
        self.state = "off"
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
        if self._client is not None:
            await _hang_up(self._client)
        if self._server is not None:
            await self._server.close()

    async def get(self, key: str) -> bytes | None:
        return (await self.get_many([key]))[0]

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values in the order of the keys, in one round trip; None for each that is not there."""
        stored: list[Any] | None = await self._ask(lambda client: client.mget(keys)) if keys else []
        values = [None if each is None else await _off_the_loop(unpack, each) for each in stored or [None] * len(keys)]
        found = len(values) - values.count(None)
        self.hits += found
        self.misses += len(values) - found
        return values

    async def set(self, key: str, value: bytes, ttl: float) -> bool:
        """Keeps the value for `ttl` seconds. False when it is not kept; an older value is then gone as well."""
        packed = await _off_the_loop(pack, value) if ttl > 0 else None
        if packed is not None:
            if await self._ask(lambda client: client.set(key, packed, px=max(1, int(ttl * 1000)))):
                return True
            self.failures += self.state == "up"
        await self.delete(key)
        return False

    async def delete(self, *keys: str) -> None:
        """Forgets the keys: now, or before the cache is up again."""
        if keys and await self._ask(lambda client: client.unlink(*keys)) is None:
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

    async def purge_node(self, node: str) -> int:
        """Forgets all that came from a node, and every federated answer; returns how many entries that were."""
        return sum([await self._purge(pattern) for pattern in node_patterns(node)])

    async def _purge(self, pattern: str) -> int:
        purged, cursor = 0, None
        while cursor != 0:
            step = await self._ask(partial(_purge_step, pattern=pattern, cursor=cursor or 0))
            if step is None:
                self._miss(patterns=[pattern])
                return purged
            cursor, purged = step[0], purged + step[1]
        return purged

    async def _ask(self, command: Callable[[Redis], Awaitable[T]]) -> T | None:
        """The server's answer, or None. A permit is waited for outside the deadline: a queue is not a silent server."""
        if self.state != "up":
            return None
        async with self._permits:
            if self.state != "up" or self._client is None:
                return None
            try:
                async with asyncio.timeout(self.timeout):
                    return await command(self._client)
            except RedisConnectionError as error:
                self._fall(type(error).__name__)
            except RedisError as error:
                _log.warning("the cache refused a command: %s", type(error).__name__)
            except Exception as error:  # noqa: BLE001 - a transport closed underneath redis-py shows as anything
                self._fall(type(error).__name__)
        return None

    def _fall(self, reason: str) -> None:
        """From "up" to "down". The first try to get up comes at once, unless the last fall was a window ago or less."""
        if self.state == "off" or (self._recovery is not None and not self._recovery.done()):
            return
        self.state = "down"
        self.failures += 1
        _log.warning("the cache is down (%s): going on without it", reason)
        now = asyncio.get_running_loop().time()
        again, self._last_fall = now - self._last_fall < self.retry_after, now
        # The recovery belongs to no request: it must not carry the context of the one that happened to notice.
        self._recovery = asyncio.create_task(self._recover(again), name="cache recovery", context=contextvars.Context())

    async def _recover(self, wait_first: bool) -> None:
        while wait_first or not await self._probe():
            wait_first = False
            await asyncio.sleep(self.retry_after)
        _log.info("the cache is up")

    async def _probe(self, revive: bool = True) -> bool:
        """Whether the server answers and has forgotten what it should have; then the cache is up."""
        client = self._client
        if client is None:
            return False
        try:
            async with asyncio.timeout(self.timeout):
                await client.connection_pool.disconnect(inuse_connections=False)
                await client.ping()
            await self._catch_up(client)
        except Exception:  # noqa: BLE001 - whatever it is, the answer is no
            return revive and await self._revive() and await self._probe(revive=False)
        if self.state == "down":
            self.state = "up"
        return True

    async def _catch_up(self, client: Redis) -> None:
        """Deletes what was missed. Nothing is awaited between the last look at the list and the return to "up"."""
        while self._missed_patterns or self._missed_keys:
            patterns, self._missed_patterns = self._missed_patterns, set()
            keys, self._missed_keys = list(self._missed_keys), set()
            try:
                for pattern in patterns:
                    await self._delete_matching(client, pattern)
                for first in range(0, len(keys), _STEP):
                    async with asyncio.timeout(self.timeout):
                        await client.unlink(*keys[first : first + _STEP])
            except BaseException:
                self._miss(keys, patterns)
                raise

    async def _delete_matching(self, client: Redis, pattern: str) -> None:
        cursor: int | None = None
        while cursor != 0:
            async with asyncio.timeout(self.timeout):
                cursor, _ = await _purge_step(client, pattern, cursor or 0)

    async def _revive(self) -> bool:
        """Starts the embedded server again when it is gone; a new one is empty, so nothing was missed."""
        if self._server is None or self.state == "off" or await self._server.is_listening():
            return False
        if not await self._server.restart() or self._server.url is None:
            return False
        old, self._client = self._client, _connect(self._server.url)
        self._missed_keys.clear()
        self._missed_patterns.clear()
        if old is not None:
            await _hang_up(old)
        return True

    def _miss(self, keys: Iterable[str] = (), patterns: Iterable[str] = ()) -> None:
        """Remembers what is still to be deleted; too much of it becomes everything."""
        if self.state == "off" or _EVERYTHING in self._missed_patterns:
            return
        self._missed_keys.update(keys)
        self._missed_patterns.update(patterns)
        if len(self._missed_keys) + len(self._missed_patterns) > MAX_MISSED:
            self._missed_keys.clear()
            self._missed_patterns = {_EVERYTHING}


def _connect(url: str) -> Redis:
    try:
        return Redis.from_url(
            url,
            protocol=2,
            decode_responses=False,
            max_connections=2 * CONNECTIONS,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=None,
        )
    except (ValueError, TypeError):
        raise SettingsError("the Redis URL is not a redis://, rediss:// or unix:// URL") from None


async def _purge_step(client: Redis, pattern: str, cursor: int) -> tuple[int, int]:
    """Where the scan goes on (0: it is over) and how many entries this step removed."""
    following, found = await client.scan(cursor, match=pattern, count=_STEP)
    return int(following), int(await client.unlink(*found)) if found else 0


async def _hang_up(client: Redis) -> None:
    try:
        async with asyncio.timeout(1.0):
            await client.aclose()
    except Exception as error:  # noqa: BLE001 - nobody needs these connections any more
        _log.debug("closing a cache connection: %s", type(error).__name__)


async def _off_the_loop(work: Callable[[bytes], T], value: bytes) -> T:
    """Large values are packed in a thread: zstandard and crc32 release the interpreter lock meanwhile."""
    return work(value) if len(value) < _IN_A_THREAD_ABOVE else await asyncio.to_thread(work, value)
