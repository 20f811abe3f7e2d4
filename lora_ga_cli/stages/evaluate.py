"""Stage 4: scoring runs, adapters and models, beside the run and in one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.evaluation.task import Score
from lora_ga_cli.files import atomic_file, cache_root, read_json, sha256_json, write_json
from lora_ga_cli.gradient.key import rows_hash
from lora_ga_cli.report.console import step
from lora_ga_cli.report.figures import loss_curves
from lora_ga_cli.report.progress import counting
from lora_ga_cli.report.provenance import now
from lora_ga_cli.stages.candidates import Candidate
from lora_ga_cli.stages.inputs import evaluation_split, prepare_inputs
from lora_ga_cli.training import metrics
from lora_ga_cli.training.run_folder import RunFolder

NOT_SETTINGS = {"execute_code", "batch_size"}
"""Options of ``eval`` that leave a result as it is; the batch size counts where answers are sampled."""


def evaluate(candidate: Candidate) -> dict[str, Any]:
    """Scores something and writes the result, and every answer, beside it.

    The saved adapter on the pristine base is scored, the form that will be used. A result for the same rows and
    options is reused.

    Returns:
        The content of the result's file: ``eval.json`` for rows, ``eval/TASK-….json`` for a benchmark.

    Raises:
        RunError: a run has not finished, or its base is another.
        InvalidInput: options or files of a benchmark.
    """
    return TASKS.get(candidate.config.eval.task, _benchmark)(candidate)


def _rows(candidate: Candidate) -> dict[str, Any]:
    from lora_ga_cli.evaluation.metrics import METRICS
    from lora_ga_cli.evaluation.subject import Subject

    config = candidate.config
    inputs = prepare_inputs(config, splits=("validation",))
    split = evaluation_split(inputs)
    file = candidate.folder / "eval.json"
    identity = _identity(candidate, {"rows": rows_hash(split.rows)})
    if (stored := _stored(file, identity)) is not None:
        return stored
    subject = Subject(
        candidate.load(inputs),
        inputs.tokenizer,
        config.model.task,
        split,
        config.eval,
        counting,
        label_names=config.dataset.label_names,
    )
    values: dict[str, float] = {}
    verdicts: list[dict[str, Any]] = []
    for name in config.eval.metrics:
        score = METRICS[name](subject)
        values |= score.values
        verdicts = score.verdicts or verdicts
    if verdicts:
        _write_lines(candidate.folder / "predictions.jsonl", verdicts)
    return _write(candidate, file, identity, Score(values), rows=len(split.rows), split=split.name)


def check_benchmark(config: Config) -> None:
    """Refuses what would fail after a training, or after hours of generation; nothing for rows.

    Raises:
        InvalidInput, UserError
    """
    from lora_ga_cli.evaluation import harness
    from lora_ga_cli.evaluation.benchmarks import BENCHMARKS

    options = config.eval
    if options.task != "rows" and config.model.task == "sequence_classification":
        what = f"eval.task={options.task} wants a model that writes, and this one classifies"
        raise InvalidInput([Fault("configuration", what)])
    if options.task == "lm_eval":
        harness.check(options)
    if options.task in BENCHMARKS:
        BENCHMARKS[options.task](options, cache_root(config.cache_dir)).check()


def _benchmark(candidate: Candidate) -> dict[str, Any]:
    from lora_ga_cli.evaluation.benchmarks import BENCHMARKS
    from lora_ga_cli.evaluation.generate import Writer, check_conversation

    config, options = candidate.config, candidate.config.eval
    check_benchmark(config)
    benchmark = BENCHMARKS[options.task](options, cache_root(config.cache_dir))
    problems = benchmark.problems()
    inputs = prepare_inputs(config, splits=())
    if benchmark.chat:
        check_conversation(options, inputs.tokenizer)
    identity = _identity(candidate, {"problems": [[item.id, item.turns, dict(item.row)] for item in problems]})
    stem = candidate.folder / "eval" / f"{options.task}-{identity[:8]}"
    file = stem.with_suffix(".json")
    if (stored := _stored(file, identity)) is not None:
        return stored
    drafts = stem.with_suffix(".drafts.jsonl")
    writer = Writer(candidate.load(inputs), inputs.tokenizer, config.model.task, options, config.seed)
    replies = writer.replies(benchmark, drafts, counting)
    score = benchmark.score(replies, counting)
    lines = [
        {"id": reply.problem.id, "sample": reply.sample, "prompts": reply.prompts, "texts": reply.texts, **verdict}
        for reply, verdict in zip(replies, score.verdicts, strict=True)
    ]
    _write_lines(stem.with_suffix(".jsonl"), lines)
    cut = sum(reply.cut for reply in replies) / len(replies)
    score = Score({**score.values, "cut": cut}, score.verdicts)
    result = _write(candidate, file, identity, score, rows=len(problems), split=options.task)
    drafts.unlink()
    return result


def _lm_eval(candidate: Candidate) -> dict[str, Any]:
    from lora_ga_cli.evaluation import harness

    config, options = candidate.config, candidate.config.eval
    check_benchmark(config)
    inputs = prepare_inputs(config, splits=())
    identity = _identity(candidate, harness.state(options))
    stem = candidate.folder / "eval" / f"{options.task}-{identity[:8]}"
    if (stored := _stored(stem.with_suffix(".json"), identity)) is not None:
        return stored
    step("eval", f"lm-evaluation-harness: {', '.join(options.tasks)}")
    score = harness.score(candidate.load(inputs), inputs.tokenizer, config)
    _write_lines(stem.with_suffix(".jsonl"), score.verdicts)
    problems = {(verdict["task"], verdict["doc_id"]) for verdict in score.verdicts}
    split = ", ".join(options.tasks)
    return _write(candidate, stem.with_suffix(".json"), identity, score, rows=len(problems), split=split)


TASKS: dict[str, Callable[[Candidate], dict[str, Any]]] = {"rows": _rows, "lm_eval": _lm_eval}
"""By `EvalConfig.task`; all others are benchmarks."""


def _identity(candidate: Candidate, of_rows: Mapping[str, Any]) -> str:
    """What a result belongs to: the candidate as it is, the rows, and the options that can change it."""
    options = candidate.config.eval
    left_out = NOT_SETTINGS if options.temperature == 0 else NOT_SETTINGS - {"batch_size"}
    chosen = options.model_dump(mode="json", exclude=left_out)
    return sha256_json({"eval": chosen, "of": candidate.state, "seed": candidate.config.seed, **of_rows})


def _stored(file: Path, identity: str) -> dict[str, Any] | None:
    if not file.exists():
        return None
    stored = read_json(file)
    if stored.get("identity") != identity:
        return None
    step("eval", f"reused {file}")
    assert isinstance(stored, dict)
    return stored


def _write(candidate: Candidate, file: Path, identity: str, score: Score, *, rows: int, split: str) -> dict[str, Any]:
    result = {
        "identity": identity,
        "values": score.values,
        "rows": rows,
        "split": split,
        "options": candidate.config.eval.model_dump(mode="json"),
        "time": now(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, result)
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in score.values.items())
    step("eval", f"{candidate.name}: {shown} ({rows} {'rows' if candidate.config.eval.task == 'rows' else 'problems'})")
    return result


def _write_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as temporary:
        text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in lines)
        temporary.write_text(text, encoding="utf-8")


def compare_curves(runs: Sequence[RunFolder], file: Path) -> None:
    """Draws the loss curves of several runs into one picture."""
    labels = _labels(runs)
    curves = {label: metrics.read(run.metrics_file) for label, run in zip(labels, runs, strict=True)}
    loss_curves(curves, file, title=f"{len(runs)} runs")


def _labels(runs: Sequence[RunFolder]) -> list[str]:
    """Methods where they tell the runs apart, else folder names."""
    methods = [str(run.read_config()["method"]["name"]) for run in runs]
    return methods if len(set(methods)) == len(methods) else [run.path.name for run in runs]
