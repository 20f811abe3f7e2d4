"""Stage 4: scoring runs, adapters and models, beside the run and in one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_ga_cli.config.schema import Config, EvalConfig
from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.evaluation.tasks.base import Benchmark, Problem, Reply, Score, problems_of
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

NOT_SETTINGS: dict[str, Any] = {
    "execute_code": True,
    "judge": {"prompts", "references", "concurrency", "retries", "key_variable"},
}
"""Options of ``eval`` that leave a result as it is; the judge's files count by content."""
OF_ANSWERS = {"task", "prompt", "max_new_tokens", "temperature", "top_p", "samples"}
"""Options of ``eval`` that an answer depends on. The batch size counts where answers are sampled, here as there."""


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
    scores = {name: METRICS[name](subject) for name in config.eval.metrics}
    verdicts = {name: score.verdicts for name, score in scores.items() if score.verdicts}
    if verdicts:
        lines = [dict(zip(verdicts, row, strict=True)) for row in zip(*verdicts.values(), strict=True)]
        _write_lines(candidate.folder / "predictions.jsonl", lines)
    values = {name: value for score in scores.values() for name, value in score.values.items()}
    return _write(candidate, file, identity, Score(values), rows=len(split.rows), split=split.name)


def check_benchmark(config: Config) -> None:
    """Refuses what would fail after a training, or after hours of generation.

    Raises:
        InvalidInput, ModelError, UserError
    """
    from lora_ga_cli.evaluation.tasks import lm_eval as harness

    options = config.eval
    if options.task == "rows":
        if options.file is None and not config.dataset.has_validation:
            hint = "eval.file=FILE, or dataset.validation_fraction=0.05"
            raise InvalidInput([Fault("configuration", "there are no rows to evaluate on", hint)])
        return
    _refuse_classifier(config)
    if options.task == "lm_eval":
        harness.check(options)
    else:
        benchmark = _named(config)
        _check(benchmark, config)
        if options.file is not None:
            _check_room(benchmark, config)


def _check_room(benchmark: Benchmark, config: Config) -> None:
    """Refuses first turns for which the model has no positions, without its weights.

    Raises:
        ModelError
    """
    from lora_ga_cli.evaluation.generate import Writer
    from lora_ga_cli.methods.base import method_of

    inputs = prepare_inputs(config, splits=())
    empty = method_of(config).attach_empty(inputs.empty_model())
    Writer(empty, inputs.tokenizer, config.model.task, config.eval, config.seed).require_room(benchmark)


def _refuse_classifier(config: Config) -> None:
    if config.model.task == "sequence_classification":
        what = f"eval.task={config.eval.task} wants a model that writes, and this one classifies"
        raise InvalidInput([Fault("configuration", what)])


def _named(config: Config) -> Benchmark:
    from lora_ga_cli.evaluation.benchmarks import BENCHMARKS

    return BENCHMARKS[config.eval.task](config.eval, cache_root(config.cache_dir))


def _check(benchmark: Benchmark, config: Config) -> None:
    from lora_ga_cli.evaluation.gathering import gathered
    from lora_ga_cli.evaluation.generate import check_conversation

    faults: list[Fault] = []
    if benchmark.chat:
        tokenizer = prepare_inputs(config, splits=()).tokenizer if config.eval.prompt is None else None
        gathered(faults, lambda: check_conversation(config.eval, tokenizer))
    gathered(faults, benchmark.check)
    if faults:
        raise InvalidInput(faults)
    if config.eval.file is not None:
        problems_of(benchmark)


