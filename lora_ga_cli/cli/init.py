"""``loraga init``"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_ga_cli.cli.arguments import Code, Debug, DryRun, Overrides
from lora_ga_cli.cli.jobs import run_jobs
from lora_ga_cli.cli.output import with_json
from lora_ga_cli.cli.words_of_recipes import refuse_folders

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config


@with_json
def command(options: Overrides = None, dry_run: DryRun = False, code: Code = None, debug: Debug = False) -> Any:
    """Initialize a run: compute the adapter's initial factors, and check that the logits stay those of the base.

    The initialization is stored in the run folder, where `train` finds it.

    Example: loraga init recipe=quickstart rank=16
    """

    def job(config: Config) -> dict[str, Any]:
        from lora_ga_cli.stages.initialize import initialize

        run = initialize(config)
        return {"run": run.path, "init_difference": run.manifest.get("init_difference")}

    refuse_folders(options, "init")
    return run_jobs(options, job, dry_run="init" if dry_run else None)
