"""The one home of Hydra: from a command line to validated configurations, one for each job of a sweep."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from lora_ga_cli.config.check import Sources, check
from lora_ga_cli.config.documents import read_document
from lora_ga_cli.config.locations import PRIMARY, SCHEMA, Locations
from lora_ga_cli.config.options import default_values, explain
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import Fault, InvalidInput, SweepError

Task = Callable[[Config, str], None]
"""Receives a configuration and, in a sweep, a title for the job (its number and overrides); else an empty one."""


def launch(arguments: Sequence[str], task: Task) -> None:
    """Composes the configuration that ``arguments`` describe and calls ``task``, once for each job of a sweep.

    ``arguments`` are Hydra's own: overrides, ``-m``, ``--cfg job``, ``--config-dir DIR``, and so on.

    Raises:
        InvalidInput: anything is wrong with them; all faults at once.
        UserError: of a single job. In a sweep the other jobs go on; at the end a `SweepError` counts the failed ones.
    """
    sources, faults = check(arguments)
    if faults:
        raise InvalidInput(faults)
    ConfigStore.instance().store(name=SCHEMA, node=default_values(), provider="loraga")
    _register_recipes(sources.locations)

    failures: list[Exception] = []
    jobs: list[str] = []
    process = os.getpid()

    def application(node: DictConfig) -> None:
        jobs.append(_job_title(sources))
        try:
            task(validated(node, sources), jobs[-1])
        except Exception as error:
            if os.getpid() != process:
                raise  # in a launcher's process, whose caller sees only what is raised
            failures.append(error)

    main = hydra.main(version_base="1.3", config_path=str(sources.locations.conf), config_name=PRIMARY)(application)
    # hydra.main reads sys.argv, and prints tracebacks of its own unless it is told to let errors through
    with mock.patch.object(sys, "argv", ["loraga", *arguments]), mock.patch.dict(os.environ, {"HYDRA_FULL_ERROR": "1"}):
        try:
            main()
        except (HydraException, OmegaConfBaseException) as error:
            raise InvalidInput([Fault("configuration", _first_line(error))]) from error
        except ValueError as error:
            if "can be specified" in str(error) or "--resolve" in str(error):  # Hydra's complaints about its own flags
                raise InvalidInput([Fault("command line", _first_line(error))]) from error
            raise
    if len(jobs) == 1 and failures:
        raise failures[0]
    if failures:
        raise SweepError(failures, len(jobs))


def validated(node: DictConfig, sources: Sources) -> Config:
    """The typed configuration of a composed node.

    Raises:
        InvalidInput: with the place where each wrong value was written.
    """
    with_recipe = OmegaConf.to_container(node, resolve=True)
    try:
        return Config.model_validate(with_recipe)
    except ValidationError as error:
        faults = []
        for item in error.errors():
            path = tuple(str(part) for part in item["loc"])
            if item["type"] == "missing":
                faults.append(Fault(sources.where(path[:-1]), f"{'.'.join(path)} is required"))
            elif item["type"] == "value_error":
                problems = str(item["msg"]).removeprefix("Value error, ").splitlines()
                faults += [Fault(sources.where(path), problem) for problem in problems]
            else:
                faults.append(Fault(sources.where(path), explain(path, item["input"], item)))
        raise InvalidInput(faults) from None


def reconfigured(stored: dict[str, Any], overrides: Sequence[str]) -> Config:
    """A stored configuration with some ``eval`` options changed: ``eval=CHOICE`` or ``eval.option=value``.

    Raises:
        InvalidInput: an override of anything else, or one that does not fit.
    """
    sources, faults = check(["recipe=null", *overrides])
    changes = OmegaConf.create(stored)
    for override in sources.overrides[1:]:
        key = override.key_or_group
        if key == "eval":
            document, _ = read_document(sources.locations.choices("eval")[str(override.value())], "eval")
            changes["eval"] = OmegaConf.create(document.data)
        elif key.startswith("eval.") or key == "device":
            OmegaConf.update(changes, key, override.value())
        else:
            faults.append(
                Fault(
                    "command line",
                    f"{key} belongs to the run, whose settings are fixed",
                    "here: eval=…, eval.…, device=…",
                )
            )
    if faults:
        raise InvalidInput(faults)
    return validated(changes, sources)


def compose(overrides: Sequence[str]) -> Config:
    """The configuration that a command line would give, for programs; no sweeps.

    Raises:
        InvalidInput
    """
    found: list[Config] = []
    launch(overrides, lambda config, _: found.append(config))
    return found[0]


def _register_recipes(locations: Locations) -> None:
    """Makes recipes a group of Hydra's; their files have been checked, and need no ``@package`` header."""
    store = ConfigStore.instance()
    for name, file in locations.choices("recipe").items():
        document, faults = read_document(file, "recipe")
        if not faults:
            node: dict[str, Any] = dict(document.data)
            # the recipe's own options win over recipes it builds on
            defaults = list(document.defaults)
            if defaults and "_self_" not in defaults:
                plain = [entry for entry in defaults if not _is_override(entry)]
                defaults = [*plain, "_self_", *(entry for entry in defaults if _is_override(entry))]
            if defaults:
                node = {"defaults": defaults, **node}
            store.store(group="recipe", name=name, node=node, package="_global_", provider="loraga")


def _is_override(entry: Any) -> bool:
    return isinstance(entry, dict) and any(str(key).startswith("override") for key in entry)


def _job_title(sources: Sources) -> str:
    """In a sweep, the job's number and what tells it from the others."""
    settings = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN:
        return ""
    swept = {override.key_or_group for override in sources.overrides if override.is_sweep_override()}
    overrides = list(settings.overrides.task)
    told = [text for text in overrides if text.lstrip("+").split("=")[0] in swept] or overrides
    return f"{settings.job.num + 1}: {' '.join(told)}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
