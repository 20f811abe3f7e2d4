"""``loraga merge``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ga_cli.cli.arguments import Code, Debug, require_words, split_folders, unknown_flags, words
from lora_ga_cli.cli.jobs import run_jobs
from lora_ga_cli.cli.output import with_json
from lora_ga_cli.cli.paths import naming

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config
    from lora_ga_cli.training.run_folder import RunFolder

Words = Annotated[
    list[str] | None,
    words(
        "[RUN_FOLDER]... [OPTION=VALUE]...",
        "Finished runs; or a recipe, as for train.",
    ),
]


RUN_OPTIONS = ("device", "model.trust_remote_code")
"""Options that are allowed when a finished run is merged."""


@with_json
def command(
    context: typer.Context,
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
) -> Any:
    """Merge an adapter into its base: a plain model folder, whose logits are checked against the adapter's.

    Example: loraga merge runs/my-run --output my-model --dtype bfloat16
    """
    from lora_ga_cli.errors import Fault, InvalidInput

    require_words(arguments, "nothing to merge is named", "loraga merge runs/NAME, or loraga merge recipe=NAME")
    folders, options = split_folders(arguments)
    faults = []
    if dtype not in (None, "float32", "bfloat16", "float16"):
        faults.append(Fault("command line", f"--dtype {dtype} is not one of float32, bfloat16, float16"))
    if output is not None and len(folders) > 1:
        faults.append(Fault("command line", "--output names one folder, and there are several runs"))
    faults += unknown_flags(context, options) if folders else []
    for option in options if folders else []:
        if option.split("=", 1)[0] == "model.path":
            faults.append(Fault("command line", f"{option}: the place of a run's base is another option", "--base"))
        elif option.split("=", 1)[0] not in RUN_OPTIONS and not option.startswith("-"):
            faults.append(Fault("command line", f"{option} goes with a recipe, not with run folders"))
    if faults:
        raise InvalidInput(faults)

    from lora_ga_cli.stages.merge import MergeOptions, merge

    chosen = MergeOptions(output, dtype, max_shard_size, base)
    if folders:
        from lora_ga_cli.stages.trained import config_of, folder_of

        merged = []
        for run in [folder_of(folder) for folder in folders]:
            with naming({"--output": output or run.path}):
                merged.append(_merged(run, merge(run, config_of(run, options, base), chosen)))
        return {"merged": merged}

    def job(config: Config) -> dict[str, Any]:
        from lora_ga_cli.stages.train import train

        run = train(config)
        with naming({"--output": output or run.path}):
            return {"merged": [_merged(run, merge(run, config, chosen))]}

    return run_jobs(options, job)


def _merged(run: RunFolder, folder: Path) -> dict[str, Any]:
    from lora_ga_cli.files import file_sizes

    return {"run": run.path, "folder": folder, "bytes": sum(file_sizes(folder).values())}
