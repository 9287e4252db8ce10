"""`cache purge`: one command, and every gateway on the same Redis has forgotten."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.cache.client import Cache
from gateway.cache.tags import patient_tag
from gateway.simulators.dicomweb import DicomwebSimulator
from tests import peers
from tests.cli.commands import Command
from tests.faults.leftovers import eventually
from tests.running import Gateway
from tests.specimens import specimen, uid

STUDY = uid("s")


@pytest.mark.interop
@pytest.mark.parametrize("what", [("--study", STUDY), ("--patient", "I|P"), ("--node", "w"), ("--all",)])
def test_every_running_gateway_asks_its_nodes_anew_after_a_purge(
    command: Command, tmp_path: Path, redis_peer: peers.Redis, what: tuple[str, ...]
) -> None:
    specimen(tmp_path / "files", "P", "s", "1")
    with DicomwebSimulator(tmp_path / "files") as web:
        node = {"id": "w", "name": "w", "adapter": "dicomweb", "connection": {"url": web.url}, "quirks": []}
        node |= {"patient_id_issuer": "I"}
        with Gateway([node], redis_url=redis_peer.url) as one, Gateway([node], redis_url=redis_peer.url) as two:
            path = "/dicom-web/studies?PatientID=P&IssuerOfPatientID=I"
            for gateway in (one, two, one, two):
                assert len(gateway.get(path).json()) == 1
            assert web.operations["search_studies"] == 1
            done = command("cache", "purge", *what, GATEWAY_REDIS_URL=redis_peer.url)
            assert (done.returncode, done.stdout) == (0, "dropped 1 kept answers\n"), done.stderr
            # Both hear of it in their own time.
            assert eventually(lambda: len(one.get(path).json()) == 1 and web.operations["search_studies"] == 2)
            assert len(two.get(path).json()) == 1
            assert web.operations["search_studies"] == 2


@pytest.mark.interop
async def test_a_bar_in_the_id_of_a_patient_is_the_ids(command: Command, redis_peer: peers.Redis) -> None:
    cache = await Cache.open(redis_peer.url, timeout=5)
    assert await cache.set("gw:1:find:w:1", b"kept", 60, frozenset({patient_tag("I", "P|2")}))
    done = await asyncio.to_thread(command, "cache", "purge", "--patient", "I|P|2", GATEWAY_REDIS_URL=redis_peer.url)
    await cache.close()
    assert (done.returncode, done.stdout) == (0, "dropped 1 kept answers\n"), done.stderr


def test_an_embedded_cache_is_out_of_reach_and_the_command_says_what_to_do(command: Command) -> None:
    done = command("cache", "purge", "--all")
    assert done.returncode == 2
    assert "Restart the gateway" in done.stderr
    assert "GATEWAY_REDIS_URL" in done.stderr


def test_a_redis_that_does_not_answer_is_told(command: Command) -> None:
    done = command(
        "cache", "purge", "--study", STUDY, GATEWAY_REDIS_URL=f"redis://:secret@127.0.0.1:{peers.free_port()}"
    )
    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize("words", [(), ("--all", "--node", "w"), ("--patient", "12345"), ("--patient", "I|")])
def test_what_cannot_be_understood_is_refused(command: Command, words: tuple[str, ...]) -> None:
    done = command("cache", "purge", *words, GATEWAY_REDIS_URL="redis://127.0.0.1:9")
    assert done.returncode == 2
