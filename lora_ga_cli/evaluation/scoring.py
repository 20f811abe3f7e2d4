"""What the metrics of rows share: the model, its tokenizer, the rows and the options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lora_ga_cli.config.schema import Task
from lora_ga_cli.data import Split
from lora_ga_cli.evaluation.classes import Classes
from lora_ga_cli.evaluation.tasks.base import Progress


@dataclass(frozen=True)
class ScoringContext:
    """The model and rows that metrics score. What several metrics need is computed once per context.

    Args:
        model: in evaluation mode.
        split: the rows.
        batch_size: rows per forward pass or generation batch.
        max_new_tokens: longest generated answer.
        answer_pattern: regular expression whose first group is the answer.
        progress: shows the progress to the user.
        label_names: ``dataset.label_names``, the words between which ``label_tokens`` chooses.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    task: Task
    split: Split
    progress: Progress
    batch_size: int = 16
    max_new_tokens: int = 256
    answer_pattern: str = r"####\s*(.+)"
    label_names: Sequence[str] | None = None

    def batches(self, order: list[int] | None = None) -> Iterator[list[dict[str, Any]]]:
        """The rows in batches, in this order of their numbers."""
        rows = self.split.rows
        chosen = order if order is not None else list(range(len(rows)))
        for begin in range(0, len(chosen), self.batch_size):
            yield [rows[index] for index in chosen[begin : begin + self.batch_size]]

    def counted(self, what: str, batches: Iterator[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
        """The batches, while their progress is shown."""
        with self.progress("eval", what, len(self.split.rows)) as report:
            done = 0
            for batch in batches:
                yield batch
                done += len(batch)
                report(done)

    def to_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors of a batch on the model's device."""
        device = next(self.model.parameters()).device
        return {name: tensor.to(device) for name, tensor in batch.items()}

    @cached_property
    def classes(self) -> Classes:
        """The class of largest logit for each row, from one pass of a classifier over the rows."""
        predicted: list[int] = []
        expected: list[int] = []
        count = 0
        for rows in self.counted("class of row", self.batches()):
            batch = self.to_device(self.split.form.collate(rows))
            expected += batch.pop("labels").tolist()
            with torch.no_grad():
                logits = self.model(**batch).logits
            predicted += logits.argmax(dim=-1).tolist()
            count = logits.shape[-1]
        return Classes(predicted, expected, count)
