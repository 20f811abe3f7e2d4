"""The one home of Hydra: from a command line to validated configurations, one for each job of a sweep."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lora_ga_cli.config.check import check
from lora_ga_cli.config.command_line import COMMAND_LINE
from lora_ga_cli.config.direct import composable, composed
from lora_ga_cli.config.documents import merge, nested
from lora_ga_cli.config.locations import PRIMARY
from lora_ga_cli.config.registry import registered
from lora_ga_cli.config.safety import COMMAND_LINE_ONLY
from lora_ga_cli.config.schema import Config
from lora_ga_cli.config.sources import Sources
from lora_ga_cli.config.uses import notes
from lora_ga_cli.config.validation import checked, first_line, validated
from lora_ga_cli.errors import Fault, InvalidInput, SweepError

PLACEHOLDER = "dataset=quickstart"
"""For benchmarks, which bring problems of their own: a configuration has a data set, and this one is always there."""
HYDRAS_ERRORS = (HydraException, OmegaConfBaseException)
CELLS = "cells"
"""Name of the configuration by which `launch_each` counts."""
Task = Callable[[Config, str], None]
"""Receives a configuration and, in a sweep, a title for the job (its number and overrides); else an empty one."""


def launch(
    arguments: Sequence[str],
    task: Task,
    invalid: Callable[[InvalidInput, str], None] = lambda error, title: None,
    note: Callable[[str], None] = lambda text: None,
    *,
    one_of_many: bool = False,
) -> None:
    """Composes the configuration that ``arguments`` describe and calls ``task``, once for each job of a sweep.

    Args:
        arguments: Hydra's own: overrides, ``-m``, ``--cfg job``, ``--config-dir DIR``, and so on.
        task: what to do with each configuration.
        invalid: told of a job of a sweep whose options do not go together, instead of ``task``, with its title.
        note: told, once each, of options that the method has no use for, though they are no mistake.
        one_of_many: see `compose`.

    Raises:
        InvalidInput: anything is wrong with them; all faults at once.
        UserError: of a single job. In a sweep the other jobs go on; at the end a `SweepError` counts the failed ones.
    """
    sources, faults = check(arguments)
    if faults:
        raise InvalidInput(faults)
    jobs = _Jobs(sources, task, invalid, note, one_of_many)

    def application(node: DictConfig) -> None:
        jobs.run(node)

    try:
        with registered(sources.locations, sources.documents):
            _run_hydra(PRIMARY, application, sources.arguments)
    except Exception as error:
        if sources.sweeps and not jobs.titles and not isinstance(error, HYDRAS_ERRORS):
            raise SweepError([error]) from error  # from a launcher's process
        raise InvalidInput([Fault(COMMAND_LINE, first_line(error))]) from error
    if jobs.failures:
        raise SweepError(jobs.failures, len(jobs.titles)) if sources.sweeps else jobs.failures[0]


@dataclass
class _Jobs:
    """The jobs of a command line, and what became of them."""

    sources: Sources
    task: Task
    invalid: Callable[[InvalidInput, str], None]
    note: Callable[[str], None]
    one_of_many: bool
    titles: list[str] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    noted: set[str] = field(default_factory=set)
    process: int = field(default_factory=os.getpid)

    def run(self, node: DictConfig) -> None:
        """Does one."""
        title = _job_title(self.sources)
        self.titles.append(title)
        try:
            self.task(self._config(node, title), title)
        except Exception as error:
            if os.getpid() != self.process:
                raise  # in a launcher's process, whose caller sees only what is raised
            self.failures.append(error)

    def _config(self, node: DictConfig, title: str) -> Config:
        try:
            config = checked(node, self.sources, one_of_many=self.one_of_many)
        except InvalidInput as error:
            if title:
                self.invalid(error, title)
            raise
        for note in notes(config):
            if note not in self.noted:
                self.noted.add(note)
                self.note(note)
        return config


def launch_each(count: int, job: Callable[[int], None], flags: Sequence[str], folder: str) -> None:
    """Calls ``job`` with 0, 1, … through one of Hydra's launchers: here one after the other, or in other processes.

    Args:
        job: says itself what went wrong; what it raises stops everything.
        flags: Hydra's, such as ``hydra/launcher=joblib`` and ``hydra.launcher.n_jobs=2``.
        folder: where a launcher may put files of its own.

    Raises:
        InvalidInput: Hydra does not take the flags.
    """

    def application(node: DictConfig) -> None:
        job(int(node.cell))

    node = {
        "defaults": ["_self_", {"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}],
        "cell": 0,
        "hydra": {"output_subdir": None, "sweep": {"dir": folder, "subdir": "${hydra.job.num}"}},
    }
    numbers = ",".join(map(str, range(count)))
    with mock.patch.dict(ConfigStore.instance().repo), _hydras_errors():
        ConfigStore.instance().store(name=CELLS, node=node, provider="loraga")
        _run_hydra(CELLS, application, [f"cell={numbers}", *flags, "--multirun"])


def _run_hydra(name: str, application: Callable[[DictConfig], None], arguments: Sequence[str]) -> None:
    """Has Hydra compose the stored configuration ``name``, and call ``application`` for each job."""
    main = hydra.main(version_base="1.3", config_path=None, config_name=name)(application)
    # hydra.main reads sys.argv, and prints tracebacks of its own unless it is told to let errors through
    with (
        mock.patch.object(sys, "argv", ["loraga", *arguments]),
        mock.patch.dict(os.environ, {"HYDRA_FULL_ERROR": "1"}),
    ):
        main()


@contextlib.contextmanager
def _hydras_errors() -> Iterator[None]:
    """
    Raises:
        InvalidInput: Hydra found something wrong.
    """
    try:
        yield
    except HYDRAS_ERRORS as error:
        raise InvalidInput([Fault(COMMAND_LINE, first_line(error))]) from error


def reconfigured(stored: dict[str, Any], overrides: Sequence[str]) -> Config:
    """A stored configuration with some ``eval`` options changed: ``eval=CHOICE`` or ``eval.option=value``.

    Raises:
        InvalidInput: an override of anything else, or one that does not fit.
    """
    sources, faults = check(overrides, whole=False)
    if sources.flags:
        faults.append(Fault(COMMAND_LINE, f"{' '.join(sources.flags)} goes with a recipe, not with run folders"))
    faults = faults or [fault for override in sources.overrides for fault in _fixed(override, sources)]
    if faults:
        raise InvalidInput(faults)
    changes = copy.deepcopy(stored)
    for path in COMMAND_LINE_ONLY:  # a folder may come from a stranger
        if path[0] in ("eval", "model"):
            _forget(changes, path)
    for override in sorted(sources.overrides, key=lambda override: override.key_or_group != "eval"):
        key, value = override.key_or_group, override.value()
        if key == "eval":
            changes["eval"] = sources.options_of("eval", str(value))
        else:
            merge(changes, nested(tuple(key.split(".")), value))
    return validated(changes, sources)


def _fixed(override: Override, sources: Sources) -> Iterator[Fault]:
    """Faults for an override that a finished run does not take."""
    key, value = override.key_or_group, override.value()
    if not (key in ("eval", "device", "model.trust_remote_code") or key.startswith("eval.")):
        hint = "here: eval=…, eval.…, device=…, model.trust_remote_code=…"
        yield Fault(COMMAND_LINE, f"{key} belongs to the run, whose settings are fixed", hint)
    elif "${" in str(sources.options_of("eval", str(value)) if key == "eval" else value):
        yield Fault(COMMAND_LINE, f"{key}={value}: interpolations go with a recipe, not with run folders")


def compose(overrides: Sequence[str], *, one_of_many: bool = False) -> Config:
    """The configuration that a command line would give, for programs; no sweeps.

    Args:
        one_of_many: the overrides are for several configurations, and need not all do something in this one.

    Raises:
        InvalidInput
    """
    sources, faults = check(overrides)
    if not faults and composable(sources):
        with _hydras_errors():
            return checked(composed(sources), sources, one_of_many=one_of_many)
    found: list[Config] = []
    launch(overrides, lambda config, _: found.append(config), one_of_many=one_of_many)
    return found[0]


def compose_around(options: Sequence[str], base: str | None) -> tuple[Config, bool]:
    """The configuration of a model that is no run: the options given, the model it is, and no method.

    Args:
        base: the model, where no option names it.

    Returns:
        The configuration, and whether the options choose its data set; else `PLACEHOLDER` stands there.

    Raises:
        InvalidInput
    """
    sources, faults = check(options, whole=False)
    if sources.flags:
        faults.append(Fault(COMMAND_LINE, f"{' '.join(sources.flags)} goes with a recipe, not with what is scored"))
    chosen = {override.key_or_group for override in sources.overrides}
    given = list(options)
    if not chosen & {"model", "recipe"}:
        given.insert(0, "model=causal_lm")
    if "model.path" not in chosen:
        if not base or "${" in base:  # Hydra would fill that in, and the folder may come from a stranger
            faults.append(Fault(COMMAND_LINE, "which base is this adapter for?", "model.path=ORG/MODEL"))
        given.append(f"model.path={base!r}")
    if faults:
        raise InvalidInput(faults)
    has_data = bool(chosen & {"dataset", "recipe"})
    return compose(given if has_data else [*given, PLACEHOLDER]), has_data


def _forget(values: dict[str, Any], path: Sequence[str]) -> None:
    *around, last = path
    for name in around:
        values = values.get(name, {})
    values.pop(last, None)


def _job_title(sources: Sources) -> str:
    """In a sweep, the job's number and what tells it from the others."""
    settings = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN:
        return ""
    swept = {override.key_or_group for override in sources.overrides if override.is_sweep_override()}
    overrides = list(settings.overrides.task)
    told = [text for text in overrides if text.lstrip("+").split("=")[0] in swept] or overrides
    return f"{settings.job.num + 1}: {' '.join(told)}"
