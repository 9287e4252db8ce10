"""Redis dies, hangs, fills up and comes back under load: no request fails, and nothing older than declared is shown."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests import peers
from tests.faults.leftovers import eventually
from tests.faults.load import Load, load, settled


def is_up(running: Load) -> bool:
    assert running.gateway.app is not None
    return running.gateway.app.state.cache_state() == "up"


def asked(peer: peers.Redis) -> redis.Redis:
    """A client of the test's own; a server that changes its role closes every connection, so it asks once more."""
    return redis.Redis.from_url(peer.url, retry=Retry(NoBackoff(), 1))


def test_a_redis_that_is_killed_under_load_costs_no_request(tmp_path: Path) -> None:
    with peers.redis() as peer, load(tmp_path, peer.url) as running:
        running.run(0.5)
        running.store()
        peer.kill()
        running.run(0.5)
        running.store()
        settled(running)
        assert not is_up(running)
    running.assert_nothing_failed_and_nothing_was_stale()


def test_a_redis_that_is_restarted_on_its_port_under_load_is_used_again(tmp_path: Path) -> None:
    with ExitStack() as stack:
        peer = stack.enter_context(peers.redis())
        running = stack.enter_context(load(tmp_path, peer.url))
        for _ in range(2):
            running.run(0.3)
            running.store()
            peer.kill()
            running.run(0.3)
            running.store()
            peer = stack.enter_context(peers.redis(peer.port))
            assert eventually(lambda: is_up(running), 10)
            running.store()
        assert eventually(lambda peer=peer: asked(peer).dbsize() > 0, 10), "nothing is kept"  # type: ignore[misc]
        settled(running)
    running.assert_nothing_failed_and_nothing_was_stale()


def test_a_redis_that_is_full_under_load_costs_no_request(tmp_path: Path) -> None:
    with peers.redis() as peer, load(tmp_path, peer.url) as running:
        running.run(0.5)
        running.store()
        server = asked(peer)
        server.config_set("maxmemory-policy", "noeviction")
        server.config_set("maxmemory", "1kb")
        running.run(0.5)
        running.store()
        settled(running)
        assert server.info("stats")["total_error_replies"] > 0, "nothing was refused"
        server.config_set("maxmemory", "0")
        assert eventually(lambda: server.dbsize() > 0, 10), "nothing is kept"
        running.store()
        settled(running)
        assert is_up(running)
    running.assert_nothing_failed_and_nothing_was_stale()


def test_a_redis_that_hangs_under_load_costs_no_request_and_brings_nothing_old_back(tmp_path: Path) -> None:
    with peers.redis() as peer, load(tmp_path, peer.url) as running:
        try:
            for _ in range(2):
                running.run(0.5)
                running.store()
                os.kill(peer.process.pid, signal.SIGSTOP)
                running.run(0.2)
                running.store()
                assert eventually(lambda: not is_up(running), 10)
                running.run(1.5)
                running.store()
                os.kill(peer.process.pid, signal.SIGCONT)
                assert eventually(lambda: is_up(running), 10)
            settled(running)
        finally:
            os.kill(peer.process.pid, signal.SIGCONT)
    running.assert_nothing_failed_and_nothing_was_stale()
