"""Gives answers from the cache, or has each loaded once, however many ask for it at the same time, here or on other replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.allocator import collect_the_young
from gateway.cache import bodies, envelope, freshness, locks, measures
from gateway.cache.client import Cache
from gateway.cache.envelope import Entry, Mentions
from gateway.cache.flight import Flights
from gateway.cache.local import Local
from gateway.cache.lull import MOST, Lull
from gateway.cache.purges import Purge, PurgeLog
from gateway.errors import GatewayError, NodeError

Load = Callable[[], Awaitable["Loaded"]]
Decode = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Ttl:
    """How long each kind of entry is fresh, in seconds. `negative` is for answers that say "nothing here"."""

    find: float = 30.0
    location: float = 300.0
    metadata: float = 3600.0
    probe: float = 600.0
    negative: float = 10.0

    def of(self, kind: str) -> float:
        """Raises AttributeError for a kind that has no time of its own."""
        return float(getattr(self, kind))


@dataclass(frozen=True, slots=True)
class Stale:
    """How much longer than fresh an answer may serve, in seconds; 0 is not at all. `while_revalidate`: at once, while it is asked
    for anew. `if_error`: marked, while its node cannot be asked."""

    while_revalidate: float = 30.0
    if_error: float = 300.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load found: a JSON value, whether it may be kept (a partial one may not), and a `ttl` unless the usual.

    `tags` are what a purge finds it by. `may_be_stale` False gives it no life after its `ttl`. With `to_plain` the value is
    what `decode` makes of the JSON value that `to_plain` makes of it, and need not be made again; and with `rows`, of that many
    rows that came as JSON, its text is not written before somebody needs it.
    """

    value: Any
    cacheable: bool = True
    ttl: float | None = None
    tags: Mentions = frozenset()
    may_be_stale: bool = True
    to_plain: Callable[[Any], Any] | None = None
    rows: int | None = None

    def write(self) -> bytes:
        """The value as JSON text. Raises TypeError for what has no JSON form."""
        return orjson.dumps(self.to_plain(self.value) if self.to_plain else self.value)


@dataclass(frozen=True, slots=True)
class Kept:
    """A value with its age in seconds; `is_stale` says that its node could not be asked anew, so whoever shows it says so."""

    value: Any
    age: float = 0.0
    is_stale: bool = False


@dataclass(frozen=True, slots=True)
class _Landed:
    """What a load gave: its entry, the lock that is held until it is kept, and where the purges were when it began."""

    entry: Entry
    lock: locks.Lock | None = None
    since: int = 0
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class _Question:
    """One question to one node, and how its answer is loaded and read. `anew` names who wants no answer from before
    (`freshness`)."""

    key: str
    ttl: float
    load: Load = field(repr=False)
    read: Callable[[Entry], Any] = field(repr=False)
    anew: str = field(default_factory=freshness.anew)

    @property
    def flight(self) -> str:
        """Names the load that may be waited for."""
        return f"{self.key}:{self.anew}" if self.anew else self.key

    def opened(self, stored: bytes | None) -> Entry | None:
        """The entry as it lay in Redis; None for one that cannot be read, such as another version's."""
        entry = envelope.opened(stored)
        try:
            if entry is not None:
                self.read(entry)
        except Exception:  # noqa: BLE001 - what somebody else wrote fails as it likes
            return None
        return entry


