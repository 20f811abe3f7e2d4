"""Stage 4: scores runs, adapters and models, and stores each result beside what was scored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lora_ga_cli.config.schema import Config
from lora_ga_cli.data import Split
from lora_ga_cli.errors import DamagedFile, Fault, InvalidInput
from lora_ga_cli.evaluation.completions import LINES_DIGEST
from lora_ga_cli.evaluation.tasks.base import Progress, Result, Task, task_of
from lora_ga_cli.files import atomic_file, sha256_file
from lora_ga_cli.json_files import sha256_json, write_json
from lora_ga_cli.report.console import step, warn
from lora_ga_cli.report.figures import loss_curves
from lora_ga_cli.report.progress import counting
from lora_ga_cli.report.provenance import now
from lora_ga_cli.stages.eval_targets import EvalTarget
from lora_ga_cli.stages.inputs import Inputs, evaluation_split, prepare_inputs
from lora_ga_cli.stages.report import renew_run_report
from lora_ga_cli.stages.shared_base import SharedBases
from lora_ga_cli.stages.stored_results import check_lines, read_result
from lora_ga_cli.training.run_files import check_adapter, points_of
from lora_ga_cli.training.run_folder import RunFolder
from lora_ga_cli.training.run_names import names_told_apart


def evaluate(target: EvalTarget, bases: SharedBases | None = None) -> dict[str, Any]:
    """Scores a target by the task that its configuration names.

    A run is scored by its saved adapter on the original base model, the form in which it is used. A stored result of
    the same model, rows and options is reused.

    Args:
        bases: loads the model, where others on the same base are scored too.

    Returns:
        The content of the result's file.

    Raises:
        RunError: a run has not finished, or its base model has changed.
        DamagedFile: the run's adapter is not what was written.
        UserError: options, files or services of the task.
    """
    task, inputs = task_of(target.config), LazyInputs(target.config, target, bases)
    try:
        identity = _identity(target, task, inputs)
    except InvalidInput:
        task.check_ready(inputs)  # reports this fault together with others
        raise
    file = task.result_file(target.folder, identity)
    if (stored := _stored(file, identity, task.lines_file(file))) is not None:
        if target.run is not None and target.config.eval.endpoint.base_url is None:
            check_adapter(target.run)
        step("eval", f"reused {file}")
        return stored
    task.check_ready(inputs)
    result = task.evaluate(inputs, file)
    lines = task.lines_file(file)
    if result.lines:
        _write_lines(lines, result.lines)
    content = _write(target, file, identity, result, sha256_file(lines) if result.lines else None)
    for obsolete in result.obsolete:
        obsolete.unlink(missing_ok=True)
    values = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in result.score.values.items())
    step("eval", f"{target.label}: {values} ({result.rows} {task.unit})")
    if target.run is not None and target.folder == target.run.path:
        renew_run_report(target.run)
    return content


def check_evaluation(config: Config) -> None:
    """Refuses an evaluation that would fail after the training.

    Raises:
        UserError
    """
    if config.eval.endpoint.base_url is not None:
        what = "no server can have the model that is trained first"
        hint = "loraga train, then serve the run, then loraga eval RUN"
        raise InvalidInput([Fault("eval.endpoint.base_url", what, hint)])
    task_of(config).check_before_training(LazyInputs(config))


class LazyInputs:
    """Gives a task the tokenizer, the rows and the model of a target, each loaded when it is first used.

    Args:
        target: what is scored; without one, no model is available.
        bases: loads its model; by default the target does.
    """

    progress: Progress = staticmethod(counting)

    def __init__(self, config: Config, target: EvalTarget | None = None, bases: SharedBases | None = None):
        self._given = config
        self._target = target
        self._bases = bases

    @property
    def config(self) -> Config:
        """The configuration; once the rows are loaded, with what was found in them."""
        return self._inputs.config if "_inputs" in vars(self) else self._given

    @property
    def name(self) -> str:
        assert self._target is not None
        return self._target.name

    @property
    def state(self) -> str:
        assert self._target is not None
        return self._target.state

    @property
    def tokenizer(self) -> Any:
        return self._inputs.tokenizer

    @cached_property
    def split(self) -> Split:
        return evaluation_split(self._inputs)

    def model(self) -> Any:
        assert self._target is not None
        return self._target.load(self._inputs) if self._bases is None else self._bases.load(self._target, self._inputs)

    def empty_model(self) -> Any:
        from lora_ga_cli.methods.base import method_of

        return method_of(self.config).attach_empty(self._inputs.empty_model())

    def note(self, text: str) -> None:
        step("eval", text)

    def warn(self, text: str) -> None:
        warn(text)

    @cached_property
    def _inputs(self) -> Inputs:
        validates = task_of(self._given).needs_rows and self._given.eval.file is None
        label_names = None if self._target is None else self._target.label_names
        return prepare_inputs(
            _limited(self._given),
            splits=("validation",) if validates else (),
            label_names=label_names,
            to_train=False,
        )


def _limited(config: Config) -> Config:
    """The configuration whose validation rows are at most ``eval.limit``."""
    counts = [count for count in (config.eval.limit, config.dataset.max_validation_rows) if count is not None]
    dataset = config.dataset.model_copy(update={"max_validation_rows": min(counts, default=None)})
    return config.model_copy(update={"dataset": dataset})


def _identity(target: EvalTarget, task: Task, inputs: LazyInputs) -> str:
    """A hash of everything that a result depends on: the model, the rows, the seed and the options."""
    parts = {"eval": task.relevant_options(), "model": target.state, "seed": target.config.seed}
    return sha256_json({**parts, **task.served_by(inputs), **task.identity(inputs)})


def _stored(file: Path, identity: str, lines: Path) -> dict[str, Any] | None:
    """The stored result of this identity, if it and the lines beside it are what was written."""
    try:
        stored = read_result(file)
        if stored is None or stored.get("identity") != identity:
            return None
        check_lines(lines, stored)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        warn(f"{error.file} {error.what}; it is evaluated again")
        return None
    return stored


def _write(target: EvalTarget, file: Path, identity: str, result: Result, lines: str | None) -> dict[str, Any]:
    score = result.score
    content = {
        "identity": identity,
        **result.extra,
        "values": dict(score.values),
        "lower_is_better": sorted(score.lower_is_better),
        "unranked": sorted(score.unranked),
        "shares": sorted(score.shares),
        "rows": result.rows,
        "split": result.split,
        "options": target.config.eval.model_dump(mode="json"),
        "time": now(),
        **({} if lines is None else {LINES_DIGEST: lines}),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, content, digest=True)
    return content


def _write_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as temporary:
        text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in lines)
        temporary.write_text(text, encoding="utf-8")


def compare_curves(runs: Sequence[RunFolder], file: Path) -> None:
    """Draws the loss curves of several runs into one picture."""
    labels = _labels(runs)
    curves = {label: points_of(run) for label, run in zip(labels, runs, strict=True)}
    loss_curves(curves, file, title=f"{len(runs)} runs")


def _labels(runs: Sequence[RunFolder]) -> list[str]:
    """The runs' methods if they differ, else the names of their folders, or their paths if these are the same too."""
    methods = [str(run.read_config()["method"]["name"]) for run in runs]
    return methods if len(set(methods)) == len(methods) else names_told_apart([run.path for run in runs])
