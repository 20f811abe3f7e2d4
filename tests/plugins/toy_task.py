"""A benchmark that a user adds in one file: ``loraga eval MODEL --code toy_task.py eval.task=toy eval.letters=abc``.

It asks for the letter after each of ``eval.letters``, and scores how many answers begin with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from lora_ga_cli.evaluation.tasks.base import Progress, Score
from lora_ga_cli.evaluation.tasks.benchmark import Benchmark, Completion, GenerationOptions, Problem
from lora_ga_cli.registry import TASKS


class ToyOptions(GenerationOptions):
    """Options of the toy benchmark."""

    task: Literal["toy"] = "toy"
    """What is scored."""
    letters: Annotated[str, Field(min_length=1, pattern="^[a-y]+$")] = "abc"
    """Letters that are asked about."""


@TASKS.register("toy")
class Toy(Benchmark):
    """Asks for the next letter of the alphabet."""

    Options = ToyOptions
    options: ToyOptions

    def problems(self) -> Sequence[Problem]:
        problems = [Problem(letter, (letter,), {"next": chr(ord(letter) + 1)}) for letter in self.options.letters]
        return problems[: self.options.limit]

    def score(self, completions: Sequence[Completion], progress: Progress) -> Score:
        right = [completion.texts[0].startswith(completion.problem.row["next"]) for completion in completions]
        values = {"right": sum(right) / len(right), "wrong": 1 - sum(right) / len(right)}
        verdicts = [{"correct": one} for one in right]
        return Score(values, verdicts, lower_is_better=frozenset({"wrong"}), shares=frozenset(values))