class Answers:
    """Answers by key, shared by all callers of this process. Close it before its cache.

    `local_bytes` is the size of the layer within the process. An answer is noted in the request's `freshness`.
    """

    def __init__(self, cache: Cache, stale: Stale | None = None, local_bytes: int = 32 * 1024**2) -> None:
        self._cache, self._stale = cache, stale or Stale()
        self._loads: Flights[_Landed] = Flights()
        self._local, self._log, self._lull = Local(local_bytes), PurgeLog(), Lull()
        cache.on_purge(self._purged)

    async def rows(self, key: str, ttl: float, load: Load, *, detached: bool = False) -> Any:
        """As `answer`, its value alone, never one whose node could not be asked anew; each caller gets a copy of its own."""
        asked = _Question(key, ttl, load, lambda entry: orjson.loads(entry.body))
        return asked.read((await self._entry(asked, detached, None, False))[0])

    async def answer(
        self, key: str, ttl: float, load: Load, decode: Decode, *, patience: float | None = None, stale: bool = True
    ) -> Kept:
        """What `decode` makes of the value for `key`, from the cache or from the one load that all present callers share.

        The value was JSON in between (a tuple comes back as a list) and is shared: treat it as frozen. What `load` raises
        reaches all who wait and is not kept. A load goes on while one caller waits for it. With `stale`, and outside
        `freshness.only_fresh`, an older answer stands in where the load fails for a passing reason, or takes longer than
        `patience` seconds.
        """
        asked = _Question(key, ttl, load, lambda entry: entry.value(decode))
        entry, is_stale = await self._entry(asked, False, patience, stale)
        return Kept(asked.read(entry), entry.age, is_stale)

    async def text(
        self, key: str, ttl: float, load: Load, read: Callable[[bytes], Any] = bytes, *, stale: bool = True
    ) -> Kept:
        """As `answer`, what `read` makes of the value's JSON text, each time anew, for who can do without decoding it."""
        asked = _Question(key, ttl, load, lambda entry: read(entry.body))
        entry, is_stale = await self._entry(asked, False, None, stale)
        return Kept(asked.read(entry), entry.age, is_stale)

    async def _entry(self, asked: _Question, detached: bool, patience: float | None, stale: bool) -> tuple[Entry, bool]:
        since, stale = self._log.position, stale and freshness.allows_stale()
        entry = await self._kept(asked) if asked.ttl > 0 and not asked.anew else None
        is_stale = False
        if entry is None or not (entry.is_fresh() or (stale and entry.serves_while_revalidated())):
            stand_in = entry if stale and entry is not None and entry.serves_if_error() else None
            entry, is_stale = await self._loaded(asked, stand_in, since, patience, detached)
        elif not entry.is_fresh():
            measures.looked_up("redis", "stale").inc()
            self._loads.start(asked.key, lambda: self._load(asked), afterwards=lambda *it: self._keep(asked.key, *it))
        # Noted here and not by the load: that runs for whoever came first, and these are for whoever asks.
        making = bodies.current()
        if making is not None:
            making.uses(asked.key, entry)
        freshness.current().note(entry.age, 0.0 if is_stale else entry.remaining, stale=is_stale)
        return entry, is_stale

    async def _kept(self, asked: _Question) -> Entry | None:
        """The entry, from this process while it is fresh, else from Redis."""
        here = self._here(asked.key)
        if here is not None:
            measures.looked_up("local", "hit").inc()
            return here
        # What has been loaded meanwhile is here before it is in Redis.
        return await self._look_up(asked) or self._here(asked.key)

    def _here(self, key: str) -> Entry | None:
        entry = self._local.get(key) if self._cache.is_coherent else None
        return entry if entry is not None and entry.is_fresh() else None

    async def _look_up(self, asked: _Question) -> Entry | None:
        since = self._log.position
        entry = asked.opened(await self._cache.get(asked.key))
        is_hit = entry is not None and entry.is_fresh()
        measures.looked_up("redis", "hit" if is_hit else "miss").inc()
        if entry is not None and is_hit:
            self._put_away(asked.key, entry, since)
        return entry

    async def _loaded(
        self, asked: _Question, stand_in: Entry | None, since: int, patience: float | None, detached: bool
    ) -> tuple[Entry, bool]:
        """The entry of the load, or the stand-in with True where the load fails for a passing reason or takes too long, and it
        was not purged since. With a stand-in the load goes on to its end: the next caller may then have its answer.
        """
        if stand_in is None:
            return await self._shared(asked, detached), False
        limit = asyncio.timeout(patience)
        try:
            async with limit:
                return await self._shared(asked, detached=True), False
        except TimeoutError:
            if not limit.expired():
                raise
            if not self._may_stand_in(asked.key, stand_in, since):
                return await self._shared(asked, detached), False
        except NodeError as error:
            if not error.transient or not self._may_stand_in(asked.key, stand_in, since):
                raise
        measures.looked_up("redis", "stale_if_error").inc()
        return stand_in, True

    def _may_stand_in(self, key: str, stand_in: Entry, since: int) -> bool:
        """Also after all the time that the load took."""
        return stand_in.serves_if_error() and not self._is_touched(key, stand_in, since)

    async def _shared(self, asked: _Question, detached: bool) -> Entry:
        """The entry of a load that began now, or that no purge has overtaken since it began."""
        until = self._log.position
        while True:
            landed = await self._loads.fetch(
                asked.flight,
                lambda: self._load(asked),
                afterwards=lambda *it: self._keep(asked.key, *it),
                detached=detached,
            )
            if not self._is_touched(asked.key, landed.entry, landed.since, until):
                return landed.entry
            self._loads.leave(asked.flight, landed)

    async def _load(self, asked: _Question) -> _Landed:
        """The entry that another replica has just loaded, or a new one, which this one then loads alone."""
        since = self._log.position
        claim = await self._claim(asked)
        if claim.is_taken and await self._fresh(asked, claim) is None:
            await locks.released(self._cache, asked.key)
            # Waited for once: whatever became of that load, this one is done now, alone or not.
            claim = await self._claim(asked)
        try:
            entry = await self._fresh(asked, claim)
            if entry is None:
                return _Landed(await self._new(asked), claim.lock, since)
        except BaseException as error:
            if isinstance(error, GatewayError):
                measures.loaded("failed").inc()
            if claim.lock is not None:
                await claim.lock.release()
            raise
        measures.loaded("shared").inc()
        self._put_away(asked.key, entry, since)
        return _Landed(entry, claim.lock, since, is_new=False)

    async def _claim(self, asked: _Question) -> locks.Claim:
        """Only what is kept can be shared, and only a Redis of several."""
        shares = self._cache.is_shared and asked.ttl > 0 and not asked.anew
        return await locks.claim(self._cache, asked.key) if shares else locks.Claim()

    async def _fresh(self, asked: _Question, claim: locks.Claim) -> Entry | None:
        if claim.stored is None:
            return None
        entry = asked.opened(await self._cache.unpacked(asked.key, claim.stored))
        return entry if entry is not None and entry.is_fresh() else None

    async def _new(self, asked: _Question) -> Entry:
        loaded = await asked.load()
        if asked.anew:  # one that began before is not to take this one's place
            self._loads.forget(asked.key.__eq__)
        ttl = asked.ttl if loaded.ttl is None else loaded.ttl
        stale = self._stale if loaded.may_be_stale else Stale(0.0, 0.0)
        windows = (stale.while_revalidate, stale.if_error)
        # Written at once, also where it is not kept: what has no JSON form is a fault over this node's answer alone.
        text = loaded.write() if loaded.rows is None else loaded.write
        entry = Entry(text, envelope.now(), ttl if loaded.cacheable else 0.0, *windows, loaded.tags)
        if loaded.to_plain:
            entry.made, entry.rows = loaded.value, loaded.rows or 1
        return entry

    async def _keep(self, key: str, landed: _Landed, is_wanted: Callable[[], bool]) -> None:
        entry = landed.entry
        self._lull.ends()

        def may_keep() -> bool:
            # Who does not hear purges would write what they dropped, for all who did hear them.
            is_told = self._cache.is_coherent or not self._cache.is_shared
            return is_told and is_wanted() and not self._is_touched(key, entry, landed.since)

        try:
            if landed.is_new and entry.kept_for <= 0:
                measures.loaded("not_kept").inc()
            elif landed.is_new and may_keep():
                measures.loaded("kept").inc()
                self._put(key, entry, landed.since)
                sealed = await self._sealed(key, entry, may_keep)
                if sealed is not None:
                    await self._cache.set(key, sealed, entry.kept_for, entry.tags)
                # Forgotten while it was being written: the delete may have overtaken the write on another connection.
                if not may_keep():
                    self._local.take_back(key, entry)
                    await self._cache.delete(key)
        finally:
            if landed.lock is not None:
                await landed.lock.release()

    async def _sealed(self, key: str, entry: Entry, may_keep: Callable[[], bool]) -> bytes | None:
        """As it lies in Redis, made when nobody waits for what is made of the answer; None where it may not be kept by then."""
        await asyncio.sleep(0)
        # Without Redis it is not to be given any longer.
        async with self._lull.turn() if self._cache.state == "up" else nullcontext():
            if not may_keep():
                return None
            sealed = envelope.sealed(entry)
            self._local.weigh(key, entry)
            self._local.trim()
            collect_the_young()
            return sealed

    def _is_touched(self, key: str, entry: Entry, since: int, until: int | None = None) -> bool:
        """Whether a purge since that position (before `until`) drops the entry."""
        return self._log.position > since and self._log.has_touched(key, entry.tags, since, until)

    def _put(self, key: str, entry: Entry, since: int) -> None:
        if self._cache.is_coherent and not self._is_touched(key, entry, since):
            self._local.put(key, entry)

    def _put_away(self, key: str, entry: Entry, since: int) -> None:
        """As `_put`, with room made for it when those who wait have theirs."""
        self._put(key, entry, since)
        asyncio.get_running_loop().call_later(MOST, self._local.trim)

    def _purged(self, purge: Purge) -> None:
        """Heard of every purge, of this replica or another: nothing that it drops is given again, or kept after a load that
        is under way."""
        tags = purge.tags()
        self._log.add(purge)
        self._local.drop_where(lambda key, borne: bool(borne & tags) or purge.drops_key(key))
        self._loads.forget(purge.drops_key)

    async def forget(self, *keys: str) -> None:
        """Drops the entries on every replica, and keeps what is being loaded for them right now from being kept."""
        await self._cache.forget(*keys)

    async def purge_node(self, node: str) -> int:
        """Drops all that came from a node, as `Cache.purge_node`, and whatever is being loaded from it right now."""
        return await self._cache.purge_node(node)

    async def stored(self, node: str, studies: Iterable[str]) -> None:
        """Drops what is outdated once a node has been given instances of these studies: everything of the studies, and its
        answers to searches, in which they may be missing."""
        for study in studies:
            await self._cache.purge_study(study)
        await self._cache.purge_searches(node)

    async def close(self) -> None:
        await self._loads.close()
