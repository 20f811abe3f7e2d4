"""The command tree. Nothing here imports torch; a command imports it when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lora_ga_cli import __version__, distributed, garbage, interruption, peers, reachable
from lora_ga_cli.cli import (
    cache,
    chat,
    convert,
    environment,
    estimate_grad,
    evaluate,
    export,
    init,
    inspect,
    merge,
    push,
    recipes,
    report,
    reproduce,
    train,
    watch,
)
from lora_ga_cli.cli.arguments import PASS_THROUGH, VALUED_FLAGS, State
from lora_ga_cli.cli.command import Command, WritingCommand
from lora_ga_cli.cli.errors import fail
from lora_ga_cli.cli.lost_terminal import outlive_terminal
from lora_ga_cli.cli.stopping import Given, report_lost, stopped
from lora_ga_cli.paths import forget_empty_variables


class Commands(TyperGroup):
    """The command tree. It reports an interruption, where Typer would end without a message."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise stopped(error) from error


app = typer.Typer(
    name="loraga",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune language models with low-rank adapters that are initialized from the gradient (LoRA-GA).",
    epilog="Try it: [bold]loraga train recipe=quickstart[/] (offline, two minutes on two cores)",
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"loraga {__version__}")
        raise typer.Exit


def _warn(text: str) -> None:
    from lora_ga_cli.report import console

    console.warn(text)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of loraga itself."""


app.command("estimate-grad", cls=WritingCommand, context_settings=PASS_THROUGH)(estimate_grad.command)
app.command("init", cls=WritingCommand, context_settings=PASS_THROUGH)(init.command)
app.command("train", cls=WritingCommand, context_settings=PASS_THROUGH)(train.command)
app.command("watch", cls=Command)(watch.command)
app.command("eval", cls=WritingCommand, context_settings=PASS_THROUGH)(evaluate.command)
app.command("chat", cls=Command, context_settings=PASS_THROUGH)(chat.command)
app.command("inspect", cls=WritingCommand, context_settings=PASS_THROUGH)(inspect.command)
app.command("merge", cls=WritingCommand, context_settings=PASS_THROUGH)(merge.command)
app.command("export", cls=WritingCommand)(export.command)
app.command("push", cls=WritingCommand)(push.command)
app.command("convert", cls=WritingCommand)(convert.command)
app.command("reproduce", cls=WritingCommand, context_settings=PASS_THROUGH)(reproduce.command)
app.command("report", cls=WritingCommand)(report.command)
app.command("env", cls=Command)(environment.command)
app.add_typer(recipes.app, name="recipes")
app.add_typer(cache.app, name="cache")


def valued_flags(words: Sequence[str]) -> set[str] | None:
    """The flags of the command in a command line after which a word is their value; None if it takes no overrides."""
    commands = getattr(typer.main.get_command(app), "commands", {})
    given = next((commands[word] for word in words if word in commands), None)
    if given is None or not given.context_settings.get("ignore_unknown_options"):
        return None
    own = {flag for option in given.params if not getattr(option, "is_flag", True) for flag in option.opts}
    return own | VALUED_FLAGS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code: 0, 1 for a failure, 2 for wrong input, and 128 more than the
    number of a signal that stopped it (130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP)."""
    State.debug = False
    Given.arguments, Given.valued_flags = arguments, valued_flags
    reachable.report_to(_warn)
    forget_empty_variables()  # before the libraries that read them are imported
    try:
        with interruption.handled():
            app(list(arguments) if arguments is not None else None, prog_name="loraga")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except Exception as error:
        code = fail(error, silent=State.debug)
        if State.debug:
            raise
        return code
    return 0


def run() -> None:
    """The ``loraga`` program."""
    garbage.collect_rarely()
    outlive_terminal()
    peers.report_to(report_lost)
    code = main()
    if code == 0:
        distributed.leave()
    else:
        peers.ended()
    sys.exit(code)
