"""``loraga report``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lora_ga_cli.cli.arguments import Code, Debug
from lora_ga_cli.cli.output import Outcome, with_json
from lora_ga_cli.cli.paths import naming
from lora_ga_cli.errors import Fault, InvalidInput


@with_json
def command(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Runs (runs/*), a folder of runs, or the folder of a table that loraga reproduce made.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", help="File to write (default: report.html in the folder, or around several runs)."),
    ] = None,
    code: Code = None,
    debug: Debug = False,
) -> Any:
    """Write one HTML file that shows runs: results, curves, rows, configuration, provenance.

    The file is complete: it opens without a network, and can be sent to others. It holds some rows of the data and
    answers of the model.

    Example: loraga report runs/*
    """
    from lora_ga_cli.stages.report import report

    if output is not None and not output.is_dir() and output.suffix.lower() not in (".html", ".htm"):
        raise InvalidInput([Fault("command line", f"--output {output} is no HTML file", "a name that ends with .html")])
    with naming({"--output": output or Path(folders[0])}):
        found = report(folders, output)
    failed = found.pop("failed")
    return Outcome(found, 1 if failed else 0)
