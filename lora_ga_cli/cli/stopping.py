"""What a user reads after a signal, or the end of another process, stopped a command: what is kept, and the command
that goes on."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence

from lora_ga_cli import distributed
from lora_ga_cli.errors import Interrupted
from lora_ga_cli.interruption import Interruption, name_of

NOTHING = "no result was complete, so none is kept; earlier results are unchanged"
_OVERRIDE = re.compile(r"\+{0,2}([A-Za-z_][\w./@]*)=.*", re.DOTALL)


class Given:
    """The command line of this process, without the name of the program."""

    arguments: Sequence[str] | None = None
    valued_flags: Callable[[Sequence[str]], set[str] | None] = lambda words: set()
    """The flags after which a word is their value; None for a command that takes no overrides. The program sets it."""


def stopped(error: KeyboardInterrupt) -> Interrupted:
    """The error that tells of an interruption."""
    number = error.number if isinstance(error, Interruption) else 2
    kept = error.kept if isinstance(error, Interruption) else ""
    notes = error.notes if isinstance(error, Interruption) else []
    said = "; ".join([kept or NOTHING, *notes])
    again = "To start from the beginning"
    if kept:
        again = error.then if isinstance(error, Interruption) else "To go on"
    return Interrupted(f"{name_of(number)}: {said}. {again}: {command(goes_on=bool(kept))}", number)


def words_given() -> list[str]:
    """The words of the command line, without the name of the program."""
    return list(sys.argv[1:] if Given.arguments is None else Given.arguments)


def _options(words: Sequence[str]) -> list[str | None]:
    """For each word the option that it sets; None for flags, their values, folders and other words."""
    flags = Given.valued_flags(words)
    if flags is None:
        return [None] * len(words)
    found = [_OVERRIDE.fullmatch(word) for word in words]
    return [
        None if match is None or before in flags or os.path.isdir(word) else match[1]  # noqa: PTH112 (takes any length)
        for before, word, match in zip(["", *words], words, found, strict=False)
    ]


def _last_of_each_option(words: Sequence[str], left_out: str = "") -> list[str]:
    """The words without those that set an option which a later word sets again.

    Args:
        left_out: an option that no word sets then.
    """
    options = _options(words)
    last = {option: place for place, option in enumerate(options)}
    return [
        word
        for place, (word, option) in enumerate(zip(words, options, strict=True))
        if option is None or (last[option] == place and option != left_out)
    ]


def command(*, goes_on: bool) -> str:
    """The command line as it was given, where of several values of an option only the last one counts.

    Args:
        goes_on: without ``overwrite``, which would begin a run again.
    """
    words = _last_of_each_option(words_given(), "overwrite" if goes_on else "")
    if distributed.count() == 1 or is_submitted():
        return shlex.join(["loraga", *words])
    on_each = os.environ.get("LOCAL_WORLD_SIZE", "")
    if on_each == str(distributed.count()):
        return shlex.join(["torchrun", "--nproc-per-node", on_each, "-m", "lora_ga_cli", *words])
    return f"the same launcher on every machine, with {shlex.join(['loraga', *words])}"


def is_submitted() -> bool:
    """Whether the command line has its jobs done by submitit, which starts their processes itself."""
    from lora_ga_cli.config.launchers import launcher_of

    return launcher_of(words_given()).startswith("submitit")


def report_lost(what: str) -> None:
    """Prints that another one of the processes that train together is gone.

    Args:
        what: a sentence without its full stop.
    """
    from rich.markup import escape

    from lora_ga_cli.report.console import err, out

    out.show_cursor(True)  # which a bar of progress has hidden
    again = "The other processes end too. The same command goes on from the last checkpoint, if there is one"
    err.print(f"[bold red]error[/]  {escape(f'{what}. {again}: {command(goes_on=True)}')}")
