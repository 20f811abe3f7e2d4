"""Hydra's part: sweeps, launchers, and what its flags print. It gets what was read and checked, and opens no file.

A single configuration is composed without it (`lora_ga_cli.config.origins`), and so is that of every job of a sweep,
from the overrides that Hydra gives the job.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lora_ga_cli import distributed, interruption
from lora_ga_cli.config.check import check
from lora_ga_cli.config.hydra_store import restored_store, stored
from lora_ga_cli.config.launchers import (
    end_task,
    ending_joblib,
    handlers_of_task,
    join_tasks,
    launcher_of,
    several_on_one_gpu,
    when_stopped,
)
from lora_ga_cli.config.locations import PRIMARY
from lora_ga_cli.config.origins import Sources
from lora_ga_cli.config.overrides import COMMAND_LINE, parse_override
from lora_ga_cli.config.schema import Config
from lora_ga_cli.config.shard import Shard
from lora_ga_cli.config.validation import configuration, first_line, notes
from lora_ga_cli.errors import Fault, InvalidInput, SweepError
from lora_ga_cli.gpus import claim_gpu, visible_gpus

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
    shard: Shard | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Composes the configuration that ``arguments`` describe and calls ``task``, once for each job of a sweep.

    Args:
        arguments: Hydra's own: overrides, ``-m``, ``--cfg job``, ``--config-dir DIR``, and so on.
        task: what to do with each configuration.
        invalid: called with the error and title of a job of a sweep, instead of ``task``, if its options do not go
            together.
        note: called once for each message about an option that the method does not use.
        one_of_many: see `lora_ga_cli.config.validation.validated`.
        shard: the part of the sweep that is done; all of it when None.
        tell: called once with how many jobs the part has.

    Raises:
        InvalidInput: anything is wrong with them; all faults at once.
        UserError: of a single job. In a sweep the other jobs go on; at the end a `SweepError` counts the failed ones.
    """
    sources, faults = check(arguments)
    if shard is not None and not sources.sweeps:
        faults = [*faults, Fault(COMMAND_LINE, f"--shard {shard} is a part of a sweep, and this is none", "add -m")]
    if faults:
        raise InvalidInput(faults)
    if shard is not None:
        tell(_share(shard, sources))
    jobs = _Jobs(sources, task, invalid, note, one_of_many, shard)
    if not sources.needs_hydra:
        jobs.run(sources, "")
    else:
        _run_jobs(jobs)
    if jobs.failures:
        raise SweepError(jobs.failures, len(jobs.titles)) if sources.sweeps else jobs.failures[0]


def _share(shard: Shard, sources: Sources) -> str:
    """How many jobs of a sweep a part has. Only Hydra counts what a pattern matches, or what another sweeper draws."""
    swept = [override for override in sources.overrides if override.is_sweep_override()]
    own_sweeper = any(override.key_or_group == "hydra/sweeper" for override in sources.overrides)
    patterns = any(override.value_type == ValueType.GLOB_CHOICE_SWEEP for override in swept)
    if own_sweeper or patterns or not all(override.is_discrete_sweep() for override in swept):
        return f"part {shard} of the jobs"
    total = math.prod(len(list(override.sweep_iterator())) for override in swept)
    return f"part {shard}: {sum(map(shard.has, range(total)))} of {total} jobs"


def _run_jobs(jobs: _Jobs) -> None:
    """Has Hydra run the jobs of a command line, here or in other processes."""
    sources = jobs.sources

    def application(node: DictConfig) -> None:
        if jobs.shard is not None and not jobs.shard.has(HydraConfig.get().job.num):
            return
        given = [parse_override(text) for text in HydraConfig.get().overrides.task]
        jobs.run(sources.for_job(given), _job_title(sources))

    try:
        with stored(sources):
            _run_hydra(PRIMARY, application, sources.arguments)
    except Exception as error:
        if isinstance(error, SweepError):
            raise  # from a launcher's process, which has reported what happened
        launcher = launcher_of(sources.arguments)
        if sources.sweeps and launcher and not isinstance(error, HYDRAS_ERRORS):
            raise SweepError([error], reason=f"{launcher}: {first_line(error)}") from error
        raise InvalidInput([Fault(COMMAND_LINE, first_line(error))]) from error


@dataclass
class _Jobs:
    """The jobs of a command line, and what became of them."""

    sources: Sources
    task: Task
    invalid: Callable[[InvalidInput, str], None]
    note: Callable[[str], None]
    one_of_many: bool
    shard: Shard | None = None
    titles: list[str] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    noted: set[str] = field(default_factory=set)
    process: tuple[str, int] = field(default_factory=distributed.this_process)

    def run(self, sources: Sources, title: str) -> None:
        """Does the job that these sources describe."""
        self.titles.append(title)
        try:
            self.task(self._config(sources, title), title)
        except interruption.Interruption as stop:
            if title:
                stop.notes.append("jobs after this one were not started")
            raise
        except Exception as error:
            if distributed.this_process() != self.process:
                raise SweepError([error]) from error  # in a launcher's process, whose caller sees only what is raised
            self.failures.append(error)

    def _config(self, sources: Sources, title: str) -> Config:
        try:
            config = configuration(sources, one_of_many=self.one_of_many)
        except InvalidInput as error:
            if title:
                self.invalid(error, title)
            raise
        for note in notes(config, sources):
            if note not in self.noted:
                self.noted.add(note)
                self.note(note)
        return config


