"""The node file changes under a gateway at work: requests under way end whole, new ones see the new hospitals."""

from __future__ import annotations

import asyncio
import http.client
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import settings
from gateway.assembly import Builder, build_node
from gateway.cache.answers import Ttl
from gateway.edge.estate import Estate
from gateway.federation.node import Node
from gateway.federation.nodes import NodeConfig, NodeFile
from gateway.mapping.load import load_all
from gateway.reload import Estates
from gateway.simulators.bulk import ct_series, large_multiframe
from gateway.simulators.dicomweb import DicomwebOptions, DicomwebSimulator
from gateway.simulators.dimse import DimseOptions, DimseSimulator
from gateway.source import Source
from tests import peers
from tests.bench.processes import gateway, node, node_file, simulator
from tests.lifecycle.conftest import (
    Hospitals,
    Stream,
    asked_all_the_time,
    eventually,
    ids,
    listed,
    log,
    put,
    write,
)
from tests.sending import DICOM, body, encoded, instance, read, send, uids


@contextmanager
def large_node(adapter: str, hospitals: Hospitals) -> Iterator[dict[str, Any]]:
    """The hospital with the large instance, behind an adapter."""
    if adapter == "files":
        yield hospitals.node("large", hospitals.large)
        return
    with simulator(adapter, hospitals.large) as peer:
        address: dict[str, object] = {"url": f"{peer.url}/dicom-web"}
        if adapter == "dimse":
            address = {"host": "127.0.0.1", "port": peer.port, "called_ae_title": "SIMULATOR"}
        yield node("large", adapter, address, search_deadline=60)


@pytest.mark.parametrize("adapter", ["files", "dicomweb", "dimse"])
def test_a_stream_from_a_node_that_is_taken_out_ends_whole_and_no_other_request_fails(
    adapter: str, hospitals: Hospitals
) -> None:
    steady, fresh = hospitals.node("steady", hospitals.first), hospitals.node("fresh", hospitals.second)
    with large_node(adapter, hospitals) as large, gateway([large, steady], reload=False, log_level="INFO") as served:
        stream = Stream(served, f"/nodes/large/dicom-web/studies/{hospitals.large_study}")
        assert stream.status == 200
        with asked_all_the_time(f"{served.url}/nodes/steady/dicom-web/studies") as seen:
            write(served, [steady, fresh])
            served.process.send_signal(signal.SIGHUP)
            eventually(lambda: ids(served) == ["steady", "fresh"])
            before = seen[200]
            eventually(lambda: seen[200] > before + 10)
            assert httpx.get(f"{served.url}/nodes/large/dicom-web/studies").status_code == 404
            assert len(httpx.get(f"{served.url}/nodes/fresh/dicom-web/studies").json()) == 1
            assert stream.received < hospitals.large_bytes / 2
            assert stream.rest() > hospitals.large_bytes
        assert set(seen) == {200}, seen
        stream.close()
        assert served.process.poll() is None


def test_a_changed_file_is_seen_without_a_signal_and_unchanged_nodes_keep_their_state(hospitals: Hospitals) -> None:
    steady, fresh = hospitals.node("steady", hospitals.first), hospitals.node("fresh", hospitals.second)
    gone = node("gone", "dicomweb", {"url": "http://127.0.0.1:9/dicom-web"})
    with gateway([steady, gone], probe=False) as served:
        httpx.get(f"{served.url}/dicom-web/studies")
        assert [one["state"] for one in listed(served)["nodes"]] == ["up", "down"]
        write(served, [steady, gone, fresh])
        eventually(lambda: ids(served) == ["steady", "gone", "fresh"])
        assert [one["state"] for one in listed(served)["nodes"]] == ["up", "down", "unknown"]
        # Written in place, by whoever does it that way.
        (served.directory / "nodes.toml").write_text(node_file([fresh, {**steady, "name": "Another name"}]))
        eventually(lambda: ids(served) == ["fresh", "steady"])
        assert listed(served)["nodes"][1]["name"] == "Another name"


def test_a_wrong_file_is_refused_in_one_line_that_names_the_key_and_nothing_changes(hospitals: Hospitals) -> None:
    steady = hospitals.node("steady", hospitals.first)
    with gateway([steady], reload=False) as served, asked_all_the_time(f"{served.url}/dicom-web/studies") as seen:
        wrong = node_file(
            [steady, node("bad", "dimse", {"host": "10.0.0.1", "port": 70707, "called_ae_title": "PACS"})]
        )
        for text, said in (
            (wrong, "node[bad].connection.port: "),
            (wrong.replace("70707", '"${SECRET_PORT}"'), "the environment variable SECRET_PORT is not set"),
            ("[[node]\n", "nodes.toml: is not TOML"),
            (node_file([{**steady, "mapping": "dicom-atlantis"}]), "node[steady].mapping: there is no mapping"),
        ):
            put(served, text)
            before = log(served).count("node file refused")
            served.process.send_signal(signal.SIGHUP)
            state = eventually(lambda said=said: listed(served)["node_file"] if said in str(listed(served)) else None)
            assert state.startswith("refused: ")
            assert "70707" not in state
            assert log(served).count("node file refused") == before + 1
            assert ids(served) == ["steady"]
            assert httpx.get(f"{served.url}/ready").text == "ready"
        write(served, [steady])
        served.process.send_signal(signal.SIGHUP)
        eventually(lambda: listed(served)["node_file"] == "in force")
    assert set(seen) == {200}, seen


