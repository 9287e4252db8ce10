"""Opens the connections that a Redis URL means: to one server, to the primary that Sentinels name, or to a cluster."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import Redis, Sentinel
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from gateway.errors import SettingsError

# One loop cannot keep more than these busy; more of them would only share its time and each take longer.
CONNECTIONS = 8
_DEFAULT_PORT, _SENTINEL_PORT = 6379, 26379
TAGS_A_CALL = 500
"""Index keys that one call may name: a server does nothing else meanwhile."""
# Deadlines are the caller's; nothing is tried twice here, since a second try would be late.
_OPTIONS: dict[str, Any] = {
    "protocol": 2,
    "decode_responses": False,
    "socket_timeout": None,
    "socket_connect_timeout": None,
}

# KEYS: indexes; ARGV: the entry's key, now and its end in ms, its time in ms. An index lasts as long as its last entry.
_INDEX = """
for _, index in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', index, '-inf', ARGV[2])
  redis.call('ZADD', index, ARGV[3], ARGV[1])
  if redis.call('PTTL', index) < tonumber(ARGV[4]) then redis.call('PEXPIRE', index, ARGV[4]) end
end
return 1
"""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a scan of all servers goes on; the default begins one. `servers` are those still to come after this one."""

    at: int = 0
    servers: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A server from one start to the next, for so many seconds now; whether it began with what lay on its disk, or at another
    server's: that may be of long before."""

    id: str
    seconds: float
    has_read: bool


