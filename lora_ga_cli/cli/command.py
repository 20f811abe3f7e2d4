"""The classes of Typer's commands: help that is wrapped, arguments that are missing, copies that Slurm starts."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from lora_ga_cli import distributed
from lora_ga_cli.errors import Fault, InvalidInput

EXAMPLE = "Example: "
"""How the paragraph of a command's docstring begins that has an example to run."""


class Command(TyperCommand):
    """A command whose help is wrapped for the terminal, and not where the lines of its docstring end, and which answers
    with its example where an argument is missing."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.help = "\n\n".join(" ".join(part.split()) for part in (self.help or "").split("\n\n"))

    @property
    def example(self) -> str:
        """The command line of the docstring's example; empty without one."""
        parts = (self.help or "").split("\n\n")
        return next((part.removeprefix(EXAMPLE) for part in parts if part.startswith(EXAMPLE)), "")

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # by name, because Typer may have Click's classes as its own
            if type(error).__name__ != "MissingParameter" or "-h" in given or "--help" in given:
                raise
            raise InvalidInput([self._missing(ctx, getattr(error, "param", None))]) from error

    def _missing(self, ctx: typer.Context, parameter: Any) -> Fault:
        name = getattr(parameter, "metavar", None) or str(getattr(parameter, "name", None) or "an argument").upper()
        return Fault("command line", f"{name.strip('{}[].')} is missing", self.example or f"{ctx.command_path} --help")


class WritingCommand(Command):
    """A command that writes. Copies of it, as Slurm starts them, are refused, except where it writes nothing or each of
    them does a part of its own."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        if not any(ctx.params.get(name) for name in ("shard", "dry_run", "preview")):
            distributed.check_tasks()
        return super().invoke(ctx)
