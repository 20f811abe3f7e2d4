"""Everything that can be wrong with a command line and its files, reported before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob, Override

from lora_ga_cli.config.documents import Document, read_document
from lora_ga_cli.config.locations import PRIMARY, SCHEMA, Locations, shown
from lora_ga_cli.config.options import common_options, misfit, needs_types, options_in, renamed, unknown
from lora_ga_cli.config.origins import Sources, choice_in, groups_named
from lora_ga_cli.config.overrides import (
    COMMAND_LINE,
    flags_of,
    is_hydras,
    parse_arguments,
    parse_overrides,
    refused_flags,
    values_of,
)
from lora_ga_cli.config.safety import unsafe
from lora_ga_cli.config.typed_sections import typed_faults
from lora_ga_cli.config.validation import are_related, common_faults
from lora_ga_cli.errors import Fault, InvalidInput, suggest
from lora_ga_cli.registry import METHODS

REQUIRED = {"model": frozenset[str](), "dataset": frozenset({"dataset.train_file", "dataset.path", "dataset.mix"})}
"""Groups of which a recipe or the command line chooses a file, with the options that need no such choice."""
NOT_CHOSEN = {
    "model": ("no model chosen", "model=causal_lm model.path=ORG/MODEL, or recipe=NAME"),
    "dataset": ("no data set chosen", "dataset.train_file=FILE, dataset=NAME, or recipe=NAME"),
}
"""What is wrong, and the next step, where the command line chooses only the other group."""


def check(arguments: Sequence[str], *, complete: bool = True) -> tuple[Sources, list[Fault]]:
    """Parses the arguments that go to Hydra and reads every file they choose.

    Args:
        arguments: overrides and Hydra's flags, in any order.
        complete: they describe a complete configuration, and not changes to one.

    Returns:
        The sources, and all faults: unparsable overrides, unknown options, choices and recipes, values that do not
        fit, files that are not YAML or do what a file may not.
    """
    try:
        parsed, others = parse_arguments(arguments)
    except InvalidInput as error:
        return Sources(Locations()), error.faults
    faults = list(refused_flags(parsed, others))
    user_dir = None
    if parsed.config_dir is not None:
        try:
            user_dir = Path(parsed.config_dir).expanduser().resolve()
            is_there = user_dir.is_dir()
        except (OSError, ValueError, RuntimeError):  # a name that no file can have, or the home of nobody
            is_there = False
        if user_dir is None or not is_there:
            faults.append(Fault(COMMAND_LINE, f"--config-dir {parsed.config_dir}: no such folder"))
            return Sources(Locations()), faults
        faults += _reserved(user_dir)
    sources = Sources(Locations(user_dir), list(flags_of(parsed)))
    sources.overrides, problems = parse_overrides(parsed.overrides)
    faults += problems
    wrong = []
    for override in sources.overrides:
        found = _check_override(sources, override)
        faults += found
        wrong += [override] if found and not sources.is_choice(override.key_or_group) else []
    if complete:
        for group in sources.locations.groups():
            for entry in sources.primary.defaults:
                if isinstance(entry, dict) and entry.get(group, "???") != "???":
                    faults += _check_choice(sources, group, entry[group], "configuration")
        explained = any(map(_may_explain_what_is_missing, faults))
        faults += [] if explained else _incomplete(sources)
        if not sources.sweeps and not sources.flags and (faults or not METHODS.loaded):
            faults += _of_the_rest(sources, wrong, faults)
    if not faults or _gives_typed_options(sources):  # it imports the classes of methods and tasks
        faults += typed_faults(sources)
    return sources, list(dict.fromkeys(faults))


def _may_explain_what_is_missing(fault: Fault) -> bool:
    return fault.where != COMMAND_LINE or re.search(r"\b(recipe|model|dataset)\b", str(fault)) is not None


def _of_the_rest(sources: Sources, wrong: Sequence[Override], faults: Sequence[Fault]) -> list[Fault]:
    """Faults of what the sources compose without the overrides that are wrong.

    Those that concern an option which is wrong already are left out, and so is everything where a file of the
    configuration was not chosen or not read.

    Args:
        wrong: the overrides of options that are wrong.
        faults: what was found so far.
    """
    of_options = {fault for override in wrong for fault in _check_override(sources, override)}
    of_options |= {fault for document in sources.documents for fault in _unfit(document)}
    if not of_options.issuperset(faults) or _incomplete(sources):
        return []
    rest = replace(sources, overrides=[override for override in sources.overrides if override not in wrong])
    named = {path for fault in faults for path in options_in(str(fault), common_options())}
    places = {fault.where for fault in faults} - {COMMAND_LINE}
    return [
        fault
        for fault in common_faults(rest)
        if fault.where not in places
        and not any(are_related(path, other) for path in options_in(fault.what, common_options()) for other in named)
    ]


def _gives_typed_options(sources: Sources) -> bool:
    """Whether the command line, or a file of the user's folder, gives an option that depends on a type."""
    paths = [tuple(override.key_or_group.split(".")) for override in sources.overrides]
    user_dir = sources.locations.user_dir
    for document in sources.documents:
        if user_dir is not None and document.file.is_relative_to(user_dir):
            paths += [(*document.package, *path) for path in document.values]
    return any(needs_types(path) for path in paths)


def _reserved(user_dir: Path) -> list[Fault]:
    """A user's folder adds choices and recipes; it does not replace the application's own configuration."""
    hints = {
        "hydra": "hydra.* options are for the command line",
        f"{PRIMARY}.yaml": "write a recipe in recipes/",
        f"{SCHEMA}.yaml": "write a recipe in recipes/",
        "recipe": "recipes lie in recipes/",
    }
    return [
        Fault(shown(user_dir / name), "a configuration folder cannot have this", hint)
        for name, hint in hints.items()
        if (user_dir / name).exists()
    ]


