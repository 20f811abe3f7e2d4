"""``loraga train``"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ga_cli.cli.arguments import Code, Debug, DryRun, Overrides
from lora_ga_cli.cli.jobs import run_jobs
from lora_ga_cli.cli.output import with_json
from lora_ga_cli.cli.words_of_recipes import refuse_folders

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config


@with_json
def command(
    options: Overrides = None,
    dry_run: DryRun = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show a few rows as the model sees them, and stop.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option("--shard", help="With -m: do a part of the sweep's jobs; 2/4 does job 2, 6, 10 and so on."),
    ] = None,
    code: Code = None,
    debug: Debug = False,
) -> Any:
    """Train an adapter. If the gradient or the initialization is missing, it is computed first.

    The same command again resumes a run that was stopped. The saved adapter is for the original base model. Methods of
    the LoRA family save a standard LoRA adapter.

    Example: loraga train recipe=quickstart
    """

    def job(config: Config) -> dict[str, Any]:
        if preview:
            from lora_ga_cli.stages.preview import preview as show

            return {"rows": show(config)}
        from lora_ga_cli.stages.train import train

        return train(config).summary()

    refuse_folders(options, "train")
    return run_jobs(options, job, dry_run="train" if dry_run else None, shard=shard)
