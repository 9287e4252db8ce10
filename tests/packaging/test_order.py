"""The files that come first are there, and come first."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.order import LONGEST, ROOT, pytest_collection_modifyitems


def test_every_file_that_comes_first_is_there_once() -> None:
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)


def test_the_longest_come_first_then_those_of_most_tests_and_no_file_is_torn() -> None:
    def items(*names: str) -> list[Any]:
        return [SimpleNamespace(path=ROOT / name, number=number) for number, name in enumerate(names)]

    given = items("a.py", "b.py", "b.py", LONGEST[1], "c.py", LONGEST[0], LONGEST[0], "b.py")
    pytest_collection_modifyitems(given)
    assert [item.number for item in given] == [5, 6, 3, 1, 2, 7, 0, 4]
    assert {item.path.name for item in given} == {Path(name).name for name in ("a.py", "b.py", "c.py", *LONGEST[:2])}
