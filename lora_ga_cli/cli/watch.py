"""``loraga watch``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lora_ga_cli.cli.arguments import Debug
from lora_ga_cli.cli.output import Output, with_json


@with_json
def command(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="Run folders, or folders of runs (default: runs)."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show the table one time, as in a pipe.")] = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Follow runs in a table: step, loss, speed, memory and the time that is left. It only reads their folders.

    It ends when each of them has finished or failed, or with Ctrl-C.

    Example: loraga watch runs/*
    """
    from lora_ga_cli.stages.watch import watch

    states = watch(folders or [Path("runs")], once=once or Output.as_json)
    return {"runs": [state.as_data() for state in states]}
