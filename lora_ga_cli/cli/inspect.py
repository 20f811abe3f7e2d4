"""``loraga inspect``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ga_cli.cli.arguments import Code, Debug, given_options, require_words, split_folders, unknown_flags, words
from lora_ga_cli.cli.cache import CacheDir
from lora_ga_cli.cli.figures import check_figures
from lora_ga_cli.cli.jobs import run_jobs
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
        typer.Option(
            "--figures", help="Folder of the figures (default: inspect/ in a run's folder, else inspect-NAME/ here)."
        ),
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
    from lora_ga_cli.cli.paths import naming
    from lora_ga_cli.cli.stopping import words_given
    from lora_ga_cli.config.overrides import parse_arguments
    from lora_ga_cli.errors import Fault, InvalidInput
    from lora_ga_cli.stages.inspect.options import InspectOptions
    from lora_ga_cli.stages.inspect.targets import find_all, inspect_targets
    from lora_ga_cli.training.own_outputs import without_own_outputs

    require_words(arguments, "nothing to look into is named", "loraga inspect runs/NAME or loraga inspect recipe=NAME")
    named, options = split_folders(arguments)
    named = without_own_outputs(named)
    flags = [word for word in (options if named else parse_arguments(options)[1]) if word.startswith("-")]
    faults = unknown_flags(context, flags)
    command_line = tuple(words_given())
    chosen = InspectOptions(share, every_layer, figures, with_base, base, layers, modules, factors, command_line)
    if named and (overrides := [word for word in options if word not in flags]):
        what = f"{', '.join(overrides)}: options of a recipe do not go with {named[0]}, which has its own"
        faults.append(Fault("command line", what, "leave them out"))
    targets, wrong = find_all(named, given_options(context), cache_dir)
    if faults := [*faults, *chosen.faults(), *wrong]:
        raise InvalidInput(faults)
    if targets:
        with naming({"--figures": figures} if figures is not None else {}):
            return inspect_targets(targets, chosen)

    def job(config: Config) -> dict[str, Any]:
        from lora_ga_cli.stages.inspect.gradient import inspect_recipe

        return inspect_recipe(config, chosen)

    check_figures(figures, options)
    return run_jobs(options, job)
