"""Two workers against one on the cached path, with one Redis between them, and one upstream call for a crowd of misses."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from urllib.parse import urlsplit

from gateway.settings import Settings
from tests import peers
from tests.bench import load
from tests.bench.measuring import Bar, Bench, Side, say
from tests.catalogue import CatalogueNodes, catalogue_nodes, made_up

JSON = "application/dicom+json"
CROWD = 200
_NODES = {"quirks": [], "search_deadline": 60}
_LONG = {"find_ttl": 3600, "location_ttl": 3600, "probe": "false", "cache_timeout": 5}


def run(bench: Bench) -> None:
    say("workers")
    for what, settings in (("Kept answers", {}), ("Cached look-ups, each answer made anew", {"kept_bytes": 0})):
        with bench.attempting(f"two workers: {what}"):
            _cached(bench, what, settings)
    with bench.attempting("a crowd of identical misses"):
        _crowd(bench)


def _cached(bench: Bench, name: str, more: dict[str, object]) -> None:
    """Of kept answers wrk, which shares the two cores, takes so much that two workers cannot have both: one worker is asked once more
    on the one core that each of two has."""
    rows = made_up(101, nodes=1)
    query = f"StudyInstanceUID={rows[0][0]['StudyInstanceUID']}"
    with catalogue_nodes(rows) as nodes, peers.redis() as redis, ExitStack() as stack:
        settings = {**_LONG, **more, "redis_url": redis.url}
        one = stack.enter_context(bench.gateway(nodes.tables(**_NODES), **settings))
        two, note = stack.enter_context(_two(bench, nodes, settings))
        for what, asked in (("one study", query), ("101 studies", "limit=101")):
            both, alone = _load(bench, two, asked), _load(bench, [one.url], asked)
            mine = Side("two workers", both.rate, cost=both.cost)
            other = Side("one worker", alone.rate, bar=Bar("at least", 1.5), cost=alone.cost)
            confined = partial(_on_one_core, one.process.pid, _load(bench, [one.url], asked).rate)
            alike = Side("one worker and what asks it on one core", confined, bar=Bar("at least", 1.5))
            others = [other] if more else [other, alike]
            bench.run(f"{name}: QIDO-RS {what}", "requests/s", [mine], others, partial(_told, note, both))


def _on_one_core(process: int, rate: Callable[[], float]) -> float:
    """The rate while the process and whoever is started here have one core together."""
    threads = [*map(int, os.listdir(f"/proc/{process}/task")), threading.get_native_id()]
    cores = os.sched_getaffinity(0)
    try:
        for thread in threads:
            os.sched_setaffinity(thread, {min(cores)})
        return rate()
    finally:
        for thread in threads:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cores)


@contextmanager
def _two(bench: Bench, nodes: CatalogueNodes, settings: dict[str, object]) -> Iterator[tuple[list[str], str]]:
    """Their URLs. A gateway without GATEWAY_WORKERS is started twice, and each is asked by half of the connections."""
    tables = nodes.tables(**_NODES)
    if "workers" in Settings.model_fields:
        with bench.gateway(tables, workers=2, **settings) as both:
            yield [both.url], "serve --workers 2"
        return
    with bench.gateway(tables, **settings) as first, bench.gateway(tables, **settings) as second:
        yield [first.url, second.url], "two processes on two ports"


def _load(bench: Bench, roots: Sequence[str], query: str) -> load.Load:
    urls = [f"{root}/dicom-web/studies?{query}" for root in roots]
    return load.Load(urls, JSON, bench.identity.token, bench.seconds)


def _told(note: str, both: load.Load) -> str:
    """What the load client takes of the cores, the workers do not have."""
    return f"{note}; of what both workers and wrk take wrk has {both.share:.0%};"


def _crowd(bench: Bench) -> None:
    """A slow node, so that all questions are under way before the first answer."""
    with catalogue_nodes(made_up(40, nodes=1), delay=1.0) as nodes, peers.redis() as redis:
        settings = {**_LONG, "redis_url": redis.url}
        with _two(bench, nodes, settings) as (roots, note):
            _answers(roots, bench.identity.token, "StudyDate=18000101-18000102", len(roots))  # everybody is awake
            nodes.reset()
            answers = _answers(roots, bench.identity.token, "StudyDate=19000101-21000101", CROWD)
            asked = nodes.counts()[0].requests
    # Each port writes its own RetrieveURL.
    if len(set(answers)) != len(roots) or not all(answer.startswith(b"HTTP/1.1 200") for answer in answers):
        raise RuntimeError(f"the crowd was not told one thing: {Counter(answer[:15] for answer in answers)}")
    name = f"Upstream calls for {CROWD} identical misses at once, over two workers: made / needed"
    bench.count(name, "calls", asked, 1, Bar("equal"), note)


def _answers(roots: Sequence[str], token: str, query: str, count: int) -> list[bytes]:
    """Status line and body of each answer, all asked for at once on connections of their own."""
    return asyncio.run(_gathered(roots, token, query, count))


async def _gathered(roots: Sequence[str], token: str, query: str, count: int) -> list[bytes]:
    return await asyncio.gather(*(_answer(roots[number % len(roots)], token, query) for number in range(count)))


async def _answer(root: str, token: str, query: str) -> bytes:
    host = urlsplit(root)
    reader, writer = await asyncio.open_connection(host.hostname, host.port)
    try:
        lines = [f"GET /dicom-web/studies?{query} HTTP/1.1", f"Host: {host.netloc}", f"Accept: {JSON}"]
        lines += [f"Authorization: Bearer {token}", "Connection: close", "", ""]
        writer.write("\r\n".join(lines).encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return head.partition(b"\r\n")[0] + body
    finally:
        writer.close()
