"""Stage 4: scoring runs, beside the run and in one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_ga_cli.config.schema import Config
from lora_ga_cli.evaluation.metrics import METRICS, Subject
from lora_ga_cli.files import atomic_file, read_json, sha256_json, write_json
from lora_ga_cli.gradient.key import rows_hash
from lora_ga_cli.report.console import step
from lora_ga_cli.report.figures import loss_curves
from lora_ga_cli.report.progress import counting
from lora_ga_cli.report.provenance import now
from lora_ga_cli.stages.inputs import evaluation_split, prepare_inputs
from lora_ga_cli.stages.trained import load_trained, require_finished
from lora_ga_cli.training import metrics
from lora_ga_cli.training.run_folder import RunFolder


def evaluate(run: RunFolder, config: Config) -> dict[str, Any]:
    """Scores a finished run and writes ``eval.json`` (and ``predictions.jsonl``) into its folder.

    The saved adapter on the pristine base is scored, the form that will be used. A result for the same rows and
    options is reused.

    Returns:
        The content of ``eval.json``.

    Raises:
        RunError: the run has not finished, or the base is another.
        DataError: there are no rows to score on.
    """
    require_finished(run)
    inputs = prepare_inputs(config, splits=("validation",))
    split = evaluation_split(inputs)
    identity = sha256_json(
        {
            "eval": config.eval.model_dump(mode="json"),
            "rows": rows_hash(split.rows),
            "finished": run.manifest["finished"],
        }
    )
    if run.evaluation_file.exists() and (stored := read_json(run.evaluation_file)).get("identity") == identity:
        step("eval", f"reused {run.evaluation_file}")
        assert isinstance(stored, dict)
        return stored
    model = load_trained(inputs, run)
    values: dict[str, float] = {}
    predictions: list[dict[str, Any]] = []
    for name in config.eval.metrics:
        subject = Subject(model, inputs.tokenizer, config.model.task, split, config.eval, counting)
        score = METRICS[name](subject)
        values |= score.values
        predictions = score.predictions or predictions
    result = {
        "identity": identity,
        "values": values,
        "rows": len(split.rows),
        "split": split.name,
        "options": config.eval.model_dump(mode="json"),
        "time": now(),
    }
    if predictions:
        with atomic_file(run.predictions_file) as temporary:
            temporary.write_text(
                "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in predictions), encoding="utf-8"
            )
    write_json(run.evaluation_file, result)
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
    step("eval", f"{run.path.name}: {shown} ({len(split.rows)} rows)")
    return result


def compare_curves(runs: Sequence[RunFolder], file: Path) -> None:
    """Draws the loss curves of several runs into one picture."""
    labels = _labels(runs)
    curves = {label: metrics.read(run.metrics_file) for label, run in zip(labels, runs, strict=True)}
    loss_curves(curves, file, title=f"{len(runs)} runs")


def _labels(runs: Sequence[RunFolder]) -> list[str]:
    """Methods where they tell the runs apart, else folder names."""
    methods = [str(run.read_config()["method"]["name"]) for run in runs]
    return methods if len(set(methods)) == len(methods) else [run.path.name for run in runs]
