"""Tasks of lm-evaluation-harness, an optional package."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from lora_ga_cli.config.schema import Config, EvalConfig
from lora_ga_cli.data.local import listed
from lora_ga_cli.errors import Fault, InvalidInput, UserError, suggest
from lora_ga_cli.evaluation.continuation import has_prefix
from lora_ga_cli.evaluation.tasks.base import Score
from lora_ga_cli.files import resolve_path

INSTALL = "pip install 'loraga[lm-eval]'"


def check(options: EvalConfig) -> None:
    """
    Raises:
        InvalidInput: no task is named, or one that the harness does not know; the package or a folder is missing;
            tasks of one's own without leave to run code.
    """
    if not _is_installed():
        raise InvalidInput([Fault("eval.task=lm_eval", "lm-evaluation-harness is not installed", INSTALL)])
    faults = []
    if not options.tasks:
        faults.append(Fault("eval.tasks", "no task is named", "eval.tasks=[mmlu,hellaswag]"))
    for folder in _folders(options):
        if not folder.is_dir():
            faults.append(Fault("eval.file", f"{folder} is no folder", "name that of the YAML files of your tasks"))
    if options.file is not None and not options.execute_code:
        what = "the templates and functions of tasks of one's own are programs, which would run on this machine"
        faults.append(Fault("eval.execute_code", what, "eval.execute_code=true on the command line allows it"))
    if faults:
        raise InvalidInput(faults)
    known = _manager(options).all_tasks
    for name in options.tasks:
        if name not in known:
            faults.append(Fault("eval.tasks", f"lm-evaluation-harness has no task {name}", suggest(name, known)))
    if faults:
        raise InvalidInput(faults)


def state(options: EvalConfig) -> dict[str, Any]:
    """What a score depends on beside the options: the harness's version, and tasks of one's own as they are."""
    files = [file for folder in _folders(options) for file in sorted(folder.rglob("*")) if file.is_file()]
    stats = [(str(file), file.stat()) for file in files if "__pycache__" not in file.parts]
    own = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return {"harness": importlib.metadata.version("lm_eval") if _is_installed() else None, "files": own}


def score(model: Any, tokenizer: Any, config: Config) -> Score:
    """Runs the harness on a model; values are named ``task/metric``, with the harness's own standard errors.

    Raises:
        UserError: the harness failed, usually for want of a network.
    """
    options = config.eval
    try:
        with _silently():
            from lm_eval.evaluator import simple_evaluate
            from lm_eval.models.huggingface import HFLM

            size = 1 if has_prefix(model) else options.batch_size
            found = simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size),
                tasks=options.tasks,
                num_fewshot=options.shots,
                limit=options.limit,
                task_manager=_manager(options),
                random_seed=config.seed,
                numpy_random_seed=config.seed,
                torch_random_seed=config.seed,
                fewshot_random_seed=config.seed,
                log_samples=True,
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # tasks and the library raise many unrelated types
        what = f"lm-evaluation-harness could not score {', '.join(options.tasks)}"
        raise UserError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    assert found is not None
    return Score(_values(found["results"]), _verdicts(found["samples"]))


@contextlib.contextmanager
def _silently() -> Iterator[None]:
    """Keeps the harness's bars, log and prints off the screen, and git's complaint, which it asks for its own records.

    Nor does it describe the machine for these, which takes seconds.
    """
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        mock.patch("lm_eval.evaluator.get_git_commit_hash", create=True),
        mock.patch("lm_eval.evaluator.add_env_info", create=True),
    ):
        yield


def _is_installed() -> bool:
    return importlib.util.find_spec("lm_eval") is not None


def _folders(options: EvalConfig) -> list[Path]:
    return [resolve_path(folder) for folder in listed(options.file)] if options.file is not None else []


def _manager(options: EvalConfig) -> Any:
    return _index(tuple(str(folder.resolve()) for folder in _folders(options)), tuple(options.tasks))


@functools.cache
def _index(folders: tuple[str, ...], tasks: tuple[str, ...]) -> Any:
    """The harness's list of tasks; without its own, which take ten seconds to read, where the folders have all."""
    with _silently():
        from lm_eval.tasks import TaskManager

        own = TaskManager(include_path=list(folders), include_defaults=False)
        return own if set(tasks) <= set(own.all_subtasks) else TaskManager(include_path=list(folders))


def _values(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The harness's numbers; its names are ``metric,filter``, of which the filter ``none`` says nothing."""
    values = {}
    for task, numbers in results.items():
        for name, value in numbers.items():
            metric = name.removesuffix(",none").replace(",", "/")
            if isinstance(value, int | float) and not isinstance(value, bool) and "," in name:
                values[f"{task}/{metric}"] = float(value)
    return values


def _verdicts(samples: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Every question with what the model said and what that scored, as plain data; once for each filter of a task."""
    kept = ("doc_id", "arguments", "resps", "filter", "filtered_resps", "target")
    return [
        {"task": task} | {name: _plain(sample.get(name)) for name in (*kept, *sample.get("metrics", ()))}
        for task, rows in samples.items()
        for sample in rows
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
