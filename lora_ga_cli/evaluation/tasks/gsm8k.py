"""GSM8K: grade-school problems whose solution ends in ``#### number`` (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from lora_ga_cli.config.schema import EvalOptions
from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.template import as_text
from lora_ga_cli.errors import DataError, Fault
from lora_ga_cli.evaluation.benchmark_rows import benchmark_rows
from lora_ga_cli.evaluation.numbers import as_decimal, read_number, read_plain
from lora_ga_cli.evaluation.prompt import question_template
from lora_ga_cli.evaluation.tasks.base import Progress, Score
from lora_ga_cli.evaluation.tasks.benchmark import Benchmark, Completion, GenerationOptions, Problem
from lora_ga_cli.registry import TASKS

PROMPT = "Q: {question}\nA: "
"""The prompt with which LoRA-GA's authors train on MetaMathQA and evaluate on GSM8K. Their code has one more space
between prompt and answer."""
QUESTION = "{question}"
MARK = re.compile(r"#{4,}(?=\s*(.*?)(?:####|$))", re.MULTILINE)


class Gsm8kOptions(GenerationOptions):
    """Options of GSM8K."""

    task: Literal["gsm8k"] = "gsm8k"
    """What is scored."""


@TASKS.register("gsm8k")
class Gsm8k(Benchmark):
    """The test problems of GSM8K. Each answer is read in two ways.

    ``accuracy`` follows LoRA-GA's authors: the first number that follows a ``####`` counts, because the answer has
    ended there. Their pattern reads digits only (-5 is no answer, 1,000 is 1) and scores a missing answer as 0; here
    `read_number` reads it. ``strict`` requires exactly one line with ``####``, and only a plain number on it. A model
    may continue with another question and answer that too. For both readings, a completion therefore ends where a new
    line begins like the prompt before its question (``Q:``).

    ``no_answer`` is the share of completions in which the first reading finds no number; they do not count as right.
    With several samples per problem, these values are means over all samples, and ``majority`` is the share of problems
    whose most frequent number is right (self-consistency, Wang et al. 2022, arXiv 2203.11171). Completions without a
    number have no vote, and of equally frequent numbers the first one counts.
    """

    Options = Gsm8kOptions
    options: Gsm8kOptions

    def __init__(self, options: EvalOptions, cache: Path | None = None):
        super().__init__(options, cache)
        self._prompt = PROMPT if self.options.prompt is None else self.options.prompt
        self.stops = next_question(self._prompt)

    def check_requirements(self) -> None:
        """Refuses a prompt without the question, or with other fields.

        Raises:
            InvalidInput
        """
        question_template(self._prompt)

    def problems(self) -> Sequence[Problem]:
        """All problems, in the order of their file.

        Raises:
            DataError: a missing file, or a solution without a number after ``####``.
        """
        rows = benchmark_rows(self.options, ["question", "answer"], path="openai/gsm8k", subset="main", split="test")
        template, problems, faults = question_template(self._prompt), [], []
        for number, row in enumerate(rows):
            try:
                prompt, solution = template.fill(row), as_text(row, "answer")
            except BadRow as bad:
                faults.append(Fault(f"problem {number + 1}", str(bad)))
                continue
            if (expected := read_first(solution)) is None:
                faults.append(Fault(f"problem {number + 1}", f"no number after #### in {solution[-60:]!r}"))
                continue
            problems.append(Problem(f"{self.name}/{number}", (prompt,), {"expected": as_decimal(expected)}))
        if faults:
            raise DataError(faults)
        return problems

    def score(self, completions: Sequence[Completion], progress: Progress) -> Score:
        """Reads every completion in both ways; see the class."""
        readings = [self._read(completion) for completion in completions]
        count = len(readings)
        values = {
            "accuracy": sum(reading.is_right for reading in readings) / count,
            "strict": sum(reading.is_strictly_right for reading in readings) / count,
            "no_answer": sum(reading.answer is None for reading in readings) / count,
        }
        if self.options.samples > 1:
            values["majority"] = _majority(completions, readings)
        verdicts = [reading.verdict() for reading in readings]
        return Score(values, verdicts, lower_is_better=frozenset({"no_answer"}), shares=frozenset(values))

    def _read(self, completion: Completion) -> Reading:
        expected = read_number(completion.problem.row["expected"])
        assert expected is not None
        text = completion.texts[-1]
        for stop in self.stops:
            text = text.partition(stop)[0]
        return Reading(expected, read_first(text), read_strictly(text))


@dataclass(frozen=True)
class Reading:
    """The right number, and the numbers that the first and the strict reading find in a completion."""

    expected: Fraction
    answer: Fraction | None
    strict: Fraction | None

    @property
    def is_right(self) -> bool:
        return self.answer == self.expected

    @property
    def is_strictly_right(self) -> bool:
        return self.strict == self.expected

    def verdict(self) -> dict[str, Any]:
        return {
            "answer": None if self.answer is None else as_decimal(self.answer),
            "expected": as_decimal(self.expected),
            "correct": self.is_right,
            "strict": self.is_strictly_right,
            "outcome": "no answer" if self.answer is None else "right" if self.is_right else "wrong",
        }


def next_question(prompt: str) -> tuple[str, ...]:
    """The text with which a model begins another question: the template's text before its question, on that line.

    Returns:
        No text if the template has none before its question.
    """
    before = prompt.partition(QUESTION)[0].replace("{{", "{").replace("}}", "}").strip().splitlines()
    return ("\n" + before[-1].strip(),) if before else ()


def read_first(text: str) -> Fraction | None:
    """The number after the first ``####`` that has one, on its line or on the next line that is not empty."""
    numbers = (read_number(match[1]) for match in MARK.finditer(text))
    return next((number for number in numbers if number is not None), None)


def read_strictly(text: str) -> Fraction | None:
    """The number on the only line with ``####``; None if there are several, or other text is on that line."""
    lines = [line.strip() for line in text.split("\n") if "####" in line]
    if len(lines) != 1 or not lines[0].startswith("####"):
        return None
    return read_plain(lines[0].removeprefix("####").strip())


def _majority(completions: Sequence[Completion], readings: Sequence[Reading]) -> float:
    """The share of problems whose most frequent answer is right."""
    votes: dict[str, Counter[Fraction]] = {}
    expected: dict[str, Fraction] = {}
    for completion, reading in zip(completions, readings, strict=True):
        tally = votes.setdefault(completion.problem.id, Counter())
        expected[completion.problem.id] = reading.expected
        if reading.answer is not None:
            tally[reading.answer] += 1
    # most_common keeps the order of first appearance among equals
    winners = {problem: tally.most_common(1)[0][0] for problem, tally in votes.items() if tally}
    return sum(winners.get(problem) == right for problem, right in expected.items()) / len(expected)
