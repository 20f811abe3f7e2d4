"""Scoring a model on tokenised rows: loss and perplexity, exact match of generated answers, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lora_ga_cli.config.schema import EvalConfig, Task
from lora_ga_cli.data import Collator, Split, generation_batch
from lora_ga_cli.errors import DataError, Fault
from lora_ga_cli.evaluation.answers import extract, reference_answer
from lora_ga_cli.model.losses import summed_loss

Counter = Callable[[str, str, int], AbstractContextManager[Callable[[int], None]]]
"""`report.progress.counting`, or anything alike."""


@dataclass(frozen=True)
class Subject:
    """What is scored, on what, and how.

    Args:
        model: in evaluation mode, with ``generate`` where answers are generated.
        split: the rows.
        progress: shows how far it is.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    task: Task
    split: Split
    options: EvalConfig
    progress: Counter

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


@dataclass(frozen=True)
class Score:
    """The values of one metric, and what the model said where that can be read."""

    values: dict[str, float]
    predictions: list[dict[str, Any]] = field(default_factory=list)


def loss(subject: Subject) -> Score:
    """Mean loss per labelled token (or row, for classifiers) in nats; for language models its exponential too."""
    collator = Collator(subject.tokenizer, subject.task)
    batches = (subject.to_device(collator(rows)) for rows in subject.counted("loss of row", subject.batches()))
    total, items = summed_loss(subject.model, batches)
    mean = total / items
    values = {"loss": mean}
    if subject.task != "sequence_classification":
        values["perplexity"] = math.exp(mean) if mean < 700 else math.inf
    return Score(values)


@torch.no_grad()
def exact_match(subject: Subject) -> Score:
    """Share of rows whose greedily generated answer equals the reference's.

    Both are extracted by ``answer_pattern``. A generation without an answer counts as wrong, and is reported apart
    as ``no_answer``.
    """
    rows, options, tokenizer = subject.split.rows, subject.options, subject.tokenizer
    if all(extract(reference, options.answer_pattern) is None for reference in rows["reference"]):
        text = f"eval.answer_pattern={options.answer_pattern} is in no reference, such as {rows['reference'][0]!r}"
        raise DataError([Fault("configuration", text, "eval.answer_pattern='(.+)' takes the last line")])
    lengths = rows["prompt_length"] if "prompt_length" in rows.column_names else rows["length"]
    order = sorted(range(len(rows)), key=lambda index: -lengths[index])  # like with like: less padding
    predictions: list[dict[str, Any]] = []
    for batch in subject.counted("answer", subject.batches(order)):
        inputs = subject.to_device(generation_batch(tokenizer, batch))
        tokens = subject.model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=options.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
        if subject.task == "causal_lm":
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        for row, text in zip(batch, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
            expected, found = (
                reference_answer(row["reference"], options.answer_pattern),
                extract(text, options.answer_pattern),
            )
            predictions.append(
                {
                    "prompt": row["prompt"],
                    "reference": row["reference"],
                    "generated": text,
                    "answer": found,
                    "expected": expected,
                    "correct": found == expected,
                }
            )
    predictions = [
        prediction for _, prediction in sorted(zip(order, predictions, strict=True), key=lambda pair: pair[0])
    ]
    count = len(predictions)
    values = {
        "exact_match": sum(item["correct"] for item in predictions) / count,
        "no_answer": sum(item["answer"] is None for item in predictions) / count,
    }
    return Score(values, predictions)


@torch.no_grad()
def accuracy(subject: Subject) -> Score:
    """Share of rows whose class of largest logit is the right one."""
    collator = Collator(subject.tokenizer, subject.task)
    predictions = []
    for rows in subject.counted("class of row", subject.batches()):
        batch = subject.to_device(collator(rows))
        labels = batch.pop("labels")
        found = subject.model(**batch).logits.argmax(dim=-1)
        for predicted, label in zip(found.tolist(), labels.tolist(), strict=True):
            predictions.append({"predicted": predicted, "expected": label, "correct": predicted == label})
    return Score({"accuracy": sum(item["correct"] for item in predictions) / len(predictions)}, predictions)


METRICS: dict[str, Callable[[Subject], Score]] = {"loss": loss, "exact_match": exact_match, "accuracy": accuracy}
