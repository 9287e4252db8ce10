import asyncio
import contextlib
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cache.spool import NotSpooled, Spool
from gateway.errors import SettingsError
from gateway.leftovers import claim, sweep
from gateway.model.query import Ref

from .conftest import eventually

ROOT = Path(__file__).parents[2]
MB = 1024 * 1024


@pytest.fixture
async def spool(tmp_path):
    opened = Spool(tmp_path, max_bytes=10 * MB)
    await opened.open()
    yield opened
    await opened.close()


async def put(spool, instance, size=100, series="2", study="1", node="n", content=None):
    async with spool.begin(node, study, series, instance, transfer_syntax="1.2.840.10008.1.2.1") as writer:
        left = content if content is not None else os.urandom(1) * size
        for first in range(0, len(left), MB):
            if not await writer.write(left[first : first + MB]):
                return None
        return await writer.commit()


def on_disk(spool) -> list[Path]:
    return [path for path in spool.directory.iterdir() if path.name != "lock"]


def bytes_on_disk(spool) -> int:
    total = 0
    for path in on_disk(spool):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def names(found) -> list[str]:
    return [each.instance for each in found]


@pytest.mark.parametrize("study", ["1", None])
async def test_what_comes_of_a_retrieve_that_began_before_its_study_was_forgotten_is_not_taken(spool, study):
    """It may be what the purge was about. What is retrieved after that is taken, and so is another study's."""
    since = spool.position
    async with spool.begin("n", "1", "2", "under way", since=since) as writer:
        await writer.write(b"old")
        spool.forget("n", study)
        await writer.commit()
    for node, of, instance, begun in (
        ("n", "1", "old", since),
        ("n", "1", "new", spool.position),
        ("m", "1", "new", since),
    ):
        async with spool.begin(node, of, "2", instance, since=begun) as writer:
            await writer.write(b"more")
            await writer.commit()
    assert names(spool.find("n", "1")) == ["new"]
    assert names(spool.find("m", "1")) == ["new"]
    await eventually(lambda: len(on_disk(spool)) == 2)
    assert spool.used == 8


@pytest.mark.parametrize("size", [0, 1, 512 * 1024, 3 * MB + 17])
async def test_an_instance_comes_back_byte_for_byte(spool, size):
    content = os.urandom(size)
    spooled = await put(spool, "3", content=content)
    assert spool.find("n", "1", "2", "3") == [spooled]
    assert (spooled.size, spooled.transfer_syntax) == (size, "1.2.840.10008.1.2.1")
    with spool.pin(spooled) as path:
        assert path.read_bytes() == content
    assert spool.used == size == bytes_on_disk(spool)


async def test_instances_are_found_by_node_study_series_and_instance(spool):
    for node, study, series, instance in [
        ("n", "1", "2", "a"),
        ("n", "1", "2", "b"),
        ("n", "1", "3", "c"),
        ("n", "4", "5", "d"),
        ("m", "1", "2", "a"),
    ]:
        await put(spool, instance, series=series, study=study, node=node)
    assert names(spool.find("n", "1")) == ["a", "b", "c"]
    assert names(spool.find("n", "1", "2")) == ["a", "b"]
    assert names(spool.find("n", "1", instance="c")) == ["c"]
    assert names(spool.find("n", "1", "2", "c")) == []
    assert names(spool.find("x", "1")) == []


async def test_directory_and_files_are_private_and_their_names_tell_nothing(spool):
    uid = "1.2.826.0.1.3680043.8.498.1234567890"
    await put(spool, uid, series=uid + ".1", study=uid + ".2", node="hospital")
    assert stat.S_IMODE(spool.directory.stat().st_mode) == 0o700
    for path in on_disk(spool):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert "1.2.826" not in path.name
        assert "hospital" not in path.name
        assert len(path.stem) == 32


async def test_an_unfinished_instance_is_not_found_and_an_aborted_one_leaves_nothing(spool):
    async with spool.begin("n", "1", "2", "3") as writer:
        assert await writer.write(b"x" * MB)
        assert spool.find("n", "1") == []
        assert spool.used == MB == bytes_on_disk(spool)
    assert (spool.used, on_disk(spool)) == (0, [])
    assert not await writer.write(b"x")
    assert await writer.commit() is None


