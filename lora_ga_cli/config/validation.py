"""From composed values to a typed configuration, with the place of everything that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from lora_ga_cli.config.documents import Document, leaves, merge, nested, read_document
from lora_ga_cli.config.locations import Locations
from lora_ga_cli.config.options import (
    KeyPath,
    Options,
    as_typed,
    common_options,
    default_of,
    explain,
    is_group,
    mapping_around,
    mentioned,
    options_of_type,
    options_with,
    types_with,
)
from lora_ga_cli.config.origins import Place, Sources
from lora_ga_cli.config.overrides import COMMAND_LINE
from lora_ga_cli.config.schema import TYPED_SECTIONS, WITHOUT_TYPES, Config, EvalOptions, MethodOptions, TypedSection
from lora_ga_cli.errors import Fault, InvalidInput

ADAPTER_OPTIONS = ("rank", "alpha", "target_modules")
"""Options that a recipe sets for any method it is run with: one that the method does not use is noted."""


def configuration(sources: Sources, *, one_of_many: bool = False) -> Config:
    """The typed configuration that sources without several values give.

    Args:
        one_of_many: see `validated`.

    Raises:
        InvalidInput: an interpolation leads nowhere, or in a circle; or see `validated`.
    """
    try:
        values = sources.values()
        if "${" in str(values):
            values = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.create(values), resolve=True))
    except OmegaConfBaseException as error:
        path = tuple(str(error.full_key or "").split("."))
        raise InvalidInput([Fault(sources.where(path), f"{'.'.join(path)}: {first_line(error)}")]) from error
    except RecursionError as error:
        raise InvalidInput([Fault("configuration", "interpolations lead in a circle")]) from error
    return validated(values, sources, one_of_many=one_of_many)


def common_faults(sources: Sources) -> list[Fault]:
    """Faults that show without the classes of methods and tasks, whose import takes seconds.

    Values that interpolations fill in are not looked at.
    """
    values = sources.values(with_types=False)
    common = {name: value for name, value in values.items() if name not in TYPED_SECTIONS}
    if "${" in str(common):
        return []
    bases = {"method": MethodOptions.model_construct(), "eval": EvalOptions.model_construct()}
    try:
        Config.model_validate(_without_missing(common) | bases, context=WITHOUT_TYPES)
    except ValidationError as error:
        return [fault for item in error.errors() for fault in _faults(item, sources, common_options())]
    return []


def notes(config: Config) -> list[str]:
    """Messages for options that a recipe sets for any method, and that this one does not use."""
    fields = common_options()
    return [
        f"{name}={as_typed(getattr(config, name))} does nothing with method {config.method.name}"
        for name in ADAPTER_OPTIONS
        if name not in config.shared_uses and getattr(config, name) != default_of(fields[(name,)])
    ]


def validated(values: dict[str, Any], sources: Sources, *, one_of_many: bool = False, composed: bool = False) -> Config:
    """The typed configuration of plain values.

    Args:
        one_of_many: the options given are for several configurations, and some may be for another type than this one's.

    Raises:
        InvalidInput: with the place where each wrong value was written.
    """
    values = _without_missing(values)
    faults = []
    types = {}
    for section in TYPED_SECTIONS.values():
        options = values.get(section.name)
        if isinstance(options, dict):
            types[section.name] = options.get(section.key, section.default)
            values[section.name], foreign = _of_type(section, options, sources)
            faults += [] if one_of_many else foreign
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        known = options_with(types)
        faults += [fault for item in error.errors() for fault in _faults(item, sources, known)]
    if faults:
        raise InvalidInput(faults)
    return config


def _of_type(section: TypedSection, options: dict[str, Any], sources: Sources) -> tuple[dict[str, Any], list[Fault]]:
    """The options of a typed section that its type has, and faults for others that were given for this type.

    An option of another type is no fault where it was given for that: by a recipe whose choice the command line
    replaces, for one job of a sweep, or in the file of a choice whose type is replaced.
    """
    type_name = options.get(section.key, section.default)
    own = options_of_type(section, type_name)
    if own is None:
        return options, []
    kept: dict[str, Any] = {}
    faults: dict[KeyPath, Fault] = {}
    for path, value in leaves({section.name: options}):
        is_section = isinstance(value, dict) and is_group(path)
        if len(path) == 1 or is_section or any(path[: len(other)] == other for other in faults):
            continue
        if path in own:
            merge(kept, nested(path[1:], value))
            continue
        if mapping_around(path, own):
            continue
        place = sources.place(path)
        if not types_with(path):
            merge(kept, nested(path[1:], value))  # no type has it: the validation says so
        elif place is not None and _given_for(section, place, sources):
            faults[path] = Fault(place.where, no_option_for(section, path, options, sources.locations))
    return kept, list(faults.values())


def _given_for(section: TypedSection, place: Place, sources: Sources) -> bool:
    """Whether an option was written for the type that the section has, and not for another one."""
    replaced = place.in_group or place.order > sources.decided_at(section.decider)
    return not replaced and not sources.varies(section.decider)


def no_option_for(section: TypedSection, path: KeyPath, options: dict[str, Any], locations: Locations) -> str:
    """The message for an option of another type, with a choice that selects one that has it."""
    decider = f"{'.'.join(section.decider)}={options.get(section.key, section.default)}"
    label = f"{section.name} {options['name']} ({decider})" if "name" in options else decider
    types = types_with(path)
    choice = choice_with_type(section, types, locations)
    having = f"{section.name}={choice}" if choice else f"{'.'.join(section.decider)}={types[0]}"
    return f"no option {'.'.join(path)} for {label}; {having} has it"


def choice_with_type(section: TypedSection, types: Sequence[str], locations: Locations) -> str | None:
    """A choice of the section with one of the types: the simplest one, whose name is that of its type, and short."""
    found = {}
    for choice, file in locations.choices(section.name).items():
        document, _ = read_document(file, section.name)
        type_name = _type_in(section, document, locations)
        if type_name in types:
            found[choice] = type_name
    return min(found, key=lambda choice: (choice != found[choice], len(choice)), default=None)


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


def _faults(item: Any, sources: Sources, options: Options) -> list[Fault]:
    """The faults that one error of pydantic's tells of."""
    path = tuple(str(part) for part in item["loc"])
    if item["type"] == "missing":
        name = ".".join(path)
        return [Fault(COMMAND_LINE, f"{name} is required", f"give {name}=…")]
    if item["type"] == "value_error" and path not in options:
        problems = str(item["msg"]).removeprefix("Value error, ").splitlines()
        return [Fault(sources.where(*mentioned(problem, options)), problem) for problem in problems]
    return [Fault(sources.where(path), explain(path, item["input"], item, options))]


def _without_missing(values: dict[str, Any]) -> dict[str, Any]:
    """Without what is still missing, which Hydra writes ``???``."""
    given = {name: value for name, value in values.items() if value != "???"}
    return {name: _without_missing(value) if isinstance(value, dict) else value for name, value in given.items()}


def first_line(error: BaseException) -> str:
    """What an error says first; Hydra's are sometimes empty around another."""
    if not str(error).strip() and error.__cause__ is not None:
        return first_line(error.__cause__)
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