class Link(Protocol):
    """What the cache asks of its server or servers. Every method may raise what redis-py and its sockets raise.

    `steps` is how many round trips it may take to find out whom to ask.
    """

    steps: int

    async def reset(self) -> None:
        """Drops idle connections and asks the server for a sign of life."""

    async def mget(self, keys: Sequence[str]) -> list[bytes | None]: ...

    async def set(self, key: str, value: bytes, px: int) -> bool: ...

    async def index(self, keys: Sequence[str], entry: str, now: int, px: int) -> bool:
        """Lists the entry under each index key, some hundred at most, until it ends. Times are milliseconds."""

    async def members(self, index: str) -> list[bytes]: ...

    async def unlink(self, keys: Sequence[str]) -> int: ...

    async def scan(self, pattern: str, cursor: Cursor, count: int) -> tuple[Cursor | None, list[bytes]]:
        """One step through the keys; None when it was the last."""

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """The result of a Lua script; all keys are of one slot."""

    async def run_each(self, script: str, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """The results of a Lua script for each (key, arguments), in one round trip; each call is atomic, all are not."""

    async def clock(self) -> int:
        """The time in milliseconds since the epoch; of several servers that of the one whose clock is furthest behind."""

    async def read(self, stream: str, group: str, consumer: str, block: int) -> Any:
        """The next entry of a stream for a consumer of its group, waited for `block` milliseconds: [[stream, [entry]]]."""

    async def publish(self, channel: str, message: bytes) -> int: ...

    async def has_evicted(self) -> bool:
        """Whether entries may have been dropped for want of memory, by a server or by one whose entries it took over."""

    async def runs(self) -> list[Run]:
        """Of each server that takes writes."""

    async def subscription(self) -> PubSub:
        """A connection for listening; the caller closes it."""

    async def close(self) -> None: ...


class SingleLink:
    """One server, or the one that Sentinels say is the primary. `others` are closed with it."""

    def __init__(self, client: Redis, others: Sequence[Redis] = ()) -> None:
        self.client = client
        self.steps = 1 + len(others)
        self._others = others

    async def reset(self) -> None:
        await self.client.connection_pool.disconnect(inuse_connections=False)
        await _answer(self.client.ping())

    async def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        return cast(list[bytes | None], await _answer(self.client.mget(keys)))

    async def set(self, key: str, value: bytes, px: int) -> bool:
        return bool(await _answer(self.client.set(key, value, px=px)))

    async def index(self, keys: Sequence[str], entry: str, now: int, px: int) -> bool:
        return bool(await self.run(_INDEX, keys, (entry, now, now + px, px)))

    async def members(self, index: str) -> list[bytes]:
        return cast(list[bytes], await _answer(self.client.zrange(index, 0, -1)))

    async def unlink(self, keys: Sequence[str]) -> int:
        return int(await _answer(self.client.unlink(*keys)))

    async def scan(self, pattern: str, cursor: Cursor, count: int) -> tuple[Cursor | None, list[bytes]]:
        following, found = await _answer(self.client.scan(cursor.at, match=pattern, count=count))
        return (Cursor(int(following)) if int(following) else None), found

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        return await _run(self.client, script, keys, arguments)

    async def run_each(self, script: str, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        try:
            return await self._run_all(_digest(script), calls)
        except NoScriptError:
            await _answer(self.client.script_load(script))
            return await self._run_all(_digest(script), calls)

    async def _run_all(self, digest: str, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        pipeline = self.client.pipeline(transaction=False)
        for key, arguments in calls:
            pipeline.execute_command("EVALSHA", digest, 1, key, *arguments)
        return list(await pipeline.execute())

    async def clock(self) -> int:
        return _milliseconds(await _answer(self.client.time()))

    async def read(self, stream: str, group: str, consumer: str, block: int) -> Any:
        return await _answer(self.client.xreadgroup(group, consumer, {stream: ">"}, count=1, block=block))

    async def publish(self, channel: str, message: bytes) -> int:
        return int(await _answer(self.client.publish(channel, message)))

    async def has_evicted(self) -> bool:
        return _may_have_evicted(await _answer(self.client.info()))

    async def runs(self) -> list[Run]:
        return [_run_of(await _answer(self.client.info()))]

    async def subscription(self) -> PubSub:
        return self.client.pubsub()

    async def close(self) -> None:
        for client in (self.client, *self._others):
            await client.aclose()


class ClusterLink:
    """The servers of a cluster: what lies in several slots is asked of each, and not at one moment."""

    def __init__(self, client: RedisCluster, steps: int, options: dict[str, Any]) -> None:
        self.client = client
        self.steps = steps
        self._options = options

    async def reset(self) -> None:
        """Learns the cluster anew: which servers there are and who is the primary of what."""
        await self.client.aclose()
        await self.client.initialize()
        await _answer(self.client.ping(target_nodes=RedisCluster.PRIMARIES))

    async def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        if len(keys) == 1:
            return [await _answer(self.client.get(keys[0]))]
        return list(await _answer(self.client.mget_nonatomic(keys)))

    async def set(self, key: str, value: bytes, px: int) -> bool:
        return bool(await _answer(self.client.set(key, value, px=px)))

    async def index(self, keys: Sequence[str], entry: str, now: int, px: int) -> bool:
        return all(await self.run_each(_INDEX, [(key, (entry, now, now + px, px)) for key in keys]))

    async def members(self, index: str) -> list[bytes]:
        return cast(list[bytes], await _answer(self.client.zrange(index, 0, -1)))

    async def unlink(self, keys: Sequence[str]) -> int:
        return int(await _answer(self.client.unlink(*keys)))

    async def scan(self, pattern: str, cursor: Cursor, count: int) -> tuple[Cursor | None, list[bytes]]:
        names = cursor.servers
        if names is None:
            names = tuple(sorted(node.name for node in self.client.get_primaries()))
        node = self.client.get_node(node_name=names[0])
        if node is None:
            raise ConnectionError("a server left the cluster in the middle of a scan")
        following, found = await node.execute_command("SCAN", cursor.at, "MATCH", pattern, "COUNT", count)
        rest = names if int(following) else names[1:]
        return (Cursor(int(following), rest) if rest else None), found

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        return await _run(self.client, script, keys, arguments)

    async def run_each(self, script: str, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        pipeline = self.client.pipeline()
        for key, arguments in calls:
            pipeline.execute_command("EVAL", script, 1, key, *arguments)
        return list(await pipeline.execute())

    async def clock(self) -> int:
        return min([_milliseconds(await node.execute_command("TIME")) for node in self.client.get_primaries()])

    async def read(self, stream: str, group: str, consumer: str, block: int) -> Any:
        return await _answer(self.client.xreadgroup(group, consumer, {stream: ">"}, count=1, block=block))

    async def publish(self, channel: str, message: bytes) -> int:
        """Any server hands a message on to all others."""
        node = random.choice(self.client.get_primaries())  # noqa: S311 - spreads load, hides nothing
        return int(await node.execute_command("PUBLISH", channel, message))

    async def has_evicted(self) -> bool:
        return any(map(_may_have_evicted, await self._told()))

    async def runs(self) -> list[Run]:
        return list(map(_run_of, await self._told()))

    async def _told(self) -> list[Mapping[str, Any]]:
        """INFO of each primary."""
        return [await node.execute_command("INFO") for node in self.client.get_primaries()]

    async def subscription(self) -> PubSub:
        await self.client.initialize()
        node = random.choice(self.client.get_primaries())  # noqa: S311
        return Redis(host=node.host, port=int(node.port), max_connections=1, **self._options).pubsub()

    async def close(self) -> None:
        await self.client.aclose()


def _may_have_evicted(info: Mapping[str, Any]) -> bool:
    """By what INFO says: it did, or it has what it did not take in itself (from a primary before it, or from a file), and there
    is a limit to its memory."""
    before = str(info.get("master_replid2", "")).strip("0")  # forty zeros, which redis-py reads as a number, are none
    took_over = bool(before) or bool(info.get("rdb_last_load_keys_loaded"))
    return bool(info["evicted_keys"] or (took_over and info.get("maxmemory")))


def _run_of(info: Mapping[str, Any]) -> Run:
    """By what INFO says; a server before Redis 7 does not say how much it read, and of what it appends to a file none does."""
    has_read = bool(info.get("rdb_last_load_keys_loaded", True) or info.get("aof_enabled"))
    return Run(str(info["run_id"]), float(info["uptime_in_seconds"]), has_read)


def connect(url: str, timeout: float) -> SingleLink | ClusterLink:
    """Does no I/O. `timeout` is the seconds that a server may take to say who is who, before another one is asked.

    Raises SettingsError, without the URL's password, for what is no URL that it knows."""
    try:
        parts = urlsplit(url)
        scheme, _, kind = parts.scheme.partition("+")
        if kind and scheme not in ("redis", "rediss"):
            raise ValueError(scheme)
        if kind == "cluster":
            return _cluster(parts.netloc, scheme == "rediss", timeout)
        if kind == "sentinel":
            return _sentinel(parts.netloc, parts.path, parse_qs(parts.query), scheme == "rediss", timeout)
        return SingleLink(Redis.from_url(url, max_connections=2 * CONNECTIONS, retry=Retry(NoBackoff(), 0), **_OPTIONS))
    except (ValueError, TypeError, LookupError):
        raise SettingsError(
            "GATEWAY_REDIS_URL: is not a URL of redis://, rediss://, unix://, redis+cluster://host:port,host:port or "
            "redis+sentinel://host:port,host:port/service/db (rediss+... for TLS)",
            parameter="GATEWAY_REDIS_URL",
        ) from None


def _cluster(netloc: str, tls: bool, timeout: float) -> ClusterLink:
    credentials, hosts = _parsed(netloc, _DEFAULT_PORT)
    # A server that hangs must not keep the cluster from being learned from the next one.
    quick = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    options = {**_OPTIONS, **quick, **credentials, "ssl": tls}
    client = RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in hosts],
        max_connections=2 * CONNECTIONS,
        retry=Retry(NoBackoff(), 1),
        **options,
    )
    return ClusterLink(client, 1 + 2 * len(hosts), {**options, "socket_timeout": None})


def _sentinel(netloc: str, path: str, query: dict[str, list[str]], tls: bool, timeout: float) -> SingleLink:
    """The credentials before the @ are the servers'; the Sentinels' own are `?sentinel_username=` and `?sentinel_password=`."""
    credentials, hosts = _parsed(netloc, _SENTINEL_PORT)
    _, service, *database = unquote(path).rstrip("/").split("/")
    if not service or len(database) > 1:
        raise ValueError("no service")
    own = {name: query[f"sentinel_{name}"][0] for name in ("username", "password") if f"sentinel_{name}" in query}
    # One that is gone is not asked again and again, for seconds: the next one knows as well.
    quick: dict[str, Any] = {
        "socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": Retry(NoBackoff(), 0),
    }  # fmt: skip
    sentinel: Any = Sentinel(hosts, sentinel_kwargs={**quick, **own, "ssl": tls})  # type: ignore[no-untyped-call]
    client = sentinel.master_for(
        service,
        db=int(database[0]) if database else 0,
        max_connections=2 * CONNECTIONS,
        retry=Retry(NoBackoff(), 0),
        ssl=tls,
        **_OPTIONS,
        **credentials,
    )
    return SingleLink(client, sentinel.sentinels)


def _parsed(netloc: str, port: int) -> tuple[dict[str, str], list[tuple[str, int]]]:
    """The credentials and the addresses of 'user:password@host:port,host:port'. Raises ValueError when there is no host."""
    userinfo, _, addresses = netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    given = {"username": unquote(username), "password": unquote(password)}
    split = [urlsplit(f"//{address}") for address in addresses.split(",")]
    hosts = [(each.hostname or "", each.port or port) for each in split]
    if not all(host for host, _ in hosts):
        raise ValueError("no host")
    return {name: value for name, value in given.items() if value}, hosts


async def _run(client: Any, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
    try:
        return await client.evalsha(_digest(script), len(keys), *keys, *arguments)
    except NoScriptError:
        return await client.eval(script, len(keys), *keys, *arguments)


def _milliseconds(time: Sequence[Any]) -> int:
    """From what TIME says: seconds and microseconds."""
    return int(time[0]) * 1000 + int(time[1]) // 1000


def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


async def _answer(command: Any) -> Any:
    """redis-py types its commands as either awaitable or not."""
    return await command


async def hang_up(link: Link) -> None:
    """Closes the connections, whatever comes of it."""
    await quietly(link.close)


async def quietly(close: Callable[[], Awaitable[Any]]) -> None:
    """Closes something that nobody needs any more, within a second."""
    try:
        async with asyncio.timeout(1.0):
            await close()
    except Exception:  # noqa: BLE001, S110 - whatever is wrong with it, it is not used again
        pass
