"""Tasks of lm-evaluation-harness, an optional package."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lora_ga_cli.config.schema import EvalOptions
from lora_ga_cli.data.local import listed
from lora_ga_cli.errors import Fault, InvalidInput, UserError, suggest
from lora_ga_cli.evaluation.tasks.answers import Answer
from lora_ga_cli.evaluation.tasks.base import EvalInputs, Result, Score, Task
from lora_ga_cli.paths import resolve_path
from lora_ga_cli.registry import TASKS

INSTALL = "pip install 'loraga[lm-eval]'"
STANDARD_ERROR = "_stderr"
"""Part of the names of standard errors."""
KEPT = ("doc_id", "arguments", "resps", "filter", "filtered_resps", "target")
"""The entries of a stored question, besides its task and the values of its metrics."""
RECORDS = ("get_git_commit_hash", "add_env_info")
"""Functions by which the harness describes the repository and the machine, for records that are not used here."""


class LmEvalOptions(EvalOptions):
    """Options of lm-evaluation-harness. ``file`` is a folder with the user's tasks."""

    task: Literal["lm_eval"] = "lm_eval"
    """What is scored."""
    tasks: list[str] = Field(default_factory=list)
    """Names of tasks of lm-evaluation-harness."""
    shots: Annotated[int, Field(ge=0)] | None = None
    """Examples before each question; null uses the task's number."""
    execute_code: bool = False
    """Allow to run code that the tasks in ``file`` name, without a sandbox. Can only be set on the command line."""


