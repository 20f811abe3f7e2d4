"""Arguments that several commands have: words that go to Hydra, folders, and options of loraga itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lora_ga_cli.errors import Fault

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Click settings of a command whose other arguments are overrides and flags of Hydra."""
VALUED_FLAGS = {"--config-dir", "-cd", "--cfg", "-c", "--package", "-p", "--info", "-i"}
"""Hydra's flags after which a word is their value."""


class State:
    """What the global options set."""

    debug = False


def _set_debug(value: bool) -> bool:
    State.debug = State.debug or value
    return value


def _import_code(context: typer.Context, files: list[Path] | None) -> list[Path] | None:
    """Runs the Python files that register a user's methods and tasks."""
    if files and not context.resilient_parsing:
        from lora_ga_cli.registry import import_code

        for file in files:
            import_code(file)
    return files


def complete(context: typer.Context, incomplete: str) -> list[str]:
    """Shell completion of ``option=value``."""
    from lora_ga_cli.config.completion import candidates

    # Typer hands over no words; Click has parsed those before this one into the command's only argument
    words = [word for value in context.params.values() if isinstance(value, list | tuple) for word in value]
    return candidates([*words, *context.args], incomplete)


def words(metavar: str, text: str, completion: Callable[..., list[str]] = complete) -> Any:
    """A command's only argument: any number of words."""
    return typer.Argument(metavar=metavar, help=text, autocompletion=completion, show_default=False)


Overrides = Annotated[
    list[str] | None,
    words(
        "[OPTION=VALUE]...",
        "A recipe and changes to it: recipe=quickstart rank=16 trainer.learning_rate=1e-4. Hydra's flags work too: "
        "-m for a sweep (rank=4,8,16), --config-dir DIR for your recipes, --cfg job, hydra/launcher=joblib.",
    ),
]
ConfigDir = Annotated[
    Path | None, typer.Option("--config-dir", help="A folder with recipes/, tables/ and your choices of options.")
]
Code = Annotated[
    list[Path] | None,
    typer.Option("--code", callback=_import_code, help="A Python file that adds methods or tasks; repeatable."),
]
Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show a traceback when something fails.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show configuration, stages, what is cached and a forecast; load no weights.")
]


def user_dir(config_dir: Path | None) -> Path | None:
    """The folder given by ``--config-dir``, as an absolute path.

    Raises:
        InvalidInput: there is no such folder.
    """
    from lora_ga_cli.errors import Fault, InvalidInput

    if config_dir is not None and not config_dir.is_dir():
        raise InvalidInput([Fault("command line", f"--config-dir {config_dir}: no such folder")])
    return config_dir.resolve() if config_dir is not None else None


def is_sweep(arguments: Iterable[str] | None) -> bool:
    """Whether a command line asks for the jobs of a sweep."""
    return not {"-m", "--multirun"}.isdisjoint(arguments or ())


def split_folders(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Run folders, and what goes to Hydra: flags with their values, and what is written as an override."""
    folders: list[str] = []
    options: list[str] = []
    before = ""
    for item in arguments or []:
        override = "=" in item or item.startswith(("-", "~"))
        is_folder = before not in VALUED_FLAGS and (os.path.isdir(item) or not override)  # noqa: PTH112
        (folders if is_folder else options).append(item)
        before = item
    return folders, options


def require_words(arguments: Sequence[str] | None, missing: str, hint: str) -> None:
    """Refuses a command line without any word, which names neither a folder nor a recipe.

    Raises:
        InvalidInput
    """
    from lora_ga_cli.errors import Fault, InvalidInput

    if not arguments:
        raise InvalidInput([Fault("command line", missing, hint)])


def given_options(context: typer.Context) -> list[str]:
    """The options of a command that stand on the command line, as ``--name``; not what an environment variable or a
    default sets."""
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name is not None
        and parameter.opts[0].startswith("-")
        and (source := context.get_parameter_source(parameter.name)) is not None
        and source.name == "COMMANDLINE"
    ]


def unknown_flags(
    context: typer.Context, arguments: Sequence[str] | None, renamed: Mapping[str, str] | None = None
) -> list[Fault]:
    """Faults for flags among a command's words that it does not have, with the nearest one.

    Args:
        renamed: earlier names of flags, and the present ones.
    """
    from lora_ga_cli.errors import Fault, suggest

    known = [flag for parameter in context.command.params for flag in parameter.opts if flag.startswith("-")]
    flags = dict.fromkeys(word.split("=")[0] for word in arguments or [] if word.startswith("-"))
    return [
        Fault(
            "command line",
            f"no option {flag}",
            f"did you mean {renamed[flag]}?" if renamed and flag in renamed else suggest(flag, known) or "see --help",
        )
        for flag in flags
    ]
