"""The screen: what is said goes to standard output, warnings and errors to standard error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

PIPE_WIDTH = 160
"""Columns of a table that goes into a file or a pipe, where there is no screen to fit."""
_RANK = os.environ.get("RANK", "0")


def _console(*, stderr: bool) -> Console:
    # of several processes that train together one talks, but any may fail
    console = Console(highlight=False, soft_wrap=True, stderr=stderr, quiet=_RANK != "0" and not stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


out = _console(stderr=False)
err = _console(stderr=True)


def say(text: str = "") -> None:
    """One plain line."""
    out.print(escape(text))


def step(name: str, text: str) -> None:
    """A line that belongs to a stage: its name, then what happens."""
    out.print(f"[bold cyan]{escape(name):>9}[/]  {escape(text)}")


def warn(text: str) -> None:
    """Something the user should see, and that does not stop the run."""
    if _RANK == "0":
        err.print(f"[bold yellow]  warning[/]  {escape(text)}")


def title(text: str) -> None:
    """The heading of a job in a sweep."""
    out.print()
    out.print(f"[bold]━━ {escape(text)} ━━[/]")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Says nothing meanwhile, but warnings and errors."""
    before, out.quiet = out.quiet, True
    try:
        yield
    finally:
        out.quiet = before


def number(value: int) -> str:
    """An integer with separators: 6,738,415,616."""
    return f"{value:,}"


def size(count: float) -> str:
    """Bytes as people read them, in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def duration(seconds: float) -> str:
    """A length of time as h:mm:ss or m:ss."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