async def test_a_cancelled_writer_leaves_nothing(spool):
    async def write_on():
        async with spool.begin("n", "1", "2", "3") as writer:
            while await writer.write(b"x" * 1000):
                await asyncio.sleep(0)

    for _ in range(20):
        task = asyncio.create_task(write_on())
        await asyncio.sleep(random.random() * 0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (spool.used, on_disk(spool)) == (0, [])


async def test_what_is_larger_than_the_whole_spool_is_refused_and_evicts_no_more_than_it_must(tmp_path):
    spool = Spool(tmp_path, max_bytes=3 * MB)
    await spool.open()
    await put(spool, "small", size=100)
    async with spool.begin("n", "1", "2", "told", size=3 * MB + 1) as writer:
        assert not await writer.write(b"x")
    assert names(spool.find("n", "1")) == ["small"], "a size that is known beforehand costs nobody a place"
    async with spool.begin("n", "1", "2", "untold") as writer:
        taken = [await writer.write(b"x" * MB) for _ in range(5)]
        assert taken == [True, True, True, False, False]
        assert await writer.commit() is None
    assert (spool.find("n", "1"), spool.used, on_disk(spool)) == ([], 0, [])
    await spool.close()


async def test_the_least_recently_used_goes_first(spool):
    for name in "abcde":
        await put(spool, name, size=2 * MB)
    with spool.pin(spool.find("n", "1", instance="a")[0]):
        pass
    await put(spool, "f", size=3 * MB)
    assert names(spool.find("n", "1")) == ["a", "d", "e", "f"]
    assert bytes_on_disk(spool) == spool.used == 9 * MB


async def test_an_instance_in_use_is_never_removed_and_goes_with_its_last_reader(spool):
    spooled = await put(spool, "a", size=6 * MB)
    with spool.pin(spooled) as path:
        assert await put(spool, "b", size=5 * MB) is None, "there is no room beside what is in use"
        with spool.pin(spooled):
            spool.forget("n")
        assert spool.find("n", "1") == []
        assert path.stat().st_size == 6 * MB
        assert spool.used == 6 * MB
        with pytest.raises(NotSpooled), spool.pin(spooled):
            pass
    await eventually(lambda: not path.exists())
    assert spool.used == 0
    assert await put(spool, "b", size=5 * MB)


async def test_a_series_is_whole_only_while_every_one_of_its_instances_is_there(spool):
    series = Ref("1", "2")
    for name in "abc":
        await put(spool, name, size=3 * MB)
    assert not spool.is_complete("n", "1", "2")
    assert not spool.complete("n", series, ["a", "b", "c", "refused"])
    assert not spool.complete("n", series, [])
    assert not spool.complete("n", Ref("1", "2", "a"), ["a"])
    assert not spool.is_complete("n", "1", "2")
    assert spool.complete("n", series, ["a", "b", "c"])
    assert spool.is_complete("n", "1", "2")
    assert not spool.is_complete("n", "1"), "a whole series does not make a whole study"
    assert not spool.is_complete("m", "1", "2")
    await put(spool, "other", size=2 * MB, study="9")
    assert not spool.is_complete("n", "1", "2"), "one of them had to make room"
    assert names(spool.find("n", "1", "2")) == ["b", "c"]


async def test_a_whole_study_has_whole_series_and_loses_them_together(spool):
    await put(spool, "a", series="2")
    await put(spool, "b", series="3")
    assert spool.complete("n", Ref("1"), ["a", "b"])
    assert spool.is_complete("n", "1")
    assert spool.is_complete("n", "1", "2")
    assert spool.is_complete("n", "1", "3")
    assert not spool.is_complete("n", "1", "unknown"), "the node has to be asked"
    spool.forget("n", "1")
    assert not spool.is_complete("n", "1")
    assert not spool.is_complete("n", "1", "3")


async def test_what_the_node_no_longer_has_is_not_part_of_the_whole(spool):
    for name in "abc":
        await put(spool, name)
    assert spool.complete("n", Ref("1", "2"), ["a", "c"])
    assert names(spool.find("n", "1", "2")) == ["a", "c"]
    assert spool.is_complete("n", "1", "2")


async def test_nothing_is_found_after_its_time_and_the_file_goes_by_itself(tmp_path):
    spool = Spool(tmp_path, max_bytes=MB, max_age=1.0)
    await spool.open()
    spooled = await put(spool, "a")
    assert spool.complete("n", Ref("1", "2"), ["a"])
    assert spool.find("n", "1") == [spooled]
    await asyncio.sleep(1.0)
    assert spool.find("n", "1") == []
    assert not spool.is_complete("n", "1", "2")
    with pytest.raises(NotSpooled), spool.pin(spooled):
        pass
    await eventually(lambda: on_disk(spool) == [] and spool.used == 0)
    await spool.close()


async def test_several_writers_of_one_instance_leave_one_and_readers_of_an_earlier_copy_keep_it(spool):
    first = await put(spool, "a", content=b"first")
    with spool.pin(first) as path:
        copies = await asyncio.gather(*(put(spool, "a", content=b"%d" % n * MB) for n in range(4)))
        assert all(copies)
        assert path.read_bytes() == b"first"
    found = spool.find("n", "1")
    assert len(found) == 1
    with spool.pin(found[0]) as path:
        content = path.read_bytes()
        assert content in {b"%d" % n * MB for n in range(4)}
    await eventually(lambda: len(on_disk(spool)) == 1)
    assert spool.used == MB


async def test_the_bound_holds_at_every_moment_with_many_writers_and_readers(tmp_path):
    spool = Spool(tmp_path, max_bytes=4 * MB)
    await spool.open()
    chance, refused, damaged, largest = random.Random(7), 0, 0, 0

    async def work(number):
        nonlocal refused, damaged, largest
        for turn in range(12):
            content = bytes([number]) * chance.randrange(1, MB)
            spooled = await put(spool, f"{number}.{turn}", content=content)
            refused += spooled is None
            largest = max(largest, bytes_on_disk(spool))
            for found in chance.sample(spool.find("n", "1"), min(2, len(spool.find("n", "1")))):
                try:
                    with spool.pin(found) as path:
                        await asyncio.sleep(chance.random() * 0.002)
                        damaged += path.read_bytes() != bytes([int(found.instance.split(".")[0])]) * found.size
                except NotSpooled:
                    pass

    await asyncio.gather(*(work(number) for number in range(10)))
    assert damaged == 0
    assert 0 < largest <= 4 * MB
    await eventually(lambda: bytes_on_disk(spool) == spool.used)
    await spool.close()


async def test_room_is_written_to_only_when_what_made_it_is_off_the_disk(tmp_path, monkeypatch):
    at_once = Path.unlink

    def slowly(path, missing_ok=False):
        time.sleep(0.2)
        at_once(path, missing_ok=missing_ok)

    spool = Spool(tmp_path, max_bytes=4 * MB)
    await spool.open()
    await put(spool, "whole", content=b"w" * 4 * MB)
    monkeypatch.setattr(Path, "unlink", slowly)

    async def put_and_look(name):
        await put(spool, name, content=b"x" * MB)
        return bytes_on_disk(spool)

    assert max(await asyncio.gather(put_and_look("one"), put_and_look("two"))) <= 4 * MB
    await spool.close()


async def test_a_full_disk_ends_the_spooling_and_not_the_stream(spool, monkeypatch):
    def full(self, block):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gateway.cache.spool.Writer._write", full)
    async with spool.begin("n", "1", "2", "3") as writer:
        assert not await writer.write(b"x" * MB)
        assert not await writer.write(b"x")
        assert await writer.commit() is None
    assert (spool.used, on_disk(spool)) == (0, [])


@pytest.mark.parametrize("budget", [0, None])
async def test_a_spool_that_is_off_takes_nothing_and_finds_nothing(tmp_path, budget):
    spool = Spool(tmp_path, max_bytes=budget)
    await spool.open()
    assert await put(spool, "a") is None
    assert spool.find("n", "1") == []
    assert not spool.complete("n", Ref("1", "2"), ["a"])
    assert list(tmp_path.iterdir()) == []
    await spool.close()


async def test_closing_removes_everything_and_writers_still_at_work_take_nothing_more(tmp_path):
    before = asyncio.all_tasks()
    spool = Spool(tmp_path, max_bytes=10 * MB)
    await spool.open()
    await put(spool, "a")
    async with spool.begin("n", "1", "2", "b") as writer:
        await writer.write(b"x" * MB)
        await spool.close()
        assert not await writer.write(b"x" * MB)
        assert await writer.commit() is None
    assert list(tmp_path.iterdir()) == []
    assert spool.find("n", "1") == []
    assert asyncio.all_tasks() == before


async def test_a_directory_that_cannot_be_used_is_named_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="file"):
        await Spool(tmp_path / "file").open()