def _incomplete(sources: Sources) -> list[Fault]:
    """Whether a model and a data set are chosen, for every recipe of the command line."""
    given = {override.key_or_group: override for override in sources.overrides}
    missing = [group for group, options in REQUIRED.items() if group not in given and not options & set(given)]
    choices = sources.choices("recipe")
    recipes = [str(value) for value in values_of(given["recipe"], choices)] if "recipe" in given else []
    recipes = [name for name in recipes if name in sources.choices("recipe")]
    if missing and not recipes:
        if len(missing) < len(REQUIRED):
            return [Fault(COMMAND_LINE, *NOT_CHOSEN[group]) for group in missing]
        known = ", ".join(sources.choices("recipe"))
        return [
            Fault(COMMAND_LINE, "no recipe chosen", f"recipe=NAME, of {known}; or model=… and dataset.train_file=…")
        ]
    faults = []
    documents = [document for name in recipes if (document := sources.document("recipe", name)) is not None]
    for document in documents:
        for group in missing:
            if group not in _groups_chosen(sources, document) and not _gives(document, REQUIRED[group]):
                hint = f"under defaults: `- override /{group}: NAME`; or {group}=NAME on the command line"
                faults.append(Fault(document.where(()), f"chooses no {group}", hint))
    return faults


def _gives(document: Document, options: Iterable[str]) -> bool:
    """Whether a file gives one of the options a value."""
    return any((*option.split("."),) in document.values for option in options)


def _groups_chosen(sources: Sources, document: Document) -> set[str]:
    """Groups of which a recipe, or one it builds on, chooses a file."""
    named = groups_named(document, sources.locations)
    bases = [base for name in named.pop("recipe", []) if (base := sources.document("recipe", name)) is not None]
    return set(named).union(*(_groups_chosen(sources, base) for base in bases))


def _check_override(sources: Sources, override: Override) -> list[Fault]:
    key, path = override.key_or_group, tuple(override.key_or_group.split("."))
    if key == "hydra.searchpath":
        return [Fault(COMMAND_LINE, f"{key} is refused", "--config-dir DIR adds recipes and choices")]
    if is_hydras(key):
        return []
    problem = renamed(path) if needs_types(path) else unknown(path)
    if override.package is not None:
        problem = f"no option {key}@{override.package}"
    if problem:
        return [Fault(COMMAND_LINE, problem)]
    if override.is_delete():
        return [Fault(COMMAND_LINE, f"~{key}: an option cannot be removed", "give it another value, or null")]
    if override.is_sweep_override() and not sources.sweeps:
        hint = "-m for a sweep" + ("" if sources.is_choice(key) else f"; {key}=[…] for a list")
        return [Fault(COMMAND_LINE, f"{override.input_line}: several values", hint)]
    if sources.is_choice(key):
        choices = values_of(override, sources.choices(key))
        if not choices:
            return [Fault(COMMAND_LINE, f"{override.input_line}: no {key} is called so")]
        return [fault for choice in choices for fault in _check_choice(sources, key, choice, COMMAND_LINE)]
    if isinstance(override.value(), Glob):
        return [Fault(COMMAND_LINE, f"{override.input_line}: a pattern matches files, and {key} has none")]
    problems = [] if needs_types(path) else [misfit(path, value) for value in values_of(override)]
    return [Fault(COMMAND_LINE, problem) for problem in problems if problem]


def _check_choice(sources: Sources, group: str, choice: Any, where: str, above: tuple[str, ...] = ()) -> list[Fault]:
    """Checks that a choice of a group exists, then its file and the files it builds on.

    Args:
        above: the choices of this group that build on it.
    """
    choices = sources.choices(group)
    if choice is None and group == "recipe":
        return []
    name = "null" if choice is None else str(choice)
    if not isinstance(choice, str | int | float) or isinstance(choice, bool) or name not in choices:
        every = "loraga recipes --methods lists them" if group == "method" else f"one of {', '.join(choices)}"
        hint = (suggest(name, choices) or every) if isinstance(choice, str) else every
        return [Fault(where, f"no {group} {name!r}", hint)]
    if name in above:
        return [Fault(where, f"{group} {name} builds on itself: {' → '.join([*above, name])}")]
    if any((document.group, document.choice) == (group, name) for document in sources.documents):
        return []
    document, faults = read_document(choices[name], group)
    sources.documents.append(document)
    faults += _refused(document, Path.cwd())
    for number, entry in enumerate(document.defaults):
        place = document.where(("defaults", str(number)))
        match choice_in(entry, document, sources.locations):
            case (other_group, other):
                chain = (*above, name) if other_group == group else ()
                faults += _check_choice(sources, other_group, other, place, chain)
            case str(problem):
                faults.append(Fault(place, problem))
    return faults


@lru_cache(maxsize=512)
def _refused(document: Document, here: Path) -> list[Fault]:
    """What a file may not do, and what does not fit.

    Args:
        here: the folder that faults show paths from.
    """
    return [*unsafe(document), *_unfit(document)]


def _unfit(document: Document) -> list[Fault]:
    """Unknown options of a file, and values that do not fit."""
    faults = []
    for path, value in document.values.items():
        full = (*document.package, *path)
        if path[0] == "hydra" or any(re.fullmatch(r"_\w+_", part) for part in path):
            continue  # `unsafe` reports these
        if needs_types(full) or needs_types(full[:-1]):
            continue
        problem = None if unknown(full[:-1]) else unknown(full) or misfit(full, value)
        if problem:
            faults.append(Fault(document.where(path), problem))
    return faults
