"""Metrics on the rows of the data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from lora_ga_cli.config.schema import EvalOptions, Positive, RegularExpression
from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.evaluation.tasks.answers import Answer, verdict_of
from lora_ga_cli.evaluation.tasks.base import EvalInputs, Result, Score, Task
from lora_ga_cli.interruption import keeping
from lora_ga_cli.json_files import sha256_json
from lora_ga_cli.registry import TASKS

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config

Metric = Literal["loss", "exact_match", "accuracy", "matthews_correlation", "f1", "label_tokens"]
GENERATED, CLASSIFIED = ("causal_lm", "seq2seq_lm"), ("sequence_classification",)
METRIC_TASKS = {
    "exact_match": GENERATED,
    "label_tokens": GENERATED,
    "accuracy": CLASSIFIED,
    "matthews_correlation": CLASSIFIED,
    "f1": CLASSIFIED,
}
"""The values of ``model.task`` for which a metric is defined, if not all."""
WRITTEN = ("exact_match",)
"""The metrics of answers in text."""


class RowsOptions(EvalOptions):
    """Options of metrics on rows."""

    task: Literal["rows"] = "rows"
    """What is scored."""
    metrics: list[Metric] = Field(["loss"], min_length=1)
    """``loss`` also gives perplexity. ``exact_match`` compares generated answers. A classifier has ``accuracy``,
    ``matthews_correlation`` and ``f1``. ``label_tokens`` compares the words of ``dataset.label_names``."""
    max_new_tokens: Positive = 256
    """Longest generated answer, in tokens."""
    answer_pattern: RegularExpression = r"####\s*(.+)"
    """Regular expression whose first group is the answer, in the generation and in the reference."""


@TASKS.register("rows")
class Rows(Task):
    """Metrics on ``eval.file``, or else on the data set's validation rows. See `evaluation.metrics`."""

    Options = RowsOptions
    options: RowsOptions
    model_tasks = (*GENERATED, *CLASSIFIED)
    needs_rows = True
    unit = "rows"

    @property
    def summary(self) -> str:
        return ", ".join(self.options.metrics)

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        options: Any = config.eval
        if "label_tokens" in options.metrics and not config.dataset.label_names and config.dataset.label is None:
            yield "eval.metrics has label_tokens, which compares the words of dataset.label_names: name them"
        for metric in options.metrics:
            if metric in METRIC_TASKS and config.model.task not in METRIC_TASKS[metric]:
                yield f"eval.metrics has {metric}, which is not defined for model.task={config.model.task}"

    @classmethod
    def needs_logits(cls, options: Any) -> str:
        metrics = [name for name in options.metrics if name not in WRITTEN]
        return f"eval.metrics has {', '.join(metrics)}, computed from the model's logits" if metrics else ""

    def check_ready(self, inputs: EvalInputs) -> None:
        if self.options.file is None and not inputs.config.dataset.has_validation:
            hint = "eval.file=FILE, or dataset.validation_fraction=0.05"
            raise InvalidInput([Fault("configuration", "there are no rows to evaluate on", hint)])
        endpoint = self.endpoint(inputs)
        if endpoint is not None and (faults := endpoint.faults()):
            raise InvalidInput(faults)

    def identity(self, inputs: EvalInputs) -> Mapping[str, Any]:
        return {"rows": inputs.split.sha256}

    def evaluate(self, inputs: EvalInputs, file: Path) -> Result:
        from lora_ga_cli.evaluation.completions import said_of_kept
        from lora_ga_cli.evaluation.metrics import METRICS, expected_answers
        from lora_ga_cli.evaluation.scoring import ScoringContext

        if "exact_match" in self.options.metrics:  # a wrong pattern is told before the model is loaded
            expected_answers(inputs.split.rows["reference"], self.options.answer_pattern)
        endpoint = self.endpoint(inputs)
        partial = None if endpoint is None else self._partial(inputs, file)
        if endpoint is not None:
            endpoint.probe()
        context = ScoringContext(
            inputs.model() if endpoint is None else inputs.empty_model(),
            inputs.tokenizer,
            inputs.config.model.task,
            inputs.split,
            inputs.progress,
            self.options.batch_size,
            self.options.max_new_tokens,
            self.options.answer_pattern,
            inputs.config.dataset.label_names,
            inputs.warn,
            endpoint,
            partial,
        )
        with keeping(lambda: "" if partial is None else said_of_kept(partial)):
            scores = {name: METRICS[name](context) for name in self.options.metrics}
        verdicts = {name: score.verdicts for name, score in scores.items() if score.verdicts}
        lines = [dict(zip(verdicts, row, strict=True)) for row in zip(*verdicts.values(), strict=True)]
        total = Score({})
        for score in scores.values():
            total |= score
        return Result(
            total, len(inputs.split.rows), inputs.split.name, lines, obsolete=[] if partial is None else [partial]
        )

    @classmethod
    def answers(cls, lines: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Those of metrics that show the model a prompt. Runs may have other rows, so that the prompt is the question;
        the same prompt again is another one."""
        found, seen = [], Counter[tuple[str, str]]()
        for number, line in enumerate(lines, start=1):
            for metric, verdict in line.items():
                if (prompt := verdict.get("prompt")) is None:
                    continue
                seen[metric, prompt] += 1
                text = verdict.get("generated", verdict.get("predicted"))
                expected = verdict.get("reference", verdict["expected"])
                how = verdict_of(verdict["correct"], missing=verdict.get("answer", "") is None)
                question = f"{metric} {seen[metric, prompt]} {prompt}"
                title = f"row {number}" + (f", {metric}" if len(line) > 1 else "")
                found.append(Answer(question, title, prompt, str(text), str(expected), how, verdict["correct"]))
        return found

    def _partial(self, inputs: EvalInputs, file: Path) -> Path:
        """Where a server's answers are kept until all are there."""
        answers = {"limit": self.options.max_new_tokens, "model": inputs.state, **self.served_by(inputs)}
        return file.with_name(f"{self.name}-{sha256_json({**answers, **self.identity(inputs)})[:8]}.partial.jsonl")

    def result_file(self, folder: Path, identity: str) -> Path:
        return folder / "eval.json"

    def lines_file(self, result: Path) -> Path:
        return result.with_name("predictions.jsonl")

    def stored_results(self, folder: Path) -> list[Path]:
        file = folder / "eval.json"
        return [file] if file.exists() else []
