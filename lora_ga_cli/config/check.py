"""Everything that can be wrong with a command line and its files, found before anything is composed or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from lora_ga_cli.config.documents import Document, KeyPath, leaves, read_document
from lora_ga_cli.config.locations import PRIMARY, SCHEMA, Locations, shown
from lora_ga_cli.config.options import misfit, unknown
from lora_ga_cli.config.safety import unsafe
from lora_ga_cli.errors import Fault, nearest

COMMAND_LINE = "command line"


@dataclass
class Sources:
    """What a configuration is composed from, and where each of its values was written."""

    locations: Locations
    overrides: list[Override] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)

    def where(self, path: KeyPath) -> str:
        """Where the value at ``path`` was written: the command line wins over recipes, recipes over groups."""
        for override in reversed(self.overrides):
            if tuple(override.key_or_group.split(".")) == path:
                return COMMAND_LINE
        for document in sorted(self.documents, key=lambda document: document.group != "recipe"):
            inside = path[len(document.package) :]
            if path[: len(document.package)] == document.package and inside in document.lines:
                return document.where(inside)
        return "configuration"


def check(arguments: Sequence[str]) -> tuple[Sources, list[Fault]]:
    """Parses the arguments that go to Hydra and reads every file they choose.

    Returns:
        The sources, and all faults: unparsable overrides, unknown options, choices and recipes, values that do not
        fit, files that are not YAML or do what a file may not.
    """
    parsed, unknown_flags = get_args_parser().parse_known_args(list(arguments))
    faults = [Fault(COMMAND_LINE, f"no option {flag}", "see --help") for flag in unknown_flags if flag.startswith("-")]
    own = None
    if parsed.config_dir is not None:
        own = Path(parsed.config_dir).expanduser().resolve()
        if not own.is_dir():
            return Sources(Locations()), [
                *faults,
                Fault(COMMAND_LINE, f"--config-dir {parsed.config_dir}: no such folder"),
            ]
        faults += _reserved(own)
    sources = Sources(Locations(own))
    for text in parsed.overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            hint = (
                "write option=value"
                if "=" not in text
                else "quote values with spaces or , : { } [ ] inside: 'option=\"value\"'"
            )
            faults.append(Fault(COMMAND_LINE, f"cannot read {text!r}", hint))
            continue
        sources.overrides.append(override)
        faults += _check_override(sources, override)
    if not any(override.key_or_group == "recipe" for override in sources.overrides):
        faults += _without_recipe(sources)
    return sources, list(dict.fromkeys(faults))


def _reserved(own: Path) -> list[Fault]:
    """A user's folder adds choices and recipes; it does not replace the application's own configuration."""
    return [
        Fault(
            shown(own / name), "a configuration folder cannot set this up", "hydra.* options are for the command line"
        )
        for name in ("hydra", f"{PRIMARY}.yaml", f"{SCHEMA}.yaml")
        if (own / name).exists()
    ]


def _without_recipe(sources: Sources) -> list[Fault]:
    chosen = {override.key_or_group for override in sources.overrides}
    if {"model", "dataset"} <= chosen:
        return []
    recipes = ", ".join(sources.locations.choices("recipe"))
    return [Fault(COMMAND_LINE, "no recipe chosen", f"recipe=NAME, of {recipes}; or model=… and dataset=…")]


def _check_override(sources: Sources, override: Override) -> list[Fault]:
    key = override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")) or override.is_delete():
        return []
    if key == "recipe" or key in sources.locations.groups():
        return [fault for choice in _values(override) for fault in check_choice(sources, key, choice, COMMAND_LINE)]
    path = tuple(key.split("."))
    problem = unknown(path)
    if problem:
        return [Fault(COMMAND_LINE, problem)]
    problems = [misfit(path, value) for value in _values(override)]
    return [Fault(COMMAND_LINE, problem) for problem in problems if problem]


def check_choice(sources: Sources, group: str, choice: Any, where: str) -> list[Fault]:
    """Checks that a choice of a group exists, then its file and the files it chooses in turn."""
    choices = sources.locations.choices(group)
    if choice is None and group == "recipe":
        return []
    if choice not in choices:
        return [Fault(where, f"no {group} {choice!r}", nearest(str(choice), choices))]
    if any(document.file == choices[choice] for document in sources.documents):
        return []
    document, faults = read_document(choices[choice], group)
    sources.documents.append(document)
    faults += unsafe(document)
    for entry in document.defaults:
        for other_group, other in _choices_in(entry, group):
            faults += check_choice(sources, other_group, other, document.where(("defaults",)))
    for path, value in leaves(document.data):
        full = (*document.package, *path)
        if path[0] == "hydra" or path[-1].startswith("_") or any(part.startswith("_") for part in path):
            continue  # said by `unsafe`
        problem = unknown(full)
        if problem and not unknown(full[:-1]):
            faults.append(Fault(document.where(path), problem))
        elif not problem and (trouble := misfit(full, value)):
            faults.append(Fault(document.where(path), trouble))
    return faults


def _choices_in(entry: Any, group: str) -> list[tuple[str, str]]:
    """The (group, choice) pairs of one entry of a defaults list."""
    if isinstance(entry, str):
        return [] if entry == "_self_" else [(group, entry)]
    if isinstance(entry, dict):
        pairs = []
        for key, choice in entry.items():
            name = str(key).removeprefix("override").removeprefix("optional").strip().lstrip("/")
            if "hydra" not in name and "@" not in name:
                pairs.append((name, choice))
        return pairs
    return []


def _values(override: Override) -> list[Any]:
    """The value of an override, or every value of a sweep."""
    if not override.is_sweep_override():
        return [override.value()]
    return list(override.sweep_iterator()) if override.is_discrete_sweep() else []
