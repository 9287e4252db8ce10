"""A Redis that began anew from what lay on its disk may have what was purged since: that does not come back."""

import pytest
import redis as plain_redis

from gateway.cache.answers import Answers

from .conftest import eventually
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


async def test_what_was_purged_does_not_come_back_with_a_restart_that_no_command_met(redis_server):
    replica, answers = await purged_after_it_was_saved(redis_server)
    redis_server.kill()
    redis_server.start()
    await eventually(lambda: not replica.is_coherent)
    await eventually(lambda: replica.is_coherent)
    got = (await answers.answer(K, 300, Source(NEW), list)).value
    await closed(answers, replica)
    assert got == ["new"]
