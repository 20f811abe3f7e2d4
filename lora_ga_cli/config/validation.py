"""From what was composed to a typed configuration."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from lora_ga_cli.config.command_line import COMMAND_LINE
from lora_ga_cli.config.options import all_options, explain, mentioned
from lora_ga_cli.config.schema import Config
from lora_ga_cli.config.sources import Sources
from lora_ga_cli.config.uses import unused
from lora_ga_cli.errors import Fault, InvalidInput


def checked(node: DictConfig, sources: Sources, *, one_of_many: bool = False) -> Config:
    """The typed configuration of a composed node.

    Args:
        one_of_many: see `validated`.

    Raises:
        InvalidInput: an interpolation leads nowhere, or in a circle; or see `validated`.
    """
    try:
        values = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        path = tuple(str(error.full_key or "").split("."))
        raise InvalidInput([Fault(sources.where(path), f"{'.'.join(path)}: {first_line(error)}")]) from error
    except RecursionError as error:
        raise InvalidInput([Fault("configuration", "interpolations lead in a circle")]) from error
    assert isinstance(values, dict)
    return validated({str(key): value for key, value in values.items()}, sources, one_of_many=one_of_many)


def validated(values: dict[str, Any], sources: Sources, *, one_of_many: bool = False) -> Config:
    """The typed configuration of plain values.

    Args:
        one_of_many: the options given are for several configurations, and need not all do something in this one.

    Raises:
        InvalidInput: with the place where each wrong value was written.
    """
    try:
        config = Config.model_validate(_given(values))
    except ValidationError as error:
        raise InvalidInput([fault for item in error.errors() for fault in _faults(item, sources)]) from None
    if not one_of_many and (faults := unused(config, sources)):
        raise InvalidInput(faults)
    return config


def _faults(item: Any, sources: Sources) -> list[Fault]:
    """The faults that one error of pydantic's tells of."""
    path = tuple(str(part) for part in item["loc"])
    if item["type"] == "missing":
        name = ".".join(path)
        return [Fault(COMMAND_LINE, f"{name} is required", f"give {name}=…")]
    if item["type"] == "value_error" and path not in all_options():
        problems = str(item["msg"]).removeprefix("Value error, ").splitlines()
        return [Fault(sources.where(*mentioned(problem)), problem) for problem in problems]
    return [Fault(sources.where(path), explain(path, item["input"], item))]


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Without what is still missing, which Hydra writes ``???``."""
    return {
        name: _given(value) if isinstance(value, dict) else value for name, value in values.items() if value != "???"
    }


def first_line(error: BaseException) -> str:
    """What an error says first; Hydra's are sometimes empty around another."""
    if not str(error).strip() and error.__cause__ is not None:
        return first_line(error.__cause__)
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
