"""Encryption at rest: nothing readable in Redis, and whatever is not ours is a miss."""

import base64
import os

import pytest

from gateway.cache.client import Cache
from gateway.cache.sealing import Seal, seal_of
from gateway.errors import SettingsError

from .conftest import eventually

KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
async def pair(redis_server):
    caches = [await Cache.open(redis_server.url, timeout=5, seal=seal) for seal in (seal_of(KEY), None)]
    await eventually(lambda: all(cache.state == "up" for cache in caches))
    yield caches
    for cache in caches:
        await cache.close()


@pytest.mark.interop
async def test_what_lies_in_redis_is_not_readable_and_comes_back(pair):
    sealed, plain = pair
    for size in (10, 100_000, 1_000_000):
        value = b"ZOLKIEWSKA" + b" " * size
        assert await sealed.set("gw:1:k", value, 60)
        assert b"ZOLKIEWSKA" not in await plain._link.client.get("gw:1:k")
        assert await sealed.get("gw:1:k") == value
        assert await plain.get("gw:1:k") is None


@pytest.mark.interop
async def test_another_key_another_place_a_changed_byte_and_plain_text_are_misses(pair, redis_server):
    sealed, plain = pair
    await sealed.set("gw:1:k", b"value", 60)
    stored = await plain._link.client.get("gw:1:k")
    other = await Cache.open(redis_server.url, timeout=5, seal=Seal(os.urandom(32)))
    assert other.state == "up"
    assert await other.get("gw:1:k") is None
    await plain._link.client.set("gw:1:elsewhere", stored)
    assert await sealed.get("gw:1:elsewhere") is None
    for at in (0, 12, len(stored) - 1):
        await plain._link.client.set("gw:1:k", stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :])
        assert await sealed.get("gw:1:k") is None
    await plain.set("gw:1:k", b"value", 60)
    assert await sealed.get("gw:1:k") is None
    await plain._link.client.set("gw:1:k", b"")
    assert await sealed.get("gw:1:k") is None
    await other.close()


async def test_the_same_value_is_never_the_same_text_twice():
    seal = seal_of(KEY)
    assert seal.close(b"value", "k") != seal.close(b"value", "k")


@pytest.mark.parametrize("wrong", ["", "secret", KEY[:-4], "A" * 44 + "=", base64.b64encode(bytes(16)).decode()])
def test_what_is_not_32_bytes_is_refused_by_name_and_not_shown(wrong):
    with pytest.raises(SettingsError) as refusal:
        seal_of(wrong)
    assert "GATEWAY_CACHE_KEY" in str(refusal.value)
    assert not wrong or wrong not in str(refusal.value)
