"""Words that are no overrides, given to a command that takes a recipe and options: run folders, names of recipes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from lora_ga_cli.cli.arguments import split_folders
from lora_ga_cli.errors import Fault, InvalidInput


def refuse_folders(arguments: Sequence[str] | None, command: str) -> None:
    """Refuses a run folder, a file or the bare name of a recipe in the place of a recipe.

    Args:
        command: the name of the command.

    Raises:
        InvalidInput: it names the command that began the run, and has the faults of the other words too.
    """
    from lora_ga_cli.config.check import check

    words, others = split_folders(arguments)
    faults = [fault for word in words if (fault := _fault(word, command)) is not None]
    if faults:
        rest = [*(word for word in words if _fault(word, command) is None), *others]
        raise InvalidInput([*faults, *check(rest, complete=False)[1]])


def _fault(word: str, command: str) -> Fault | None:
    """What is wrong with a word that is no override; None for those that name nothing here."""
    from lora_ga_cli.config.locations import Locations

    place = Path(word).expanduser()
    if (place / "manifest.json").is_file():
        return Fault("command line", f"{word} is a run, and {command} takes a recipe and options", _command_of(place))
    if word in Locations().choices("recipe"):
        return Fault("command line", f"{word} is a recipe", f"loraga {command} recipe={word}")
    if place.exists() or "/" in word:
        kind = "folder" if place.is_dir() else "file" if place.exists() else "path at which there is nothing"
        hint = f"loraga {command} recipe=NAME; the command that began a run, given again, goes on with it"
        return Fault("command line", f"{word} is a {kind}, and {command} takes a recipe and options", hint)
    return None


def _command_of(run: Path) -> str:
    """How to go on with a run, from the command in its manifest."""
    from lora_ga_cli.json_files import read_json
    from lora_ga_cli.report.html.command import command_of, is_sweep

    try:
        manifest = read_json(run / "manifest.json")
        command, folder = command_of(manifest), (manifest.get("working_folder") or {}).get("path")
    except (OSError, ValueError, AttributeError):
        command, folder = "", None
    if not command:
        return "the command that began it, given again, goes on with it"
    if folder and Path(folder) != Path.cwd():
        command = f"cd {shlex.quote(folder)} && {command}"
    whose = "its sweep" if is_sweep(manifest) else "it"
    return f"the command that began {whose}, given again, goes on: {command}"