def test_a_mapping_that_changes_is_used_from_then_on(hospitals: Hospitals) -> None:
    plain = (Path(__file__).parents[2] / "mappings" / "dicom.toml").read_text()
    mine = plain.replace('format = "dicom"', 'format = "mine"')
    with peers.home() as formats:
        (formats / "mine.toml").write_text(mine)
        steady = hospitals.node("steady", hospitals.first, mapping="mine")
        with gateway([steady], mappings=formats) as served:
            (formats / "new").write_text(mine.replace('format = "mine"', 'format = "other"'))
            (formats / "new").replace(formats / "other.toml")
            write(served, [{**steady, "mapping": "other"}])
            eventually(lambda: listed(served)["nodes"][0]["mapping"] == "other")
            assert len(httpx.get(f"{served.url}/dicom-web/studies").json()) == 1


def test_the_move_receiver_takes_in_a_new_node_that_only_moves(hospitals: Hospitals, tmp_path: Path) -> None:
    port = peers.free_port()
    options = DimseOptions(no_get=True, destinations={"MOVES-HERE": ("127.0.0.1", port)})
    with DimseSimulator(hospitals.first, options=options) as mover, gateway([]) as served:
        receiver = f'[move_receiver]\nae_title = "MOVES-HERE"\nhost = "127.0.0.1"\nport = {port}\n'
        put(served, receiver)
        eventually(lambda: _accepts(port))
        address = {"host": "127.0.0.1", "port": mover.port, "called_ae_title": mover.ae_title}
        put(served, receiver + node_file([node("mover", "dimse", address)]))
        eventually(lambda: ids(served) == ["mover"])
        stream = Stream(served, f"/nodes/mover/dicom-web/studies/{hospitals.first_study}")
        assert (stream.status, stream.rest() > 2 * 32 * 32 * 2) == (200, True)
        stream.close()


def test_the_move_receiver_takes_another_title_on_its_port_though_the_old_one_is_still_in_use(
    hospitals: Hospitals, tmp_path: Path
) -> None:
    port = peers.free_port()
    options = DimseOptions(no_get=True, destinations={"NEW": ("127.0.0.1", port)})
    study = large_multiframe(tmp_path / "large.dcm", 50)

    def receiver(title: str) -> str:
        return f'[move_receiver]\nae_title = "{title}"\nhost = "127.0.0.1"\nport = {port}\n'

    with DimseSimulator(hospitals.first, options=options) as mover:
        address = {"host": "127.0.0.1", "port": mover.port, "called_ae_title": mover.ae_title}
        steady = node("steady", "files", {"directory": str(tmp_path)})
        nodes = node_file([steady, node("mover", "dimse", address)])
        with gateway([]) as served:
            for file in (receiver("OLD") + nodes, nodes, receiver("NEW") + nodes):
                put(served, file)
                served.process.send_signal(signal.SIGHUP)
                eventually(lambda: ids(served) == ["steady", "mover"])
                time.sleep(3)
                if file is not nodes and "OLD" in file:
                    held = Stream(served, f"/nodes/steady/dicom-web/studies/{study}")
            assert listed(served)["node_file"] == "in force"
            stream = Stream(served, f"/nodes/mover/dicom-web/studies/{hospitals.first_study}")
            assert (stream.status, stream.rest() > 2 * 32 * 32 * 2) == (200, True)
            assert held.rest() > 40_000_000
            eventually(lambda: _accepts(port))
            for one in (held, stream):
                one.close()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("adapter", ["files", "dicomweb", "dimse"])
def test_a_stream_that_outlasts_the_time_of_its_node_is_broken_off(adapter: str, hospitals: Hospitals) -> None:
    with large_node(adapter, hospitals) as large, gateway([large], retire_seconds=0.5) as served:
        stream = Stream(served, f"/dicom-web/studies/{hospitals.large_study}")
        assert stream.status == 200
        write(served, [])
        eventually(lambda: ids(served) == [])
        eventually(lambda: "node retired" in log(served))
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            stream.rest()
        assert stream.received < hospitals.large_bytes


