"""``loraga merge``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_ga_cli.cli.common import Code, Debug, run_jobs, split_folders, words
from lora_ga_cli.cli.paths import naming

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config

Words = Annotated[
    list[str] | None,
    words(
        "[RUN_FOLDER]... [OPTION=VALUE]...",
        "Finished runs; or a recipe, as for train.",
    ),
]


RUN_OPTIONS = ("device", "model.trust_remote_code")
"""Options that are allowed when a finished run is merged."""


def command(
    arguments: Words = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder to write (default: RUN_FOLDER/merged).")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16 (default: the base's).")
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", help="Largest size of one file, such as 5GB.")
    ] = "5GB",
    base: Annotated[str | None, typer.Option("--base", help="The base model, if it is now in another place.")] = None,
    code: Code = None,
    debug: Debug = False,
) -> None:
    """Merge an adapter into its base: a plain model folder, whose logits are checked against the adapter's.

    Example: loraga merge runs/my-run --output my-model --dtype bfloat16
    """
    from lora_ga_cli.errors import Fault, InvalidInput

    folders, options = split_folders(arguments)
    faults = []
    if dtype not in (None, "float32", "bfloat16", "float16"):
        faults.append(Fault("command line", f"--dtype {dtype} is not one of float32, bfloat16, float16"))
    if output is not None and len(folders) > 1:
        faults.append(Fault("command line", "--output names one folder, and there are several runs"))
    for option in options if folders else []:
        if option.split("=", 1)[0] not in RUN_OPTIONS:
            faults.append(Fault("command line", f"{option} goes with a recipe, not with run folders"))
    if faults:
        raise InvalidInput(faults)

    from lora_ga_cli.stages.merge import MergeOptions, merge

    chosen = MergeOptions(output, dtype, max_shard_size, base)
    if folders:
        from lora_ga_cli.config.compose import reconfigured
        from lora_ga_cli.stages.trained import folder_of, require_finished

        for run in [folder_of(folder) for folder in folders]:
            require_finished(run)  # before its configuration is read, which an earlier version wrote with other options
            with naming({"--output": output or run.path}):
                merge(run, reconfigured(run.read_config(), options), chosen)
        return

    def job(config: Config) -> None:
        from lora_ga_cli.stages.train import train

        with naming({"--output": output} if output is not None else {}):
            merge(train(config), config, chosen)

    run_jobs(options, job)
