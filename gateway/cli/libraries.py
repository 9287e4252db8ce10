"""What the libraries in this process have to say: that something happened, of what kind and where, never in their own words.

A library's message quotes what it stumbled over (asyncio's "exception was never retrieved" prints the exception's text, a
warning of pydicom the value), and that may be a patient's. Its own log level is kept at WARNING whatever ours is.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import warnings
from types import TracebackType
from typing import Any, TextIO

from gateway.telemetry import log, place_of


class Told(logging.Handler):
    """Writes a library's record as one of ours: its logger, the line that logged it, the kind and place of its exception."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        more = of_error(error) if error else {"file": f"{record.filename}:{record.lineno}"}
        log().log(record.levelno, "library", logger=record.name, **more)


def of_error(error: BaseException) -> dict[str, Any]:
    """What may be told of an exception: its class, where it was raised, and through which lines of code."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    return {"kind": type(error).__name__, "reason": place_of(error), "traceback": frames}


def restrain() -> None:
    """From here on nothing else writes to standard error for them: root logger, warnings, threads, unraisable errors, and
    what ends the process."""
    root = logging.getLogger()
    root.handlers[:] = [Told(logging.WARNING)]
    root.setLevel(logging.WARNING)
    warnings.showwarning = _warned
    threading.excepthook = _thread_died
    sys.unraisablehook = _unraisable
    sys.excepthook = _ended


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    log().warning("library", logger="warnings", kind=category.__name__, file=f"{filename.rsplit('/', 1)[-1]}:{lineno}")


def _thread_died(args: threading.ExceptHookArgs) -> None:
    _died("thread", args.exc_value, args.exc_type)


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    _died("unraisable", args.exc_value, args.exc_type)


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _died("process", error, kind)


def _died(where: str, error: BaseException | None, kind: type[BaseException]) -> None:
    more = of_error(error) if error is not None else {"kind": kind.__name__}
    log().error("library", logger=where, **more)
