"""The metrics of tokenized rows: loss and perplexity, exact match of generated answers, agreement of classes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lora_ga_cli.config.overrides import quoted
from lora_ga_cli.errors import DataError, Fault
from lora_ga_cli.evaluation.label_tokens import label_tokens
from lora_ga_cli.evaluation.scoring import ScoringContext
from lora_ga_cli.evaluation.tasks.base import Score
from lora_ga_cli.expressions import LIMIT, Expression, TakesTooLong
from lora_ga_cli.model.losses import summed_loss

__all__ = ["METRICS", "Score", "ScoringContext"]


def loss(context: ScoringContext) -> Score:
    """Mean loss per labelled token (or row, for classifiers) in nats; for language models also its exponential."""

    def summed(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, int]]:
        batch = context.to_device(context.split.form.collate(rows))
        return [summed_loss(context.model, [batch]), *[(0.0, 0)] * (len(rows) - 1)]  # the sums of the complete batch

    sums = context.of_rows("loss of row", summed)
    mean = math.fsum(total for total, _ in sums) / sum(items for _, items in sums)
    values = {"loss": mean}
    if context.task != "sequence_classification":
        values["perplexity"] = math.exp(mean) if mean < 700 else math.inf
    return Score(values, lower_is_better=frozenset(values))


def exact_match(context: ScoringContext) -> Score:
    """Share of rows whose greedily generated answer equals the reference's.

    Both answers are extracted by ``answer_pattern``. A generation without an answer counts as wrong, and so does one on
    which the pattern takes too long; ``no_answer`` is the share of such rows.

    Raises:
        InvalidInput: as `expected_answers`.
    """
    rows, pattern = context.split.rows, context.answer_pattern
    wanted = expected_answers(rows["reference"], pattern)
    verdicts: list[dict[str, Any]] = []
    too_long = 0
    for row, expected, text in zip(rows, wanted, context.texts(), strict=True):
        try:
            answer = extract(text, pattern)
        except TakesTooLong:
            answer, too_long = None, too_long + 1
        verdicts.append(
            {
                "prompt": row["prompt"],
                "reference": row["reference"],
                "generated": text,
                "answer": answer,
                "expected": expected,
                "correct": answer == expected,
            }
        )
    count = len(verdicts)
    if too_long:
        what = f"eval.answer_pattern computes for longer than {LIMIT:g} s on {too_long} of {count} generated texts"
        context.warn(f"{what}: each counts as no answer")
    values = {
        "exact_match": sum(item["correct"] for item in verdicts) / count,
        "no_answer": sum(item["answer"] is None for item in verdicts) / count,
    }
    return Score(values, verdicts, lower_is_better=frozenset({"no_answer"}), shares=frozenset(values))


def accuracy(context: ScoringContext) -> Score:
    """Share of rows whose class of largest logit is the right one."""
    values = {"accuracy": context.classes.accuracy()}
    return Score(values, context.classes.verdicts(), shares=frozenset(values))


def matthews_correlation(context: ScoringContext) -> Score:
    """Matthews' correlation of the classes of largest logit with the right ones."""
    return Score({"matthews_correlation": context.classes.matthews_correlation()}, context.classes.verdicts())


def f1(context: ScoringContext) -> Score:
    """F1 of class 1 of two classes.

    Raises:
        DataError: the classifier has more or fewer classes.
    """
    count = context.model.config.num_labels
    if count != 2:
        what = f"f1 is defined for two classes, and this classifier has {count}"
        raise DataError([Fault("eval.metrics", what, "accuracy and matthews_correlation take any number")])
    values = {"f1": context.classes.f1()}
    return Score(values, context.classes.verdicts(), shares=frozenset(values))


METRICS: dict[str, Callable[[ScoringContext], Score]] = {
    "loss": loss,
    "exact_match": exact_match,
    "label_tokens": label_tokens,
    "accuracy": accuracy,
    "matthews_correlation": matthews_correlation,
    "f1": f1,
}
"""The metrics that ``eval.metrics`` names. Those of a classifier run it once if they share a context."""


def extract(text: str, pattern: str) -> str | None:
    """The first group of the last match of ``pattern`` in ``text``, normalized; None if there is no match.

    The last match counts because a worked solution may mention intermediate results.
    """
    match = Expression("eval.answer_pattern", pattern).last_match(text)
    if match is None:
        return None
    answer = match.group(1) if match.re.groups else match.group(0)
    return None if answer is None else normalize(answer)


def normalize(answer: str) -> str:
    """Removes outer white space, a final full stop, a currency sign and thousands separators."""
    answer = " ".join(answer.split()).removesuffix(".").removeprefix("$").strip()
    return re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", answer)


def expected_answers(references: Sequence[str], pattern: str) -> list[str]:
    """The answers in all references.

    Raises:
        DataError: the pattern matches none of them.
        TakesTooLong: it does so on one of them.
    """
    found = [extract(reference, pattern) for reference in references]
    if all(answer is None for answer in found):
        text = f"{pattern} is in no reference, such as {references[0]!r}"
        raise DataError(
            [Fault("eval.answer_pattern", text, f"{quoted('eval.answer_pattern', '(.+)')} takes the last line")]
        )
    return [normalize(text) if answer is None else answer for text, answer in zip(references, found, strict=True)]
