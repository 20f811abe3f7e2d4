"""From composed values to a typed configuration, with the place of everything that is wrong."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from lora_ga_cli.config.exclusions import Exclusion
from lora_ga_cli.config.options import (
    KeyPath,
    Options,
    as_typed,
    common_options,
    default_of,
    explain,
    options_in,
    options_with,
)
from lora_ga_cli.config.origins import Sources
from lora_ga_cli.config.overrides import COMMAND_LINE
from lora_ga_cli.config.rules import dataset_problems, problems
from lora_ga_cli.config.schema import (
    TYPED_SECTIONS,
    WITHOUT_RULES,
    WITHOUT_TYPES,
    Config,
    EvalOptions,
    MethodOptions,
    Section,
)
from lora_ga_cli.config.switched_off import switch_off
from lora_ga_cli.config.typed_sections import options_for_type
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
    _replace(values, sources, {})
    common = {name: value for name, value in values.items() if name not in TYPED_SECTIONS}
    if "${" in str(common):
        return []
    common = _without_missing(common)
    try:
        Config.model_validate(common | _without_options(), context=WITHOUT_TYPES)
    except ValidationError as error:
        faults = [fault for item in error.errors() for fault in _faults(item, sources, common_options())]
        return faults + _hidden(common, error, faults, sources)
    return []


def _without_options() -> dict[str, Section]:
    """The sections whose options depend on a type, without those options."""
    return {"method": MethodOptions.model_construct(), "eval": EvalOptions.model_construct()}


def _hidden(values: dict[str, Any], error: ValidationError, faults: Sequence[Fault], sources: Sources) -> list[Fault]:
    """Faults of options that do not go together, which a wrong value elsewhere kept from being looked for.

    Those that concern an option which is wrong already are left out: they may be gone when it is right.

    Args:
        values: those that were validated.
        error: what that raised.
        faults: the same as faults.
    """
    options = common_options()
    wrong = {tuple(str(part) for part in item["loc"]) for item in error.errors() if item["loc"]}
    if not wrong:
        return []  # every rule was looked at
    right = copy.deepcopy({name: value for name, value in values.items() if name not in TYPED_SECTIONS})
    for item in error.errors():
        path = tuple(str(part) for part in item["loc"])
        if item["type"] != "value_error" or path in options:
            _remove(right, path)
    right.setdefault("dataset", {})
    right.setdefault("model", {}).setdefault("path", "")  # no rule reads it
    try:
        config = Config.model_validate(right | _without_options(), context=WITHOUT_RULES)
    except ValidationError:
        return []
    named = wrong - {("dataset",)} | {path for fault in faults for path in options_in(str(fault), options)}
    return [
        Fault(sources.where(*options_in(problem, options)), problem)
        for problem in (*dataset_problems(config.dataset), *problems(config))
        if not any(are_related(path, other) for path in options_in(problem, options) for other in named)
    ]


def _remove(values: dict[str, Any], path: Sequence[str]) -> None:
    """Removes the value at a path, or the value around it that is no mapping."""
    for name in path[:-1]:
        if not isinstance(values.get(name), dict):
            values.pop(name, None)
            return
        values = values[name]
    values.pop(path[-1], None)


def are_related(path: KeyPath, other: KeyPath) -> bool:
    """Whether two paths are the same, or one lies in the other."""
    shared = min(len(path), len(other))
    return path[:shared] == other[:shared]


def notes(config: Config, sources: Sources) -> list[str]:
    """Messages for options of a chosen file that given ones replace, and for options that the command line sets and the
    method does not use. (A recipe sets them for any method that may be chosen with it.)"""
    values = sources.values()
    replaced = _replace(values, sources, _types_in(values))
    epochs, steps = (sources.place(("trainer", name)) for name in ("epochs", "max_steps"))
    if config.trainer.max_steps is not None and epochs is not None and epochs == steps:
        what = f"trainer.epochs={config.trainer.epochs:g} does nothing with"
        replaced.append(f"{what} trainer.max_steps={config.trainer.max_steps}, which counts ({steps.where})")
    fields, given = common_options(), {override.key_or_group.partition(".")[0] for override in sources.overrides}
    return replaced + [
        f"{name}={as_typed(getattr(config, name))} does nothing with method {config.method.name}"
        for name in ADAPTER_OPTIONS
        if name in given and name not in config.shared_uses and getattr(config, name) != default_of(fields[(name,)])
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
    types = _types_in(values)
    _replace(values, sources, types)
    for section in TYPED_SECTIONS.values():
        options = values.get(section.name)
        if isinstance(options, dict):
            values[section.name], foreign = options_for_type(section, options, sources)
            faults += [] if one_of_many else foreign
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        known = options_with(types)
        found = [fault for item in error.errors() for fault in _faults(item, sources, known)]
        faults += found + _hidden(values, error, found, sources)
    if faults:
        raise InvalidInput(faults)
    return config


def _types_in(values: dict[str, Any]) -> dict[str, Any]:
    """The types of the sections whose options depend on one."""
    return {
        section.name: options.get(section.key, section.default)
        for section in TYPED_SECTIONS.values()
        if isinstance(options := values.get(section.name), dict)
    }


def _replace(values: dict[str, Any], sources: Sources, types: dict[str, Any]) -> list[str]:
    """Switches options off that an option in a higher place excludes, in place; returns a line for each."""
    sections = [field.annotation for name, field in Config.model_fields.items() if name not in TYPED_SECTIONS]
    sections += [TYPED_SECTIONS[name].options_of(type_name) for name, type_name in types.items()]
    exclusions: list[Exclusion] = []
    for section in sections:
        if isinstance(section, type) and issubclass(section, Section):
            exclusions += section.all_exclusions()
    known = options_with(types)

    def default(option: str) -> Any:
        return default_of(known[tuple(option.split("."))])

    return switch_off(values, sources, exclusions, default)


def _faults(item: Any, sources: Sources, options: Options) -> list[Fault]:
    """The faults that one of pydantic's errors stands for."""
    path = tuple(str(part) for part in item["loc"])
    if item["type"] == "missing":
        name = ".".join(path)
        return [Fault(COMMAND_LINE, f"{name} is required", f"give {name}=…")]
    if item["type"] == "value_error" and path not in options:
        lines = str(item["msg"]).removeprefix("Value error, ").splitlines()
        return [Fault(sources.where(*options_in(line, options)), line) for line in lines]
    return [Fault(sources.where(path), explain(path, item["input"], item, options))]


def _without_missing(values: dict[str, Any]) -> dict[str, Any]:
    """Without what is still missing, which Hydra writes ``???``."""
    given = {name: value for name, value in values.items() if value != "???"}
    return {name: _without_missing(value) if isinstance(value, dict) else value for name, value in given.items()}


def first_line(error: BaseException) -> str:
    """The first line of an error's message; Hydra's errors are sometimes empty around another one."""
    if not str(error).strip() and error.__cause__ is not None:
        return first_line(error.__cause__)
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
