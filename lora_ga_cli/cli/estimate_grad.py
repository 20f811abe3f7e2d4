"""``loraga estimate-grad``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ga_cli.cli.arguments import Code, Debug, DryRun, Overrides
from lora_ga_cli.cli.figures import check_figures
from lora_ga_cli.cli.jobs import run_jobs
from lora_ga_cli.cli.output import with_json
from lora_ga_cli.cli.words_of_recipes import refuse_folders

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config


@with_json
def command(
    options: Overrides = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Folder of the figure (default: inspect-KEY/ here).")
    ] = None,
    dry_run: DryRun = False,
    code: Code = None,
    debug: Debug = False,
) -> Any:
    """Estimate the gradient of the base model, and store it in the cache.

    One artifact serves every rank, direction, scale and learning rate; training finds it in the cache.

    Example: loraga estimate-grad recipe=quickstart
    """

    def job(config: Config) -> dict[str, Any]:
        from lora_ga_cli.stages.estimate import described, estimate_alone

        artifact, file = estimate_alone(config, figures)
        return {**described(artifact, config), "figures": [] if file is None else [file]}

    refuse_folders(options, "estimate-grad")
    check_figures(figures, options)
    return run_jobs(options, job, dry_run="estimate-grad" if dry_run else None)
