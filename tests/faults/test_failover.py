"""Redis fails over by Sentinel under load: no request fails, and nothing older than declared is shown."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis

from gateway.cache.client import Cache
from gateway.errors import SettingsError
from tests import peers
from tests.faults.leftovers import eventually
from tests.faults.load import load, settled
from tests.faults.test_redis import asked, is_up

SERVICE = "mymaster"


def test_a_failover_under_load_costs_no_request_and_the_new_master_is_used(tmp_path: Path) -> None:
    needs_sentinel_urls()
    with (
        peers.redis() as master,
        peers.redis(0, "--replicaof", "127.0.0.1", str(master.port)) as replica,
        peers.sentinel(master.port, SERVICE) as one,
    ):
        watching = asked(replica)
        assert eventually(lambda: watching.info("replication")["master_link_status"] == "up", 20)
        assert eventually(lambda: knows_replica(asked(one)), 20)
        # The first of the two is nobody's, as one that is down.
        url = f"redis+sentinel://127.0.0.1:{peers.free_port()},127.0.0.1:{one.port}/{SERVICE}"
        with load(tmp_path, url) as running:
            assert eventually(lambda: is_up(running), 10)
            running.run(0.5)
            running.store()
            master.kill()
            running.run(0.5)
            running.store()
            assert eventually(lambda: watching.info("replication")["role"] == "master", 30), "no failover"
            assert eventually(lambda: is_up(running), 15)
            running.store()
            assert eventually(lambda: watching.dbsize() > 0, 10), "nothing is kept"
            settled(running)
    running.assert_nothing_failed_and_nothing_was_stale()


def needs_sentinel_urls() -> None:
    try:
        asyncio.run(_opened("redis+sentinel://127.0.0.1:1/none"))
    except SettingsError:
        pytest.skip("this gateway has no Sentinel URLs")


async def _opened(url: str) -> None:
    await (await Cache.open(url)).close()


def knows_replica(sentinel: redis.Redis) -> bool:
    return bool(sentinel.execute_command("SENTINEL", "REPLICAS", SERVICE))