def _benchmark(candidate: Candidate) -> dict[str, Any]:
    config, options = candidate.config, candidate.config.eval
    _refuse_classifier(config)
    benchmark = _named(config)
    try:
        problems = problems_of(benchmark)
        asked = [[item.id, item.turns, dict(item.row)] for item in problems]
        identity = _identity(candidate, {"problems": asked, "grading": dict(benchmark.grading())})
    except InvalidInput:
        _check(benchmark, config)  # which says what else is wrong
        raise
    file = candidate.folder / "eval" / f"{options.task}-{identity[:8]}.json"
    if (stored := _stored(file, identity)) is not None:
        return stored
    _check(benchmark, config)
    answers = _answers_identity(candidate, problems)
    drafts = file.with_name(f"{options.task}-{answers[:8]}.drafts.jsonl")
    replies = _judged_before(file.parent, answers, problems)
    if len(replies) < len(problems) * options.samples:
        replies = _written(candidate, benchmark, drafts)
    score = benchmark.score(replies, counting)
    lines = [reply.as_json() | verdict for reply, verdict in zip(replies, score.verdicts, strict=True)]
    _write_lines(file.with_suffix(".jsonl"), lines)
    cut = sum(reply.cut for reply in replies) / len(replies)
    score = Score({**score.values, "cut": cut}, score.verdicts)
    result = _write(candidate, file, identity, score, rows=len(problems), split=options.task, answers=answers)
    drafts.unlink(missing_ok=True)
    return result


def _answers_identity(candidate: Candidate, problems: Sequence[Problem]) -> str:
    """What the answers to a benchmark belong to, whoever judges them and however."""
    options = candidate.config.eval
    chosen = options.model_dump(mode="json", include=OF_ANSWERS | _sampled(options))
    asked = [[problem.id, problem.turns] for problem in problems]
    return sha256_json({"eval": chosen, "of": candidate.state, "seed": candidate.config.seed, "asked": asked})


def _judged_before(folder: Path, answers: str, problems: Sequence[Problem]) -> list[Reply]:
    """The answers that another result in the folder holds, if they are the ones wanted."""
    from lora_ga_cli.evaluation.generate import read_replies

    for file in sorted(folder.glob("*.json")):
        lines = file.with_suffix(".jsonl")
        if read_json(file).get("answers") == answers and lines.is_file():
            step("eval", f"answers as in {lines}")
            return list(read_replies(lines, problems).values())
    return []


def _written(candidate: Candidate, benchmark: Benchmark, drafts: Path) -> list[Reply]:
    from lora_ga_cli.evaluation.generate import Writer

    config = candidate.config
    inputs = prepare_inputs(config, splits=())
    writer = Writer(candidate.load(inputs), inputs.tokenizer, config.model.task, config.eval, config.seed)
    return writer.replies(benchmark, drafts, counting)


def _lm_eval(candidate: Candidate) -> dict[str, Any]:
    from lora_ga_cli.evaluation.tasks import lm_eval as harness

    config, options = candidate.config, candidate.config.eval
    _refuse_classifier(config)
    identity = _identity(candidate, harness.state(options))
    stem = candidate.folder / "eval" / f"{options.task}-{identity[:8]}"
    if (stored := _stored(stem.with_suffix(".json"), identity)) is not None:
        return stored
    harness.check(options)
    inputs = prepare_inputs(config, splits=())
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
    unsampled = {} if _sampled(options) else {"batch_size": True}
    chosen = options.model_dump(mode="json", exclude=NOT_SETTINGS | unsampled)
    return sha256_json({"eval": chosen, "of": candidate.state, "seed": candidate.config.seed, **of_rows})


def _sampled(options: EvalConfig) -> set[str]:
    """What further an answer depends on, because it is drawn beside others."""
    return {"batch_size"} if options.temperature > 0 else set()


def _stored(file: Path, identity: str) -> dict[str, Any] | None:
    if not file.exists():
        return None
    stored = read_json(file)
    if stored.get("identity") != identity:
        return None
    step("eval", f"reused {file}")
    assert isinstance(stored, dict)
    return stored


def _write(
    candidate: Candidate, file: Path, identity: str, score: Score, *, rows: int, split: str, **about: str
) -> dict[str, Any]:
    result = {
        "identity": identity,
        **about,
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
