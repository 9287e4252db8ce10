"""Figures that a test wants people to see: recorded as the property `figures`, printed at the end, from any worker."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what `record_property("figures", text)` kept, test by test."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "figures":
                terminalreporter.write_line(f"{report.nodeid.rsplit('::', 1)[-1]}\n{text}")
