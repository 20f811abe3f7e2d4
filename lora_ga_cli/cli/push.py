"""``loraga push``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lora_ga_cli.cli.arguments import Code, Debug
from lora_ga_cli.cli.output import with_json


@with_json
def command(
    run: Annotated[str, typer.Argument(metavar="RUN_FOLDER", help="A finished run.", show_default=False)],
    repository: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="The repository, which is created if needed.", show_default=False)
    ],
    merged: Annotated[
        Path | None,
        typer.Option(
            "--merged", help="Upload this merged model of the run, which loraga merge wrote, and not the adapter."
        ),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="The base's name on the hub, if it was read from a folder.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public (default: private).")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the files, their sizes and the model card; upload nothing.")
    ] = False,
    code: Code = None,
    debug: Debug = False,
) -> dict[str, Any]:
    """Upload a run's adapter or model to the Hugging Face hub, with a model card that has its results.

    Nothing is uploaded that names a folder of this machine. A repository that exists keeps its visibility.

    Example: loraga push runs/mine ORG/NAME --dry-run
    """
    from lora_ga_cli.stages.push import PushOptions, push
    from lora_ga_cli.stages.trained import folder_of, stored_config

    folder = folder_of(run)
    return push(folder, stored_config(folder), repository, PushOptions(merged, base_model, public, dry_run))
