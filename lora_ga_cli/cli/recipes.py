"""``loraga recipes``"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_ga_cli.cli.arguments import Code, ConfigDir, user_dir
from lora_ga_cli.cli.command import Command
from lora_ga_cli.cli.output import with_json

app = typer.Typer(no_args_is_help=True, help="List, show and copy recipes; list every option, method and optimizer.")


def complete_recipe(incomplete: str) -> list[str]:
    """Shell completion of recipe names."""
    from lora_ga_cli.config.recipes import all_recipes

    return [recipe.name for recipe in all_recipes() if recipe.name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(help="A recipe's name.", autocompletion=complete_recipe)]


LEARNING_RATES = (
    "The learning rates suit a base of hidden size 512 (docs/benchmarks.md says how they were measured). Without "
    "trainer.learning_rate a run takes them times 512 and divided by the model's hidden size."
)


@app.callback(invoke_without_command=True)
@with_json
def overview(
    context: typer.Context,
    methods: Annotated[
        bool,
        typer.Option(
            "--methods", help="List every method: what it is, how many parameters it trains, and what it saves."
        ),
    ] = False,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="With --methods: count the parameters of this model (a choice of conf/model, ORG/MODEL or a folder).",
        ),
    ] = "tiny",
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank", min=1, help="With --methods: count the parameters at this rank (default: that of a run)."
        ),
    ] = None,
    config_dir: ConfigDir = None,
    code: Code = None,
) -> dict[str, Any] | None:
    """Options of ``loraga recipes`` itself."""
    if context.invoked_subcommand is not None:
        return None
    if not methods:
        typer.echo(context.get_help())
        return None
    from lora_ga_cli.config.schema import Config
    from lora_ga_cli.report.tables import print_table
    from lora_ga_cli.stages.catalogue import methods as all_methods

    rank = Config.model_fields["rank"].default if rank is None else rank
    entries = list(all_methods(model, rank, user_dir(config_dir)))
    rows = [
        [
            entry.name,
            entry.summary,
            " ".join(entry.papers) or "–",
            f"{entry.parameters:,}" if entry.parameters is not None else "none",
            entry.learning_rate or "–",
            entry.result,
        ]
        for entry in entries
    ]
    print_table(
        ["method", "what it is", "arXiv", f"trained ({model}, rank {rank})", "learning rate", "result"],
        rows,
        [f"trained ({model}, rank {rank})"],
    )
    typer.echo(LEARNING_RATES)
    return {"model": model, "rank": rank, "methods": [dataclasses.asdict(entry) for entry in entries]}


@app.command("list", cls=Command)
@with_json
def list_recipes(config_dir: ConfigDir = None) -> dict[str, Any]:
    """List all recipes, and what each of them does."""
    from lora_ga_cli.config.recipes import all_recipes
    from lora_ga_cli.report.tables import print_table

    recipes = all_recipes(user_dir(config_dir))
    print_table(["recipe", "what it does"], [[recipe.name, recipe.summary] for recipe in recipes])
    return {"recipes": [{"name": recipe.name, "summary": recipe.summary} for recipe in recipes]}


@app.command("show", cls=Command)
@with_json
def show_recipe(name: Name, config_dir: ConfigDir = None) -> dict[str, Any]:
    """Show the text of a recipe.

    Example: loraga recipes show quickstart
    """
    from rich.syntax import Syntax

    from lora_ga_cli.config.recipes import find_recipe
    from lora_ga_cli.report.console import out

    text = find_recipe(name, user_dir(config_dir)).text
    if out.is_terminal:
        out.print(Syntax(text, "yaml", background_color="default"))
    else:
        typer.echo(text, nl=False)
    return {"name": name, "text": text}


@app.command("copy", cls=Command)
@with_json
def copy_recipe(
    name: Name,
    new: Annotated[str | None, typer.Argument(help="Name of the copy (default: the same).")] = None,
    config_dir: Annotated[Path, typer.Option("--config-dir", help="Folder whose recipes/ receives the copy.")] = Path(),
) -> dict[str, Any]:
    """Copy a recipe into your folder, to change it there.

    Example: loraga recipes copy quickstart mine
    """
    from lora_ga_cli.config.recipes import find_recipe
    from lora_ga_cli.errors import Fault, InvalidInput
    from lora_ga_cli.files import atomic_file
    from lora_ga_cli.paths import one_name
    from lora_ga_cli.report.console import say

    recipe = find_recipe(name)
    try:
        stem = one_name((new or name).removesuffix(".yaml"))
    except ValueError as error:
        raise InvalidInput([Fault("command line", f"{new}: {error}", "--config-dir names the folder")]) from error
    file = config_dir / "recipes" / f"{stem}.yaml"
    if file.exists():
        raise InvalidInput([Fault(str(file), "exists already", f"loraga recipes copy {name} ANOTHER_NAME")])
    with atomic_file(file) as temporary:
        temporary.write_text(recipe.text.replace(f"recipe={name}", f"recipe={file.stem}"), encoding="utf-8")
    say(f"copied to {file}; use it with: loraga train recipe={file.stem} --config-dir {config_dir}")
    return {"file": file}


@app.command("options", cls=Command)
@with_json
def list_options(
    prefix: Annotated[str, typer.Argument(help="Show only options whose name begins with this.")] = "",
    code: Code = None,
) -> dict[str, Any]:
    """List every option: its type, default and meaning."""
    from lora_ga_cli.config.listing import list_options as all_options
    from lora_ga_cli.errors import Fault, InvalidInput
    from lora_ga_cli.report.tables import print_table

    every = list(all_options())
    options = [option for option in every if option.path.startswith(prefix)]
    if not options:
        near = difflib.get_close_matches(prefix, [option.path for option in every], n=3, cutoff=0.5)
        inside = [option.path for option in every if prefix in option.path][:3]
        names = list(dict.fromkeys([*inside, *near]))
        hint = f"did you mean {', '.join(names)}?" if names else "loraga recipes options lists all"
        raise InvalidInput([Fault("command line", f"no option begins with {prefix}", hint)])
    rows = []
    for option in options:
        # in front of the meaning: a column of its own would leave too little room for it
        types = f"Only for {', '.join(option.types)}. " if option.types else ""
        rows.append([option.path, option.kind, option.default, types + option.doc.replace("``", "`")])
    print_table(["option", "takes", "default", "meaning"], rows)
    return {"options": [dataclasses.asdict(option) for option in options]}


@app.command("optimizers", cls=Command)
@with_json
def list_optimizers(code: Code = None) -> dict[str, Any]:
    """List every optimizer (trainer.optimizer): what it is, and its options (trainer.optimizer_options)."""
    from lora_ga_cli.report.tables import print_table
    from lora_ga_cli.stages.catalogue import optimizers

    entries = optimizers()
    print_table(
        ["optimizer", "what it is", "arXiv", "options"],
        [
            [entry.name, entry.summary, " ".join(entry.papers) or "–", ", ".join(o.name for o in entry.options) or "–"]
            for entry in entries
        ],
    )
    print_table(
        ["optimizer", "option", "takes", "default", "meaning"],
        [[entry.name, o.name, o.kind, o.default, o.doc] for entry in entries for o in entry.options],
    )
    return {"optimizers": [dataclasses.asdict(entry) for entry in entries]}
