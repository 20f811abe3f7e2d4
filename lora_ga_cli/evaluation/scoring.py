"""What the metrics of rows share: the model, its tokenizer, the rows and the options."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from lora_ga_cli.config.schema import Task
from lora_ga_cli.data import Split
from lora_ga_cli.evaluation.batches import Batches, by_length, halved_message
from lora_ga_cli.evaluation.classes import Classes
from lora_ga_cli.evaluation.continuation import continuations, without_end
from lora_ga_cli.evaluation.endpoint import Endpoint
from lora_ga_cli.evaluation.served import served_texts
from lora_ga_cli.evaluation.tasks.base import Progress

Result = TypeVar("Result")


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
        warn: shows a warning to the user.
        endpoint: the server that answers in place of the model, which then needs no weights.
        answers: where the server's answers are kept until all are there.
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
    warn: Callable[[str], None] = warnings.warn
    endpoint: Endpoint | None = None
    answers: Path | None = None

    def of_rows(
        self, what: str, work: Callable[[Sequence[Mapping[str, Any]]], Sequence[Result]], *, length: str = "length"
    ) -> list[Result]:
        """The results of ``work`` on batches of rows of similar length, in the order of the rows.

        Args:
            what: what is counted, while the progress is shown.
            work: one result for every row of a batch.
            length: the column by which rows are sorted.
        """
        rows = self.split.rows
        order = by_length(rows[length][:])
        batches: Batches[int, Result] = Batches(
            self.batch_size,
            lambda numbers: work([rows[number] for number in numbers]),
            lambda size: self.warn(halved_message(size)),
        )
        results: dict[int, Result] = {}
        with self.progress("eval", what, len(order)) as report:
            for of_batch in batches.run(order):
                results |= zip(order[len(results) : len(results) + len(of_batch)], of_batch, strict=True)
                report(len(results))
        return [results[number] for number in range(len(order))]

    def to_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors of a batch on the model's device."""
        device = next(self.model.parameters()).device
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def texts(self) -> list[str]:
        """The model's greedy answer to every row."""
        ends = self.split.ends
        if self.endpoint is not None and self.answers is not None:
            return served_texts(
                self.endpoint,
                list(self.split.rows),
                self.answers,
                max_new_tokens=self.max_new_tokens,
                ends=ends,
                model=self.model,
                progress=self.progress,
            )

        def answer(rows: Sequence[Mapping[str, Any]]) -> list[str]:
            limit = self.max_new_tokens
            tokens = continuations(self.model, self.tokenizer, self.task, rows, max_new_tokens=limit, ends=ends)
            texts: list[str] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            return [without_end(text, ends) for text in texts]

        is_causal = "prompt_length" in self.split.rows.column_names
        return self.of_rows("answer", answer, length="prompt_length" if is_causal else "length")

    @cached_property
    def classes(self) -> Classes:
        """The class of largest logit for each row, from one pass of a classifier over the rows."""

        def classify(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, int]]:
            batch = self.to_device(self.split.form.collate(rows))
            expected = batch.pop("labels").tolist()
            with torch.no_grad():
                logits = self.model(**batch).logits
            return list(zip(logits.argmax(dim=-1).tolist(), expected, [logits.shape[-1]] * len(rows), strict=True))

        predicted, expected, counts = zip(*self.of_rows("class of row", classify), strict=True)
        return Classes(predicted, expected, counts[0])