def launch_each(
    count: int, job: Callable[[int], None], flags: Sequence[str], folder: str, gpus: Sequence[str] = ()
) -> None:
    """Calls ``job`` with 0, 1, … through one of Hydra's launchers: here one after the other, or in other processes.

    Args:
        job: reports its errors itself; an exception that it raises stops all jobs.
        flags: Hydra's, such as ``hydra/launcher=joblib`` and ``hydra.launcher.n_jobs=2``.
        folder: where a launcher may write its files.
        gpus: those among which the processes are divided.

    Raises:
        InvalidInput: Hydra does not take the flags, or several processes would do each job together.
    """

    def application(node: DictConfig) -> None:
        _require_one_process()
        job(int(node.cell))

    _require_one_process()

    node = {
        "defaults": ["_self_", {"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}],
        "cell": 0,
        "hydra": {"output_subdir": None, "sweep": {"dir": folder, "subdir": "${hydra.job.num}"}},
    }
    numbers = ",".join(map(str, range(count)))
    try:
        with restored_store():
            ConfigStore.instance().store(name=CELLS, node=node, provider="loraga")
            _run_hydra(CELLS, application, [f"cell={numbers}", *flags, "--multirun"], gpus)
    except HYDRAS_ERRORS as error:
        raise InvalidInput([Fault(COMMAND_LINE, first_line(error))]) from error


def _require_one_process() -> None:
    """
    Raises:
        InvalidInput: several processes work together, as those of torchrun do.
    """
    if distributed.count() > 1:
        what = f"{distributed.count()} processes would make each cell together, and each cell is made by one"
        hint = (
            "give the command without torchrun, and one task (hydra.launcher.tasks_per_node=1); see --jobs and --gpus"
        )
        raise InvalidInput([Fault(COMMAND_LINE, what, hint)])


def _run_hydra(
    name: str, application: Callable[[DictConfig], None], arguments: Sequence[str], gpus: Sequence[str] = ()
) -> None:
    """Has Hydra compose the stored configuration ``name``, and call ``application`` for each job.

    Args:
        gpus: those among which the processes that do jobs are divided. By default the processes of joblib are divided
            among all that this one sees, and a cluster's scheduler divides its own.
    """
    process, launcher = distributed.this_process(), launcher_of(arguments)
    places = tuple(gpus) or (visible_gpus() if launcher == "joblib" else ())

    def job(node: DictConfig) -> None:  # Hydra names the jobs of a cluster after its module
        is_here = distributed.this_process() == process
        if places and (gpus or not is_here):
            settings = HydraConfig.get()
            claim_gpu(places, Path(settings.runtime.cwd, settings.sweep.dir, ".gpus"))
        if is_here:
            with interruption.prompt():
                application(node)
            return
        is_task = launcher.startswith("submitit")
        handlers = handlers_of_task() if is_task else {}
        interruption.in_worker(handlers)
        if is_task:
            join_tasks()
        try:
            with interruption.prompt():  # raises at once if the job is one of those that are not started any more
                application(node)
                distributed.leave()
        except interruption.Interruption as stop:
            # raised in one of joblib's processes, it would end the others while they save their work
            if is_task:
                end_task(stop, handlers)

    main = hydra.main(version_base="1.3", config_path=None, config_name=name)(job)
    with (
        _process(["loraga", *arguments], {"HYDRA_FULL_ERROR": "1"}),
        when_stopped(launcher),
        ending_joblib() if launcher == "joblib" and several_on_one_gpu(arguments, places) else contextlib.nullcontext(),
    ):
        main()


@contextlib.contextmanager
def _process(arguments: list[str], variables: dict[str, str]) -> Iterator[None]:
    """Replaces what `hydra.main` reads from its process: the arguments, and a variable without which it prints
    tracebacks of its own instead of letting errors through."""
    arguments_before = sys.argv
    variables_before = {name: os.environ.get(name) for name in variables}
    sys.argv = arguments
    os.environ.update(variables)
    try:
        yield
    finally:
        sys.argv = arguments_before
        for name, value in variables_before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _job_title(sources: Sources) -> str:
    """In a sweep, the job's number and what tells it from the others."""
    settings = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN:
        return ""
    swept = {override.key_or_group for override in sources.overrides if override.is_sweep_override()}
    overrides = list(settings.overrides.task)
    differing = [text for text in overrides if text.lstrip("+").split("=")[0] in swept] or overrides
    return f"{settings.job.num + 1}: {' '.join(differing)}"
