"""An export whose disk is full waits for room, and not for ever: each try asks the hospitals again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.cache.work import Alone
from gateway.exporting import engine
from gateway.exporting.engine import Engine, Made
from gateway.store import exports as records
from gateway.store.exports import FAILED, Body, Exports, Job, Step

ID = "0" * 32


class Disk:
    """Has no room for so many files of lines, or of anything that is written of a job at work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refusals: int, of: str = ".ndjson") -> None:
        self.refusals, self._of, self._write = refusals, of, records._write
        monkeypatch.setattr(records, "_write", self.write)
        monkeypatch.setattr(engine, "_AFTER_FAULT", 0.0)
        monkeypatch.setattr(engine, "_MOST_TRIES", 5)

    def write(self, path: Path, content: bytes) -> None:
        if self._of in path.name and path.parent.name == ID and self.refusals:
            self.refusals -= 1
            raise OSError(28, "No space left on device")
        self._write(path, content)


async def ended(directory: Path) -> tuple[Step, int]:
    """The last step of an export of one page, and how often its page was made."""
    asked: list[str] = []

    async def work(job: Job, before: Step) -> Made:
        asked.append(job.id)
        return Made({}, [Body("ImagingStudy", 1, b"{}\n")], outcome="complete")

    exports = Exports(directory, 10**6)
    one = Engine(exports, Alone(), work, at_once=1, seconds=60)
    await one.open()
    await one.begin(Job(ID, {}, {}), lambda jobs: None)
    async with asyncio.timeout(20):
        while not exports.last(ID).outcome:
            await asyncio.sleep(0.01)
    await one.close()
    return exports.last(ID), len(asked)


async def test_an_export_goes_on_when_there_is_room_again(tmp_path: Path, monkeypatch: Any) -> None:
    Disk(monkeypatch, refusals=3)
    last, tries = await ended(tmp_path)
    assert (last.outcome, tries) == ("complete", 4)


async def test_an_export_fails_by_name_where_there_is_no_room_for_long(tmp_path: Path, monkeypatch: Any) -> None:
    Disk(monkeypatch, refusals=1000)
    last, tries = await ended(tmp_path)
    assert (last.outcome, tries) == (FAILED, 5)
    assert "disk" in last.state["failure"]["detail"]
    assert not list(tmp_path.rglob("*.ndjson"))


async def test_the_hospitals_are_not_asked_while_there_is_no_room_for_the_word_that_it_failed(
    tmp_path: Path, monkeypatch: Any
) -> None:
    Disk(monkeypatch, refusals=20, of="")
    last, tries = await ended(tmp_path)
    assert (last.outcome, tries) == (FAILED, 5)
