"""``loraga estimate-grad``"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_ga_cli.cli.common import Code, Debug, DryRun, Overrides, run_jobs

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config


def command(options: Overrides = None, dry_run: DryRun = False, code: Code = None, debug: Debug = False) -> None:
    """Estimate the gradient of the base model, and store it in the cache.

    One artifact serves every rank, direction, scale and learning rate; training finds it in the cache.

    Example: loraga estimate-grad recipe=quickstart
    """

    def job(config: Config) -> None:
        from lora_ga_cli.stages.estimate import estimate_alone

        estimate_alone(config)

    run_jobs(options, job, dry_run="estimate-grad" if dry_run else None)