async def test_what_a_killed_process_left_goes_at_the_next_open_and_that_of_a_living_one_stays(tmp_path, spool):
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from gateway.cache.spool import Spool\n"
        "async def main():\n"
        "    spool = Spool(Path(sys.argv[1]))\n"
        "    await spool.open()\n"
        "    writer = spool.begin('n', '1', '2', '3')\n"
        "    await writer.write(b'x' * 1048576)\n"
        "    print(spool.directory, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    left = Path((await asyncio.to_thread(other.stdout.readline)).strip())
    assert sweep(tmp_path) == 0
    assert left.exists()
    assert spool.directory.exists()
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()
    assert list(left.glob("*.part"))
    successor = Spool(tmp_path)
    await successor.open()
    assert not left.exists()
    assert spool.directory.exists()
    await successor.close()


def test_a_directory_that_is_being_claimed_is_left_alone_and_an_old_one_without_a_lock_is_not(tmp_path):
    directory, lock = claim(tmp_path)
    (directory / "lock").unlink()
    assert sweep(tmp_path) == 0
    past = time.time() - 3600
    os.utime(directory, (past, past))
    assert sweep(tmp_path) == 1
    os.close(lock)


def test_foreign_things_in_the_directory_are_left_alone(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "imaging-gateway-spool-link").symlink_to(outside)
    (tmp_path / "imaging-gateway-spool-file").write_text("")
    assert sweep(tmp_path) == 0
    assert outside.exists()


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "pin", "unpin", "forget", "delete", "whole", "age"]),
        st.integers(0, 5),
        st.integers(1, 60),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_the_index_never_lies_about_room_wholeness_or_files_in_use(actions):
    from gateway.cache.shelf import Shelf, SpooledInstance

    now, files, later, pinned, serial = [0.0], {}, set(), [], 0
    shelf = Shelf(100, 50.0, lambda: now[0])

    def delete(paths):
        for path in paths:
            assert all(entry.instance.path != path for entry in pinned), "a file was taken from under its reader"
            files.pop(path, None)
            later.discard(path)
        shelf.gone(paths)

    for action, number, size in actions:
        found = shelf.find("n", "1")
        if action == "put":
            doomed = shelf.make_room(0, size)
            if doomed is not None:
                delete(doomed)
                serial += 1
                path = Path(str(serial))
                files[path] = size
                delete(shelf.admit(SpooledInstance(path, "n", "1", str(number % 2), str(number), size, "")))
        elif action == "pin" and found:
            pinned.append(shelf.pin(found[number % len(found)]))
        elif action == "unpin" and pinned:
            later.update(shelf.unpin(pinned.pop(number % len(pinned))))
        elif action == "forget":
            later.update(shelf.forget("n"))
        elif action == "delete":
            delete(list(later))
        elif action == "whole":
            done, doomed = shelf.complete(
                "n", Ref("1", str(number % 2)), {str(n) for n in range(number % 2, size % 6, 2)}
            )
            delete(doomed)
            if done:
                assert names(shelf.find("n", "1", str(number % 2))) != []
        elif action == "age":
            whole = {s: set(names(shelf.find("n", "1", s))) for s in "01" if shelf.is_complete("n", "1", s)}
            now[0] += size
            delete(shelf.expire())
            for series, before in whole.items():
                assert not shelf.is_complete("n", "1", series) or set(names(shelf.find("n", "1", series))) == before
        assert shelf.used == sum(size for path, size in files.items() if path not in later)
        assert sum(files.values()) <= 100
        assert all(each.path in files for each in shelf.find("n", "1"))
