"""Large studies for every adapter: 200 MB in one instance, 400 instances of 0.5 MB; and a tiny one to warm up with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.simulators.bulk import ct_series, large_multiframe
from tests import peers


@dataclass(frozen=True)
class Bulk:
    """A directory in memory, and the StudyInstanceUIDs of what it holds."""

    directory: Path
    multiframe: str
    series: str
    tiny: str
    small: Path
    """Another directory, quick to read: the same multi-frame study in 40 MB, the same tiny one, nothing else."""

    @property
    def multiframe_file(self) -> Path:
        return self.directory / "multiframe.dcm"


@pytest.fixture(scope="session")
def bulk() -> Iterator[Bulk]:
    with peers.home() as home:
        directory, small = home / "bulk", home / "small"
        large_multiframe(small / "multiframe.dcm", 40)
        ct_series(small, 8, rows=64, columns=64, key="tiny")
        yield Bulk(
            directory,
            large_multiframe(directory / "multiframe.dcm", 200),
            ct_series(directory / "series", 400),
            ct_series(directory / "tiny", 8, rows=64, columns=64, key="tiny"),
            small,
        )