@TASKS.register("lm_eval")
class LmEval(Task):
    """Tasks of lm-evaluation-harness. Values are named ``task/metric``, and include the harness's standard errors."""

    Options = LmEvalOptions
    options: LmEvalOptions
    irrelevant: ClassVar = {"execute_code": True}

    @property
    def summary(self) -> str:
        return ", ".join([self.name, *self.options.tasks])

    def files(self) -> dict[str, str | list[str] | None]:
        return {}  # eval.file is a folder, whose files are part of the identity

    def check_ready(self, inputs: EvalInputs) -> None:
        check(self.options)

    def identity(self, inputs: EvalInputs) -> Mapping[str, Any]:
        """The version of the harness, and the size and time of the files of the user's tasks."""
        files = [file for folder in _folders(self.options) for file in sorted(folder.rglob("*")) if file.is_file()]
        stats = [(str(file), file.stat()) for file in files if "__pycache__" not in file.parts]
        user_files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        version = importlib.metadata.version("lm_eval") if _is_installed() else None
        return {"harness": version, "files": user_files}

    def evaluate(self, inputs: EvalInputs, file: Path) -> Result:
        """Runs the harness on the model.

        Raises:
            UserError: the harness failed, usually because there is no network.
        """
        options, names = self.options, ", ".join(self.options.tasks)
        inputs.note(f"lm-evaluation-harness: {names}")
        results = _run(inputs.model(), inputs.tokenizer, options, inputs.config.seed)
        verdicts = _verdicts(results["samples"])
        problems = {(verdict["task"], verdict["doc_id"]) for verdict in verdicts}
        return Result(_score(results), len(problems), names, verdicts)

    @classmethod
    def answers(cls, lines: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Those of tasks that generate text; others compare probabilities."""
        return [
            _answer(line, text) for line in lines if line["resps"] and isinstance(text := _first(line["resps"]), str)
        ]


def _answer(line: Mapping[str, Any], text: str) -> Answer:
    metrics = {name: value for name, value in line.items() if name not in ("task", *KEPT)}
    verdict = ", ".join(f"{name} {value:g}" for name, value in metrics.items() if isinstance(value, int | float))
    # one metric that is 0 or 1 says whether the answer is right; others are degrees, or several opinions
    decides = len(metrics) == 1 and all(value in (0, 1) for value in metrics.values())
    title = f"{line['task']}/{line['doc_id']}"
    title += "" if line["filter"] in (None, "none") else f", {line['filter']}"
    prompt = _first(line["arguments"])
    correct = bool(next(iter(metrics.values()))) if decides else None
    return Answer(title, title, str(prompt), text, str(line["target"]), verdict, correct)


def _first(value: Any) -> Any:
    """The first item of the first item, and so on: how the harness nests requests and answers."""
    while isinstance(value, list | Mapping) and value:
        value = value[0] if isinstance(value, list) else next(iter(value.values()))
    return value


def check(options: LmEvalOptions) -> None:
    """Checks the package, the named tasks and the user's folders.

    Raises:
        InvalidInput: no task is named, or the harness does not have it; the package or a folder is missing; the user's
            tasks may not run code.
    """
    if not _is_installed():
        raise InvalidInput([Fault("eval.task=lm_eval", "lm-evaluation-harness is not installed", INSTALL)])
    faults = []
    if not options.tasks:
        faults.append(Fault("eval.tasks", "no task is named", "eval.tasks=[mmlu,hellaswag]"))
    for folder in _folders(options):
        if not folder.is_dir():
            faults.append(Fault("eval.file", f"{folder} is not a folder", "name the folder of your tasks' YAML files"))
    if options.file is not None and not options.execute_code:
        what = "the templates and functions of your tasks are programs, which would run on this machine"
        faults.append(Fault("eval.execute_code", what, "eval.execute_code=true on the command line allows it"))
    if faults:
        raise InvalidInput(faults)
    available = _manager(options).all_tasks
    for name in options.tasks:
        if name not in available:
            faults.append(Fault("eval.tasks", f"lm-evaluation-harness has no task {name}", suggest(name, available)))
    if faults:
        raise InvalidInput(faults)


def _run(model: Any, tokenizer: Any, options: LmEvalOptions, seed: int) -> dict[str, Any]:
    """The harness's results, with its samples."""
    import torch

    from lora_ga_cli.evaluation.continuation import has_prefix

    try:
        with _silenced():
            from lm_eval.evaluator import simple_evaluate
            from lm_eval.models.huggingface import HFLM

            size = 1 if has_prefix(model) else options.batch_size
            results = simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size),
                tasks=options.tasks,
                num_fewshot=options.shots,
                limit=options.limit,
                task_manager=_manager(options),
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
                log_samples=True,
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # tasks and the library raise many unrelated types
        what = f"lm-evaluation-harness could not score {', '.join(options.tasks)}"
        raise UserError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    assert results is not None
    return dict(results)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keeps the harness's progress bars, logs and prints off the screen.

    It also replaces `RECORDS`: one prints a message of git, and the other takes seconds.
    """
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        evaluator = importlib.import_module("lm_eval.evaluator")
        replaced = {name: getattr(evaluator, name) for name in RECORDS if hasattr(evaluator, name)}
        for name in replaced:
            setattr(evaluator, name, _record_nothing)
        try:
            yield
        finally:
            for name, function in replaced.items():
                setattr(evaluator, name, function)


def _record_nothing(*arguments: object, **options: object) -> None:
    return None


def _is_installed() -> bool:
    return importlib.util.find_spec("lm_eval") is not None


def _folders(options: LmEvalOptions) -> list[Path]:
    return [resolve_path(folder) for folder in listed(options.file)] if options.file is not None else []


def _manager(options: LmEvalOptions) -> Any:
    return _index(tuple(str(folder.resolve()) for folder in _folders(options)), tuple(options.tasks))


@functools.cache
def _index(folders: tuple[str, ...], tasks: tuple[str, ...]) -> Any:
    """The harness's index of tasks. Its own tasks take ten seconds to read, so only if the folders lack one."""
    with _silenced():
        from lm_eval.tasks import TaskManager

        of_user = TaskManager(include_path=list(folders), include_defaults=False)
        return of_user if set(tasks) <= set(of_user.all_subtasks) else TaskManager(include_path=list(folders))


def _score(results: Mapping[str, Any]) -> Score:
    """The values of the results. The harness states of every metric whether higher values are better."""
    values, lower, unranked = {}, set(), set()
    higher_is_better = results.get("higher_is_better", {})
    for task, numbers in results["results"].items():
        for name, value in numbers.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or "," not in name:
                continue
            metric = name.partition(",")[0]
            label = f"{task}/{_label(name)}"
            values[label] = float(value)
            if metric.endswith(STANDARD_ERROR):
                unranked.add(label)
            elif higher_is_better.get(task, {}).get(metric) is False:
                lower.add(label)
    return Score(values, lower_is_better=frozenset(lower), unranked=frozenset(unranked))


def _label(name: str) -> str:
    """A value's name from the harness's ``metric,filter``; the filter ``none`` is left out."""
    return name.removesuffix(",none").replace(",", "/")


def _verdicts(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Every question with the model's answers and their scores, as plain data; once for each filter of a task."""
    return [
        {"task": task} | {name: _plain(sample.get(name)) for name in (*KEPT, *sample.get("metrics", ()))}
        for task, rows in samples.items()
        for sample in rows
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
