"""The answers of a stored result, for people: every task writes its own lines, and says here how they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ga_cli.files import read_json
from lora_ga_cli.registry import TASKS

if TYPE_CHECKING:
    from lora_ga_cli.evaluation.tasks.base import Task


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


def answers_in(result: Path) -> tuple[str, list[Answer]]:
    """What a stored result is of, in a few words, and the answers beside it; none if its task keeps none in text.

    Raises:
        OSError, ValueError, KeyError, TypeError: a file is missing or is not what a task writes.
        InvalidInput: no task of this name is registered.
    """
    options = read_json(result)["options"]
    found: type[Task] = TASKS[options["task"]]
    task = found(found.Options.model_validate(options))
    lines = task.lines_file(result)
    # as bytes: texts may hold Unicode line breaks
    stored = lines.read_bytes().split(b"\n") if lines.is_file() else []
    return task.summary, task.answers([json.loads(line) for line in stored if line])


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
