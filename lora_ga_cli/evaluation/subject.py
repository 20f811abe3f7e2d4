"""What rows are scored with: a model, its tokenizer, the rows, and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lora_ga_cli.config.schema import EvalConfig, Task
from lora_ga_cli.data import Split
from lora_ga_cli.evaluation.classes import Classes
from lora_ga_cli.evaluation.tasks.base import Progress


@dataclass(frozen=True)
class Subject:
    """What is scored, on what, and how. What several metrics need is computed once for all that share a subject.

    Args:
        model: in evaluation mode, with ``generate`` where answers are generated.
        split: the rows.
        progress: shows how far it is.
        label_names: ``dataset.label_names``, the words among which ``label_tokens`` chooses.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    task: Task
    split: Split
    options: EvalConfig
    progress: Progress
    label_names: Sequence[str] | None = None

    def batches(self, order: list[int] | None = None) -> Iterator[list[dict[str, Any]]]:
        rows = self.split.rows
        chosen = order if order is not None else list(range(len(rows)))
        for begin in range(0, len(chosen), self.options.batch_size):
            yield [rows[index] for index in chosen[begin : begin + self.options.batch_size]]

    def counted(self, what: str, batches: Iterator[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
        with self.progress("eval", what, len(self.split.rows)) as report:
            done = 0
            for batch in batches:
                yield batch
                done += len(batch)
                report(done)

    def to_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        device = next(self.model.parameters()).device
        return {name: tensor.to(device) for name, tensor in batch.items()}

    @cached_property
    def classes(self) -> Classes:
        """The classes of largest logit that a classifier finds, from one pass over the rows."""
        found: list[int] = []
        expected: list[int] = []
        count = 0
        for rows in self.counted("class of row", self.batches()):
            batch = self.to_device(self.split.form.collate(rows))
            expected += batch.pop("labels").tolist()
            with torch.no_grad():
                logits = self.model(**batch).logits
            found += logits.argmax(dim=-1).tolist()
            count = logits.shape[-1]
        return Classes(found, expected, count)
