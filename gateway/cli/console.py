"""Where the commands print, and how they refuse: one clear line that names what is wrong, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from gateway.errors import GatewayError

# 0: done. FOUND_WRONG: the command did its work and what it looked at is not in order. REFUSED: it could not begin.
FOUND_WRONG, REFUSED = 1, 2
_PLAIN_WIDTH = 1000


def output() -> Console:
    """Standard output; wide and without colour when it is no terminal, so that it can be piped."""
    return Console(
        highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else _PLAIN_WIDTH
    )


def errors() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """What a hospital sent, without the control characters that would drive the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def complain(text: str) -> None:
    """One line (or several) on standard error, each exactly as it is: no markup is read from it."""
    for line in text.splitlines():
        errors().print(Text(f"imaging-gateway: {line}", style="red"))


@contextmanager
def refusals() -> Iterator[None]:
    """A wrong setting, node file or mapping ends the command with its own text and no traceback."""
    try:
        yield
    except GatewayError as error:
        complain(error.detail)
        raise typer.Exit(REFUSED) from None


@contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """Shows that something goes on: a spinner on a terminal, plain lines elsewhere. Gives a function that says more."""
    console = errors()
    if not console.is_terminal:
        console.print(Text(f"{text} ..."))
        yield lambda more: console.print(Text(f"  {more}"))
        return
    with console.status(Text(f"{text} ...")) as status:
        yield lambda more: status.update(Text(f"{text}: {more}"))
