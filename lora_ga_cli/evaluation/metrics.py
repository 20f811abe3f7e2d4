"""The metrics of tokenized rows: loss and perplexity, exact match of generated answers, agreement of classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lora_ga_cli.errors import DataError, Fault
from lora_ga_cli.evaluation.answers import extract, reference_answer
from lora_ga_cli.evaluation.continuation import continuations
from lora_ga_cli.evaluation.label_tokens import label_tokens
from lora_ga_cli.evaluation.subject import Subject
from lora_ga_cli.evaluation.tasks.base import Score
from lora_ga_cli.model.losses import summed_loss

__all__ = ["METRICS", "Score", "Subject"]


def loss(subject: Subject) -> Score:
    """Mean loss per labelled token (or row, for classifiers) in nats; for language models its exponential too."""
    collate = subject.split.form.collate
    batches = (subject.to_device(collate(rows)) for rows in subject.counted("loss of row", subject.batches()))
    total, items = summed_loss(subject.model, batches)
    mean = total / items
    values = {"loss": mean}
    if subject.task != "sequence_classification":
        values["perplexity"] = math.exp(mean) if mean < 700 else math.inf
    return Score(values)


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
    verdicts: list[dict[str, Any]] = []
    for batch in subject.counted("answer", subject.batches(order)):
        tokens = continuations(subject.model, tokenizer, subject.task, batch, max_new_tokens=options.max_new_tokens)
        for row, text in zip(batch, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
            expected, found = (
                reference_answer(row["reference"], options.answer_pattern),
                extract(text, options.answer_pattern),
            )
            verdicts.append(
                {
                    "prompt": row["prompt"],
                    "reference": row["reference"],
                    "generated": text,
                    "answer": found,
                    "expected": expected,
                    "correct": found == expected,
                }
            )
    verdicts = [verdict for _, verdict in sorted(zip(order, verdicts, strict=True), key=lambda pair: pair[0])]
    count = len(verdicts)
    values = {
        "exact_match": sum(item["correct"] for item in verdicts) / count,
        "no_answer": sum(item["answer"] is None for item in verdicts) / count,
    }
    return Score(values, verdicts)


def accuracy(subject: Subject) -> Score:
    """Share of rows whose class of largest logit is the right one."""
    return Score({"accuracy": subject.classes.accuracy()}, subject.classes.verdicts())


def matthews_correlation(subject: Subject) -> Score:
    """Matthews' correlation of the classes of largest logit with the right ones."""
    return Score({"matthews_correlation": subject.classes.matthews_correlation()}, subject.classes.verdicts())


def f1(subject: Subject) -> Score:
    """F1 of class 1 of two.

    Raises:
        DataError: the classifier knows more or fewer classes.
    """
    count = subject.model.config.num_labels
    if count != 2:
        what = f"f1 is of two classes, and this classifier has {count}"
        raise DataError([Fault("eval.metrics", what, "accuracy and matthews_correlation are of any number")])
    return Score({"f1": subject.classes.f1()}, subject.classes.verdicts())


METRICS: dict[str, Callable[[Subject], Score]] = {
    "loss": loss,
    "exact_match": exact_match,
    "label_tokens": label_tokens,
    "accuracy": accuracy,
    "matthews_correlation": matthews_correlation,
    "f1": f1,
}
"""What `EvalConfig.metrics` names. Those of a classifier run it once, if they are given the same subject."""
