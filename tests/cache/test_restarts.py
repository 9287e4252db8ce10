"""A Redis that began anew from what lay on its disk may have what was purged since: that does not come back."""

import asyncio

import pytest
import redis as plain_redis

from gateway.cache import session
from gateway.cache.answers import Answers

from .conftest import await_socket, eventually
from .test_answers import Source, kept
from .test_missed_purges import NEW, OLD, K, closed, opened

pytestmark = pytest.mark.interop


async def purged_after_it_was_saved(server):
    """A replica and its answers; the file that the server begins with has one that was purged since."""
    replica = await opened(server)
    answers = Answers(replica, local_bytes=0)
    await answers.answer(K, 300, Source(OLD), list)
    assert await kept(replica, K) == ["old"]
    plain_redis.Redis(unix_socket_path=str(server.socket)).save()
    await replica.purge_study("1.2")
    assert await replica.get(K) is None
    return replica, answers


async def given_once_coherent(replica, answers):
    """What a caller gets then; it is the last one."""
    await eventually(lambda: replica.is_coherent)
    given = (await answers.answer(K, 300, Source(NEW), list)).value
    await closed(answers, replica)
    return given


async def test_what_was_purged_does_not_come_back_with_a_restart_that_no_command_met(redis_server):
    replica, answers = await purged_after_it_was_saved(redis_server)
    redis_server.kill()
    redis_server.start()
    await eventually(lambda: not replica.is_coherent)
    assert await given_once_coherent(replica, answers) == ["new"]


async def test_what_was_purged_long_before_a_restart_does_not_come_back_from_an_older_file(redis_server, monkeypatch):
    """Redis writes its file every few minutes, or once an hour, where it is not told otherwise."""
    monkeypatch.setattr(session, "_DOUBTFUL", 0.2)
    replica, answers = await purged_after_it_was_saved(redis_server)
    await asyncio.sleep(0.3)
    redis_server.kill()
    await eventually(lambda: not replica.is_coherent)
    redis_server.start()
    assert await given_once_coherent(replica, answers) == ["new"]


async def test_a_redis_that_read_its_file_long_before_it_was_out_of_reach_keeps_what_it_has(redis_server, monkeypatch):
    monkeypatch.setattr(session, "_NOTICED", 0.5)
    plain = plain_redis.Redis(unix_socket_path=str(redis_server.socket))
    plain.set("another application", "x")
    plain.save()
    redis_server.kill()
    redis_server.start()
    await_socket(redis_server.socket)
    replica = await opened(redis_server)
    await replica.set(K, b"kept", 300)
    await eventually(lambda: plain.info()["uptime_in_seconds"] >= 2)
    assert plain.info()["rdb_last_load_keys_loaded"] == 1
    replica._fall("a moment")
    await eventually(lambda: replica.is_coherent)
    got = await replica.get(K)
    await closed(replica)
    assert got == b"kept"


async def test_what_was_purged_does_not_come_back_when_all_replicas_were_gone_as_redis_began_anew(redis_server):
    """As after a power cut, of which Redis and the gateway come back together."""
    replica, answers = await purged_after_it_was_saved(redis_server)
    redis_server.kill()
    await closed(answers, replica)
    redis_server.start()
    await_socket(redis_server.socket)
    replica = await opened(redis_server)
    assert await given_once_coherent(replica, Answers(replica, local_bytes=0)) == ["new"]


async def test_a_replica_that_comes_later_keeps_what_others_kept_in_a_redis_that_had_read_its_file(redis_server):
    replica, answers = await purged_after_it_was_saved(redis_server)
    await closed(answers, replica)
    redis_server.kill()
    redis_server.start()
    await_socket(redis_server.socket)
    first = await opened(redis_server)
    await first.set(K, b"kept", 300)
    second = await opened(redis_server)
    got = await second.get(K)
    await closed(first, second)
    assert got == b"kept"