def test_a_new_password_is_used_and_the_old_one_is_not_needed_to_see_that(hospitals: Hospitals) -> None:
    options = DicomwebOptions(bearer="right")
    with DicomwebSimulator(hospitals.first, options) as guarded:

        def with_token(token: str) -> str:
            return (
                '[[node]]\nid = "guarded"\nname = "guarded"\nadapter = "dicomweb"\n'
                f'connection = {{ url = "{guarded.url}", auth = {{ kind = "bearer", token = "{token}" }} }}\n'
            )

        with gateway([]) as served:
            put(served, with_token("wrong"))
            eventually(lambda: [one["state"] for one in listed(served)["nodes"]] == ["degraded"])
            put(served, with_token("right"))
            eventually(lambda: [one["state"] for one in listed(served)["nodes"]] == ["up"])


def test_what_was_fetched_from_a_node_that_moved_is_not_shown_as_the_new_ones(tmp_path: Path) -> None:
    """Same node id, same study, same patient, same number of instances: only the bytes tell the two archives apart."""
    study = ct_series(tmp_path / "old", 2, rows=32, columns=32)
    assert ct_series(tmp_path / "new", 2, rows=64, columns=64) == study
    with DimseSimulator(tmp_path / "old") as old, DimseSimulator(tmp_path / "new") as new:

        def at(peer: DimseSimulator) -> dict[str, Any]:
            address = {"host": "127.0.0.1", "port": peer.port, "called_ae_title": peer.ae_title}
            return node("pacs", "dimse", address)

        def rows() -> set[int]:
            found = httpx.get(f"{served.url}/dicom-web/studies/{study}/metadata", timeout=60).json()
            return {one["00280010"]["Value"][0] for one in found}

        with gateway([at(old)], cache=False) as served:
            assert rows() == {32}
            write(served, [at(new)])
            eventually(lambda: rows() == {64})
            assert rows() == {64}


def test_the_file_is_not_watched_where_that_is_turned_off(hospitals: Hospitals) -> None:
    steady, fresh = hospitals.node("steady", hospitals.first), hospitals.node("fresh", hospitals.second)
    with gateway([steady], reload=False) as watched_not, gateway([steady]) as watched:
        for served in (watched_not, watched):
            write(served, [fresh])
        eventually(lambda: ids(watched) == ["fresh"])
        assert ids(watched_not) == ["steady"]


def test_a_file_that_could_not_be_read_is_read_as_soon_as_it_may_be(tmp_path: Path) -> None:
    """The test may run as root, who may read anything: what counts is that the new rights are seen."""
    source = Source(tmp_path / "nodes.toml", None)
    (tmp_path / "nodes.toml").write_text("")
    source.read()
    assert not source.has_changed()
    time.sleep(0.05)  # a kernel's clock ticks that slowly
    (tmp_path / "nodes.toml").chmod(0o600)
    assert any(source.has_changed() for _ in range(2))


def test_a_directory_of_mappings_that_is_lost_for_a_while_does_not_end_the_watch(hospitals: Hospitals) -> None:
    plain = (Path(__file__).parents[2] / "mappings" / "dicom.toml").read_text()
    steady, fresh = hospitals.node("steady", hospitals.first), hospitals.node("fresh", hospitals.second)
    with peers.home() as home:
        formats, lost = home / "formats", home / "lost"
        (home / "real").mkdir()
        (home / "real" / "mine.toml").write_text(plain.replace('format = "dicom"', 'format = "mine"'))
        formats.symlink_to(home / "real")
        lost.symlink_to("x" * 300)
        with gateway([{**steady, "mapping": "mine"}], mappings=formats) as served:
            lost.replace(formats)
            eventually(lambda: "formats: cannot be read" in listed(served)["node_file"])
            formats.unlink()
            formats.symlink_to(home / "real")
            write(served, [{**steady, "mapping": "mine"}, fresh])
            eventually(lambda: ids(served) == ["steady", "fresh"], 20)
            assert listed(served)["node_file"] == "in force"


def test_the_breaker_that_metrics_show_is_the_one_at_work(hospitals: Hospitals) -> None:
    steady, breaker = hospitals.node("steady", hospitals.first), {"failures": 1, "open": 600}
    gone = node("gone", "dicomweb", {"url": "http://127.0.0.1:9/dicom-web"}, retries=0)

    def text(*nodes: dict[str, Any]) -> str:
        table = "\n[node.breaker]\n" + "\n".join(f"{key} = {value}" for key, value in breaker.items())
        return "\n".join(node_file([one]) + table for one in nodes)

    def shown() -> str:
        found = re.search(
            r'^gateway_node_breaker_state\{node="gone"\} (\S+)$', httpx.get(f"{served.url}/metrics").text, re.M
        )
        return found[1] if found else ""

    with gateway([steady], probe=False, find_ttl=0) as served:
        put(served, text(steady, gone))
        eventually(lambda: ids(served) == ["steady", "gone"])
        httpx.get(f"{served.url}/dicom-web/studies")
        assert shown() == "2.0"
        put(served, text(steady, {**gone, "name": "Another"}, {**steady, "id": "bad", "mapping": "none"}))
        eventually(lambda: listed(served)["node_file"] != "in force")
        assert shown() == "2.0"
        put(served, text(steady))
        eventually(lambda: ids(served) == ["steady"])
        eventually(lambda: shown() in ("", "0.0"), 10)


