"""From composed values to a typed configuration, with the place of everything that is wrong."""

from __future__ import annotations

from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from lora_ga_cli.config.exclusions import Exclusion
from lora_ga_cli.config.options import (
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
from lora_ga_cli.config.schema import TYPED_SECTIONS, WITHOUT_TYPES, Config, EvalOptions, MethodOptions, Section
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
    bases = {"method": MethodOptions.model_construct(), "eval": EvalOptions.model_construct()}
    try:
        Config.model_validate(_without_missing(common) | bases, context=WITHOUT_TYPES)
    except ValidationError as error:
        return [fault for item in error.errors() for fault in _faults(item, sources, common_options())]
    return []


def notes(config: Config, sources: Sources) -> list[str]:
    """Messages for options of a chosen file that given ones replace, and for options that the command line sets and the
    method does not use. (A recipe sets them for any method that may be chosen with it.)"""
    values = sources.values()
    replaced = _replace(values, sources, _types_in(values))
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
        faults += [fault for item in error.errors() for fault in _faults(item, sources, known)]
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
        problems = str(item["msg"]).removeprefix("Value error, ").splitlines()
        return [Fault(sources.where(*options_in(problem, options)), problem) for problem in problems]
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
