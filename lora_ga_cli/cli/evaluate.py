"""``loraga eval``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ga_cli.cli.arguments import Code, Debug, DryRun, require_words, split_folders, words
from lora_ga_cli.cli.jobs import run_jobs
from lora_ga_cli.cli.output import with_json
from lora_ga_cli.cli.paths import caches_of_libraries, naming

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config

Words = Annotated[
    list[str] | None,
    words(
        "[RUN_OR_MODEL]... [OPTION=VALUE]...",
        "Finished runs (runs/*), adapters or models (folders, or ORG/MODEL on the hub), with options such as "
        "eval=BENCHMARK eval.limit=200; or a recipe, as for train.",
    ),
]


Adapters = Annotated[
    str | None,
    typer.Option(
        "--adapters",
        metavar="A,B,…",
        help="Adapters on the base that is named: runs, or folders of adapters. The base is loaded once and scored "
        "beside them.",
    ),
]


@with_json
def command(
    arguments: Words = None,
    adapters: Adapters = None,
    dry_run: DryRun = False,
    code: Code = None,
    debug: Debug = False,
) -> Any:
    """Score runs, adapters and models, and compare them in one table and one picture.

    A run is scored by its saved adapter on the original base model. Those on the same base share it in memory. With a
    recipe, missing steps run first.

    Example: loraga eval runs/* eval=gsm8k
    """
    from lora_ga_cli.cli.comparison import compare

    folders, options = split_folders(arguments)
    if adapters is None:
        require_words(arguments, "nothing to score is named", "loraga eval runs/NAME, or loraga eval recipe=NAME")
    else:
        if len(folders) != 1:
            what = "no base is named" if not folders else f"{len(folders)} bases are named"
            raise typer.BadParameter(f"--adapters are on one base, and {what}: loraga eval BASE --adapters A,B")
        if dry_run:
            raise typer.BadParameter("--dry-run goes with a recipe, not with adapters")
        named = [item.strip() for item in adapters.split(",") if item.strip()]
        if not named:
            raise typer.BadParameter("--adapters names none: --adapters runs/a,runs/b")
        return compare(folders, options, named)
    if not folders:

        def job(config: Config) -> dict[str, Any]:
            from lora_ga_cli.stages.eval_targets import target_of_run
            from lora_ga_cli.stages.evaluate import check_evaluation, evaluate
            from lora_ga_cli.stages.train import train
            from lora_ga_cli.training.run_folder import find_run

            if config.overwrite or not find_run(config).finished:
                check_evaluation(config)
            run = train(config)
            return {**run.summary(), "eval": evaluate(target_of_run(run, config))}

        return run_jobs(options, job, dry_run="eval" if dry_run else None)
    if dry_run:
        raise typer.BadParameter("--dry-run goes with a recipe, not with run folders")
    with naming({"output_dir": Path("runs").absolute(), **caches_of_libraries()}):
        return compare(folders, options)