def test_a_certificate_that_is_renewed_is_a_change_too(tmp_path: Path) -> None:
    names = ("ca.pem", "own.pem", "own.key")
    for name in names:
        (tmp_path / name).write_text("old")
    tls = ", ".join(
        f'{key} = "{tmp_path / name}"' for key, name in zip(("ca_bundle", "certificate", "key"), names, strict=True)
    )
    connection = f'connection = {{ url = "https://pacs.example/x", tls = {{ {tls} }} }}'
    (tmp_path / "nodes.toml").write_text(f'[[node]]\nid = "n"\nname = "n"\nadapter = "dicomweb"\n{connection}\n')
    source = Source(tmp_path / "nodes.toml", None)
    for name in names:
        source.read()
        assert not source.has_changed()
        (tmp_path / "new").write_text("new")
        (tmp_path / "new").replace(tmp_path / name)
        assert source.has_changed()


def test_a_study_that_is_being_stored_stays_claimed_for_its_patient_when_the_node_file_changes(tmp_path: Path) -> None:
    """The node is not asked whose the study is, so that only the claim keeps a second patient out of it."""
    first, more, others = (instance("1.2.3", patient=who) for who in "AAB")
    content, stored = body(encoded(first), encoded(more)), threading.Event()
    half = content.index(encoded(more)) + 100
    with DicomwebSimulator(tmp_path) as web:
        table = node("web", "dicomweb", {"url": web.url}, capabilities=["store"], quirks=[], store=True)
        with gateway([table], probe=False) as served, ThreadPoolExecutor(1) as sender:

            def slowly() -> Iterator[bytes]:
                yield content[:half]
                stored.wait(60)
                yield content[half:]

            with httpx.Client(base_url=served.url, timeout=60) as one, httpx.Client(base_url=served.url) as other:
                headers = {"Content-Type": DICOM}
                sending = sender.submit(one.post, "/dicom-web/studies", content=slowly(), headers=headers)
                eventually(lambda: list(tmp_path.rglob("*.dcm")))
                write(served, [{**table, "name": "another name"}])
                eventually(lambda: listed(served)["nodes"][0]["name"] == "another name")
                refused = send(other, others)
                stored.set()
                assert read(sending.result()).stored == uids([first, more])
            assert (refused.status, refused.failed) == (409, {others.SOPInstanceUID: 0xA901})


async def test_a_receiver_that_a_new_file_takes_over_is_not_closed_with_the_last_request_of_an_old_one() -> None:
    is_opening, may_open = asyncio.Event(), asyncio.Event()

    class Slow:
        async def open(self) -> None:
            is_opening.set()
            await may_open.wait()

        async def close(self) -> None:
            """Holds nothing."""

    def make_node(config: NodeConfig, builder: Builder, formats: Any) -> Node:
        made = build_node(config, builder, formats, Ttl())
        builder.built[:] = [Slow()]  # type: ignore[list-item]
        return made

    table = node("slow", "dicomweb", {"url": "http://127.0.0.1:9"})
    receiver = {"host": "127.0.0.1", "port": peers.free_port()}
    with_receiver = NodeFile.model_validate({"move_receiver": receiver})
    later = NodeFile.model_validate({"move_receiver": receiver, "node": [table]})
    seen: list[Estate] = []
    source, formats = Source(Path("nodes.toml"), None, NodeFile()), load_all([])
    estates = Estates(
        settings.read(probe=False),
        source,
        make_node,
        lambda file, formats, nodes: Estate(None, {}, None),  # type: ignore[arg-type]
        seen.append,
        lambda node: None,
    )
    await estates.open(with_receiver, formats)
    with seen[-1].users:
        await estates._put_in_place(NodeFile(), formats)
        opening = asyncio.create_task(estates._put_in_place(later, formats))
        await is_opening.wait()
    await asyncio.sleep(0.2)
    may_open.set()
    await opening
    assert _accepts(receiver["port"])
    await asyncio.sleep(0.5)  # until the probe's connection is over
    await estates.close()
    assert not _accepts(receiver["port"])
