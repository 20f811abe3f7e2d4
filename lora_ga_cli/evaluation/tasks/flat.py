"""The tasks of ``eval``, in one class until each has its own."""

from __future__ import annotations

from collections.abc import Iterator

from lora_ga_cli.config.schema import Config, EvalConfig
from lora_ga_cli.registry import TASKS

METRIC_TASKS = {
    "exact_match": ("causal_lm", "seq2seq_lm"),
    "label_tokens": ("causal_lm", "seq2seq_lm"),
    "accuracy": ("sequence_classification",),
    "matthews_correlation": ("sequence_classification",),
    "f1": ("sequence_classification",),
}
"""The tasks that a metric can be computed for, where not all."""


class FlatTask:
    """All tasks in one class; each gets a class of its own."""

    Options = EvalConfig

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        """What does not go together with the task's options."""
        task, options = config.model.task, config.eval
        if options.task == "rows" and "label_tokens" in options.metrics and not config.dataset.label_names:
            yield "eval.metrics has label_tokens, which compares the words of dataset.label_names: name them"
        if options.samples > 1 and options.temperature == 0:
            yield (
                f"eval.samples={options.samples} with eval.temperature=0 would be the same answer {options.samples} "
                "times: eval.temperature=0.8"
            )
        for metric in options.metrics:
            if metric in METRIC_TASKS and task not in METRIC_TASKS[metric]:
                yield f"eval.metrics has {metric}, which model.task={task} cannot give"


for _name in ("rows", "gsm8k", "humaneval", "mt_bench", "lm_eval"):
    TASKS.register(_name)(FlatTask)
