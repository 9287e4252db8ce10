"""For the whole suite: with CI set nothing is skipped, so that a green run has met every real peer."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest


def _failed_where_nothing_is_skipped(report: Any) -> Any:
    """The report of a test or of a module; a skip becomes a failure with its reason. An expected failure is no skip."""
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome, report.longrepr = "failed", f"with CI set nothing is skipped: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    return _failed_where_nothing_is_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    return _failed_where_nothing_is_skipped((yield))
