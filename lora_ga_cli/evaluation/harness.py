"""Tasks of lm-evaluation-harness, an optional package."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

from lora_ga_cli.config.schema import Config, EvalConfig
from lora_ga_cli.data.local import listed
from lora_ga_cli.errors import Fault, InvalidInput, UserError, nearest
from lora_ga_cli.evaluation.task import Score

INSTALL = "pip install 'loraga[lm-eval]'"


def check(options: EvalConfig) -> None:
    """
    Raises:
        InvalidInput: no task is named, or one that the harness does not know; the package is missing.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InvalidInput([Fault("eval.task=lm_eval", "lm-evaluation-harness is not installed", INSTALL)])
    if not options.tasks:
        raise InvalidInput([Fault("eval.tasks", "no task is named", "eval.tasks=[mmlu,hellaswag]")])
    manager = _manager(options)
    faults = []
    for name in options.tasks:
        if not manager.match_tasks([name]):
            what = f"lm-evaluation-harness has no task {name}"
            faults.append(Fault("eval.tasks", what, nearest(name, manager.all_tasks)))
    if faults:
        raise InvalidInput(faults)


def score(model: Any, tokenizer: Any, config: Config) -> Score:
    """Runs the harness on a model; values are named ``task/metric``, with the harness's own standard errors.

    Raises:
        UserError: the harness failed, usually for want of a network.
    """
    for name in ("lm_eval", "lm-eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    options = config.eval
    subject = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.batch_size)
    try:
        found = lm_eval.simple_evaluate(
            model=subject,
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
    except (OSError, ConnectionError) as error:
        raise UserError(f"lm-evaluation-harness could not load {', '.join(options.tasks)}: {error}") from error
    assert found is not None
    return Score(_values(found["results"]), _verdicts(found["samples"]))


def _manager(options: EvalConfig) -> Any:
    from lm_eval.tasks import TaskManager

    folders: Any = listed(options.file) if options.file is not None else None
    return TaskManager(include_path=folders)


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
    """Every question with what the model said, as plain data."""
    kept = ("doc_id", "arguments", "resps", "filtered_resps", "target")
    return [
        {"task": task} | {name: _plain(sample.get(name)) for name in kept}
        for task, rows in samples.items()
        for sample in rows
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
