"""What users see: results go to standard output, warnings and errors to standard error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

from lora_ga_cli.disk import size as size
from lora_ga_cli.report.visible import visible

PIPE_WIDTH = 160
"""Characters in a line of a table that is written into a file or a pipe, which has no width."""
_RANK = os.environ.get("RANK", "0")


def _console(*, stderr: bool) -> Console:
    # when several processes train together, one prints; any of them may fail and report it
    console = Console(highlight=False, soft_wrap=True, stderr=stderr, quiet=_RANK != "0" and not stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


out = _console(stderr=False)
err = _console(stderr=True)


def say(text: str = "") -> None:
    """Prints one line of plain text."""
    out.print(escape(visible(text)))


def step(name: str, text: str) -> None:
    """Prints a line that begins with the name of a stage."""
    out.print(f"[bold cyan]{escape(name):>9}[/]  {escape(visible(text))}")


def warn(text: str) -> None:
    """Prints a warning, which does not stop the run."""
    if _RANK == "0":
        err.print(f"[bold yellow]  warning[/]  {escape(visible(text))}")


def reason(error: OSError) -> str:
    """What the system said, as the end of a sentence."""
    said = error.strerror or str(error) or type(error).__name__
    return said[0].lower() + said[1:]


def title(text: str) -> None:
    """Prints the heading of a job in a sweep, or of a cell in a table."""
    out.print()
    out.print(f"[bold]━━ {escape(visible(text))} ━━[/]")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Prints only warnings and errors inside the ``with`` block."""
    before, out.quiet = out.quiet, True
    try:
        yield
    finally:
        out.quiet = before


def number(value: int) -> str:
    """An integer with separators: 6,738,415,616."""
    return f"{value:,}"


def duration(seconds: float) -> str:
    """A length of time as h:mm:ss or m:ss."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
