"""Whoever leaves while a series is brought into the spool."""

from __future__ import annotations

import time
from pathlib import Path

from gateway.simulators.bulk import ct_series
from gateway.simulators.dimse import DimseOptions, DimseSimulator
from tests.faults.leftovers import Watched, eventually
from tests.streaming.test_leaving import asks, dimse_node


def test_a_caller_who_leaves_a_frame_does_not_keep_the_nodes_only_turn(tmp_path: Path) -> None:
    study = ct_series(tmp_path / "pacs", 3, rows=64, columns=64)
    with DimseSimulator(tmp_path / "pacs", options=DimseOptions()) as pacs:
        node = dimse_node("bulk", pacs.port, max_concurrent=1, search_deadline=5.0, first_byte_deadline=30.0)
        with Watched([node], spool=tmp_path / "spool") as gateway:
            rows = gateway.get(f"/dicom-web/studies/{study}/instances").json()
            series = rows[0]["0020000E"]["Value"][0]
            instance = rows[0]["00080018"]["Value"][0]
            assert eventually(gateway.is_idle)
            pacs.options = DimseOptions(delay=20)
            caller = asks(gateway, f"/dicom-web/studies/{study}/series/{series}/instances/{instance}/frames/1")
            assert eventually(lambda: gateway.permits_out() == 1)
            time.sleep(0.5)
            caller.close()
            assert eventually(gateway.is_idle, 8), gateway.under_way()
