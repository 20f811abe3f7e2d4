"""The answers of a stored result, for people: every task writes its own lines, and says here how they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One answer of a model.

    Args:
        question: the same for the answers of other models to the same question.
        title: a short name of the question.
        prompt: what the model read.
        text: what it answered.
        expected: what is right; empty if no single text is.
        verdict: how it was scored, in a few words.
        correct: whether it counts as right; None where answers are neither right nor wrong.
        is_code: whether the answer is a program, whose white space has a meaning.
    """

    question: str
    title: str
    prompt: str
    text: str
    expected: str = ""
    verdict: str = ""
    correct: bool | None = None
    is_code: bool = False


def verdict_of(correct: bool, missing: bool = False) -> str:
    """The verdict on an answer that is right or wrong, or not there."""
    return "no answer" if missing else "right" if correct else "wrong"


def answers_of_completion(
    line: Mapping[str, Any],
    verdicts: Sequence[tuple[str, bool | None]],
    expected: str = "",
    *,
    is_code: bool = False,
) -> list[Answer]:
    """The answers in a stored `Completion`, one for every turn.

    Args:
        verdicts: of every turn; of one, where only the last turn is scored.
    """
    found = []
    turns = len(line["texts"])
    first = turns - len(verdicts)
    for number in range(first, turns):
        title = str(line["id"])
        title += f", turn {number + 1}" if turns > 1 else ""
        title += f", sample {line['sample'] + 1}" if line["sample"] else ""
        verdict, correct = verdicts[number - first]
        if line["truncated"]:
            verdict += ", cut at the longest length"
        prompt, text = line["prompts"][number], line["texts"][number]
        found.append(Answer(title, title, prompt, text, expected, verdict, correct, is_code))
    return found
