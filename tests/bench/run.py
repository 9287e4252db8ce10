"""`make bench`: the gateway beside Orthanc, a PACS from PyPI, bare clients and a byte pump; a table, build/bench.json, build/bench.svg.

Both sides of a ratio are measured in turn in one run; a number is the median of the rounds. Tokens are checked, audit
records written and metrics counted meanwhile. Bars are printed, never enforced: how fast is fast enough depends on the
machine. What must hold anywhere is held by the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also starts as a script

from tests.bench import catalogue, chart, export, fanout, lookups, metadata, rendering, streaming, workers
from tests.bench.identity import identity
from tests.bench.measuring import Bench, Result, say
from tests.bench.processes import ROOT

GROUPS = {
    "lookups": lookups.run,
    "fanout": fanout.run,
    "streaming": streaming.run,
    "metadata": metadata.run,
    "rendering": rendering.run,
    "catalogue": catalogue.run,
    "export": export.run,
    "workers": workers.run,
}


def table(results: Mapping[str, Result]) -> Table:
    drawn = Table("case", "ours", "theirs", "unit", "ratio", "of a round", "bar", "", "rounds", "memory growth, MB")
    for name, one in results.items():
        low, high = one.spread
        drawn.add_row(
            f"{name}\n  [dim]{one.note}[/dim]" if one.note else name,
            f"{one.ours:g}",
            f"{one.theirs:g}",
            one.unit,
            f"{one.ratio:.2f}",
            f"{low:g} - {high:g}" if one.rounds > 1 else "",
            one.bar or "",
            {None: "no bar", True: "[green]met[/green]", False: "[red]not met[/red]"}[one.met],
            str(one.rounds),
            "" if one.growth is None else f"{one.growth:.0f}",
        )
    return drawn


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help=f"groups, separated by commas: {', '.join(GROUPS)}")
    parser.add_argument("--quick", action="store_true", help="one round of each case instead of five")
    asked = parser.parse_args()
    asked.groups = [name for name in asked.only.replace(" ", "").split(",") if name] or list(GROUPS)
    unknown = [name for name in asked.groups if name not in GROUPS]
    if unknown:
        parser.error(f"no such group: {', '.join(unknown)}")
    return asked


def machine() -> str:
    """What all numbers depend on. A Python that was not built optimised takes up to 1.3 times as long."""
    python = f"Python {platform.python_version()} ({Path(sys.executable).resolve()})"
    return f"{python}, {os.cpu_count()} processors, {platform.machine()}"


def measure(bench: Bench, groups: list[str]) -> None:
    """Every group, also when one of them fails."""
    for name in groups:
        began = time.monotonic()
        with bench.attempting(name):
            GROUPS[name](bench)
        say(f"{name}: {time.monotonic() - began:.0f} s")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whatever ends it, the servers it started end with it
    asked = _arguments()
    say(machine())
    with identity() as provider:
        bench = Bench(provider, rounds=1, seconds=1.0) if asked.quick else Bench(provider)
        measure(bench, asked.groups)
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    (build / "bench.json").write_text(json.dumps({name: asdict(one) for name, one in bench.results.items()}, indent=2))
    (build / "bench.svg").write_text(chart.svg(bench.results), encoding="utf-8")
    Console(width=max(180, Console().width)).print(table(bench.results))
    judged = [one.met for one in bench.results.values() if one.met is not None]
    print(f"{sum(judged)} of {len(judged)} bars met; build/bench.json, build/bench.svg")
    if bench.failures:
        print(f"could not be measured: {', '.join(bench.failures)}")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
