"""What is on disk of an export: a step counts once or not at all, whoever does it and whenever it is killed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gateway.errors import SettingsError, TooLarge
from gateway.store import exports as records
from gateway.store.exports import MARK, Body, Exports, Job, Step

ID = "0" * 32


def kept_in(directory: Path, most: int = 1_000_000) -> Exports:
    exports = Exports(directory, most)
    exports.open()
    return exports


@pytest.fixture
def exports(tmp_path: Path) -> Exports:
    made = kept_in(tmp_path / "kept")
    made.create(Job(ID, {"who": "me"}, {"what": "all"}))
    return made


def lines(text: bytes = b"{}\n") -> list[Body]:
    return [Body("ImagingStudy", text.count(b"\n"), text)]


def mark(letter: bytes) -> bytes:
    return letter * MARK


def test_a_job_is_read_as_it_was_asked_for(exports: Exports) -> None:
    job = exports.job(ID)
    assert job is not None
    assert (job.owner, job.asked) == ({"who": "me"}, {"what": "all"})
    assert exports.last(ID).number == 0
    assert exports.unfinished() == [ID]


@pytest.mark.parametrize("name", ["", "..", "../kept", "0" * 31, "x" * 32, f"{ID}/"])
def test_only_an_id_names_a_job(exports: Exports, name: str) -> None:
    assert exports.job(name) is None


def test_of_two_who_do_the_same_step_the_first_counts(exports: Exports) -> None:
    before = exports.last(ID)
    assert exports.commit(ID, before, {"after": 1}, lines(b"first\n"), [mark(b"a")])
    assert not exports.commit(ID, before, {"after": 2}, lines(b"second\n"), [mark(b"b")])
    (step,) = exports.steps(ID)
    assert step.state == {"after": 1}
    assert exports.path(ID, step.files[0].name).read_bytes() == b"first\n"
    assert exports.seen(ID, {mark(b"a"), mark(b"b")}) == {mark(b"a")}
    assert len(list((exports.directory / ID).glob("*.ndjson"))) == 1


def test_a_step_that_was_killed_before_its_end_has_given_nothing(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(records.os, "link", killed)
        with pytest.raises(SystemExit):
            exports.commit(ID, Step(), {}, lines(), [mark(b"a")])
    assert exports.last(ID).number == 0
    assert exports.seen(ID, {mark(b"a")}) == set()
    assert exports.commit(ID, Step(), {}, lines(), [mark(b"a")])
    assert exports.last(ID).size == 3


def test_files_are_for_this_user_only(exports: Exports) -> None:
    exports.commit(ID, Step(), {}, lines(), [mark(b"a")])
    for path in exports.directory.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0
    assert exports.directory.stat().st_mode & 0o777 == 0o700


def test_a_job_that_is_removed_can_be_gone_on_with_by_nobody(exports: Exports) -> None:
    assert exports.remove(ID)
    assert not exports.remove(ID)
    assert exports.job(ID) is None
    with pytest.raises(FileNotFoundError):
        exports.commit(ID, Step(), {}, lines())
    with pytest.raises(FileNotFoundError):
        exports.touch(ID)
    assert list(exports.directory.iterdir()) == []


def test_lines_beyond_the_ceiling_are_not_written(tmp_path: Path) -> None:
    exports = kept_in(tmp_path / "kept", most=5)
    exports.create(Job(ID, {}, {}))
    assert exports.commit(ID, exports.last(ID), {}, lines())
    with pytest.raises(TooLarge):
        exports.commit(ID, exports.last(ID), {}, lines())
    assert exports.commit(ID, exports.last(ID), {"failure": "no room"}, [], outcome="failed")
    assert exports.unfinished() == []


def test_so_many_jobs_are_kept_and_no_more(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_KEPT", 1)
    with pytest.raises(TooLarge):
        exports.create(Job("1" * 32, {}, {}))


def test_what_has_been_at_rest_long_enough_is_removed(exports: Exports) -> None:
    (exports.directory / ".gone-x").mkdir()
    long_ago = time.time() - 100
    for path in (exports.directory / ".gone-x", exports.directory / ID / "alive"):
        os.utime(path, (long_ago, long_ago))
    assert exports.sweep(200) == []
    assert exports.sweep(50) == [ID]
    assert list(exports.directory.iterdir()) == []


def test_a_directory_that_cannot_be_used_is_told_by_the_settings_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="GATEWAY_EXPORT_DIRECTORY"):
        kept_in(tmp_path / "file")


def test_a_step_that_finds_no_room_leaves_nothing_behind(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    write = records._write

    def full(path: Path, content: bytes) -> None:
        if path.suffix == ".marks":
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(records, "_write", full)
    for _ in range(3):  # the engine tries again every five seconds
        with pytest.raises(OSError, match="No space"):
            exports.commit(ID, exports.last(ID), {}, lines(), [mark(b"m")])
    assert list(exports.directory.rglob("*.ndjson")) == []
