"""Sections whose options depend on a type: ``method`` and ``eval``.

Everything here imports the classes of the types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_ga_cli.config.documents import Document, leaves, merge, nested, read_document
from lora_ga_cli.config.locations import Locations
from lora_ga_cli.config.options import (
    KeyPath,
    is_group,
    mapping_around,
    misfit,
    needs_types,
    options_of_type,
    types_with,
    unknown,
)
from lora_ga_cli.config.origins import Place, Sources
from lora_ga_cli.config.overrides import COMMAND_LINE, values_of
from lora_ga_cli.config.schema import TYPED_SECTIONS, TypedSection
from lora_ga_cli.errors import Fault


def typed_faults(sources: Sources) -> list[Fault]:
    """Faults for options that no type has, and for values that fit the option of no type."""
    faults = []
    for override in sources.overrides:
        path = tuple(override.key_or_group.split("."))
        if path[0] in TYPED_SECTIONS and len(path) > 1:
            given = [item for value in values_of(override) for item in [(path, value), *leaves(value, path)]]
            faults += [Fault(COMMAND_LINE, problem) for item in given if (problem := _typed_problem(*item))]
    for document in sources.documents:
        for path, value in document.values.items():
            full = (*document.package, *path)
            problem = _typed_problem(full, value) if full[0] in TYPED_SECTIONS else None
            if problem:
                faults.append(Fault(document.where(path), problem))
    return faults


def _typed_problem(path: KeyPath, value: Any) -> str | None:
    """What is wrong with an option of a typed section; None also where the section around it is wrong already."""
    section = TYPED_SECTIONS[path[0]]
    if path == section.decider and isinstance(value, str) and "${" not in value and section.options_of(value) is None:
        return f"{'.'.join(path)}={value}: no {section.registry.what} {value!r} ({section.registry.hint_for(value)})"
    if not needs_types(path) or (needs_types(path[:-1]) and unknown(path[:-1])):
        return None
    return unknown(path) or misfit(path, value)


def options_for_type(
    section: TypedSection, options: dict[str, Any], sources: Sources
) -> tuple[dict[str, Any], list[Fault]]:
    """The options of a typed section that its type has, and faults for others that were given for this type.

    An option of another type is no fault where it was given for that: by a recipe whose choice the command line
    replaces, for one job of a sweep, or in the file of a choice whose type is replaced.
    """
    type_name = options.get(section.key, section.default)
    available = options_of_type(section, type_name)
    if available is None:
        return options, []
    kept: dict[str, Any] = {}
    faults: dict[KeyPath, Fault] = {}
    for path, value in leaves({section.name: options}):
        is_section = isinstance(value, dict) and is_group(path)
        if len(path) == 1 or is_section or any(path[: len(other)] == other for other in faults):
            continue
        if path in available:
            merge(kept, nested(path[1:], value))
            continue
        if mapping_around(path, available):
            continue
        place = sources.place(path)
        if not types_with(path):
            merge(kept, nested(path[1:], value))  # no type has it: the validation says so
        elif place is not None and _given_for(section, place, sources):
            faults[path] = Fault(place.where, _no_option_for(section, path, options, sources.locations))
    return kept, list(faults.values())


def _given_for(section: TypedSection, place: Place, sources: Sources) -> bool:
    """Whether an option was written for the type that the section has, and not for another one."""
    replaced = place.in_group or place.order > sources.decided_at(section.decider)
    return not replaced and not sources.varies(section.decider)


def _no_option_for(section: TypedSection, path: KeyPath, options: dict[str, Any], locations: Locations) -> str:
    """The message for an option of another type, with a choice that selects one that has it."""
    decider = f"{'.'.join(section.decider)}={options.get(section.key, section.default)}"
    label = f"{section.name} {options['name']} ({decider})" if "name" in options else decider
    types = types_with(path)
    choice = _choice_with_type(section, types, locations)
    having = f"{section.name}={choice}" if choice else f"{'.'.join(section.decider)}={types[0]}"
    return f"no option {'.'.join(path)} for {label}; {having} has it"


def _choice_with_type(section: TypedSection, types: Sequence[str], locations: Locations) -> str | None:
    """A choice of the section that has one of the types, if possible one with the name of its type."""
    types_by_choice = {}
    for choice, file in locations.choices(section.name).items():
        document, _ = read_document(file, section.name)
        type_name = _type_in(section, document, locations)
        if type_name in types:
            types_by_choice[choice] = type_name
    return min(types_by_choice, key=lambda choice: (choice != types_by_choice[choice], len(choice)), default=None)


def _type_in(section: TypedSection, document: Document, locations: Locations, depth: int = 8) -> object:
    """The type that a choice's file, or one that it builds on, names."""
    written = document.values.get(section.decider[len(document.package) :])
    choices = locations.choices(section.name)
    bases = [name for name in document.defaults if isinstance(name, str) and name in choices and depth > 0]
    for name in reversed(bases if written is None else []):
        base, _ = read_document(choices[name], section.name)
        written = _type_in(section, base, locations, depth - 1)
        break
    return section.default if written is None else written
