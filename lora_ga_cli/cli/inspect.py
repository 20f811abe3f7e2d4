"""``loraga inspect``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ga_cli.cli.cache import CacheDir
from lora_ga_cli.cli.common import Code, Debug, run_jobs, split_folders, unknown_flags, words
from lora_ga_cli.cli.output import with_json

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config

Words = Annotated[
    list[str] | None,
    words(
        "[TARGET] [TARGET] [OPTION=VALUE]...",
        "A run, an adapter, or a stored gradient (its folder, or its key as `loraga cache list` shows it); two runs or "
        "adapters to compare; or a recipe, whose gradient is inspected.",
    ),
]


@with_json
def command(
    context: typer.Context,
    arguments: Words = None,
    share: Annotated[
        float, typer.Option("--share", help="The share of the squared gradient that the advised ranks follow.")
    ] = 0.9,
    every_layer: Annotated[
        bool, typer.Option("--all", help="Show each layer, not kinds of layers and blocks.")
    ] = False,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", help="Folder of the figures (default: inspect/ in the run's folder or beside)."),
    ] = None,
    with_base: Annotated[
        bool, typer.Option("--with-base", help="Also measure against the base's weights, which are loaded for it.")
    ] = False,
    base: Annotated[str | None, typer.Option("--base", help="The base model, if it is now in another place.")] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Only layers whose full name matches this regular expression.")
    ] = None,
    modules: Annotated[str | None, typer.Option("--modules", help="Only these kinds of layers: q_proj,v_proj.")] = None,
    factors: Annotated[
        bool, typer.Option("--factors", help="Compare two adapters by their A and B, and not by the changes B A.")
    ] = False,
    cache_dir: CacheDir = None,
    code: Code = None,
    debug: Debug = False,
) -> Any:
    """Look into a gradient, an adapter or a run: which rank, what was learned, how two of them differ.

    Without a run, an adapter or a gradient, options are those of `loraga estimate-grad`, and its gradient is inspected.

    Example: loraga inspect recipe=quickstart
    """
    from lora_ga_cli.errors import Fault, InvalidInput
    from lora_ga_cli.stages.inspect.options import InspectOptions
    from lora_ga_cli.stages.inspect.targets import find, inspect_targets
    from lora_ga_cli.training.own_outputs import without_own_outputs

    faults = unknown_flags(context, [word for word in arguments or [] if word.startswith("--")])
    named, options = split_folders(arguments)
    named = without_own_outputs(named)
    chosen = InspectOptions(share, every_layer, figures, with_base, base, layers, modules, factors)
    faults += chosen.faults()
    if len(named) > 2:
        faults.append(Fault("command line", f"{len(named)} targets", "give one, or two to compare"))
    if factors and len(named) != 2:
        faults.append(Fault("command line", "--factors goes with two runs or adapters", "leave it out"))
    if with_base and len(named) != 1:
        faults.append(Fault("command line", "--with-base goes with one run or adapter", "leave it out"))
    if named and options and not faults:
        what = f"{', '.join(options)}: options of a recipe do not go with {named[0]}, which has its own"
        faults.append(Fault("command line", what, "leave them out"))
    if cache_dir is not None and not named:
        faults.append(Fault("command line", "--cache-dir goes with the key of a gradient", f"cache_dir={cache_dir}"))
    if faults:
        raise InvalidInput(faults)
    if named:
        return inspect_targets([find(text, cache_dir) for text in named], chosen)

    def job(config: Config) -> dict[str, Any]:
        from lora_ga_cli.stages.inspect.gradient import inspect_recipe

        return inspect_recipe(config, chosen)

    return run_jobs(options, job)
