"""GSM8K: grade-school problems whose solution ends in ``#### number`` (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lora_ga_cli.config.schema import EvalConfig
from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.template import as_text
from lora_ga_cli.errors import DataError, Fault
from lora_ga_cli.evaluation.numbers import read_number, read_plain, written
from lora_ga_cli.evaluation.prompt import prompt_of, question_template
from lora_ga_cli.evaluation.rows import benchmark_rows
from lora_ga_cli.evaluation.tasks.base import Problem, Progress, Reply, Score

PROMPT = "Q: {question}\nA: "
"""As LoRA-GA's authors train on MetaMathQA and ask GSM8K (their code has a second space between prompt and answer)."""
QUESTION = "{question}"
MARK = re.compile(r"#{4,}(?=\s*(.*?)(?:####|$))", re.MULTILINE)


class Gsm8k:
    """The test problems of GSM8K, each answer read in two ways.

    ``accuracy`` follows LoRA-GA's authors: the number after the first ``####`` that has one counts, since what follows
    was written when the answer had ended. Their pattern takes digits only, so that -5 is no answer and 1,000 is 1, and
    an answer that is missing is 0; here it is read as `read_number` says. ``strict`` wants exactly one line with
    ``####``, and nothing but a plain number on it. A model that goes on with a further question answers that too: for
    both, a reply ends where a new line begins as the prompt does before its question (``Q:``).

    ``no_answer`` is the share of replies in which the first reading finds no number; such a reply is not right, and it
    is no wrong answer either. With several samples a problem these are means over all samples, and ``majority`` is the
    share of problems whose most frequent number is right (self-consistency, Wang et al. 2022, arXiv 2203.11171). There,
    replies without an answer have no vote, and of several numbers with as many votes the one that came first counts.
    """

    name = "gsm8k"
    chat = False

    def __init__(self, options: EvalConfig):
        self._options = options
        self._prompt = prompt_of(options, PROMPT)
        self.stops = further_question(self._prompt)

    def check(self) -> None:
        """Refuses a prompt without the question, or with anything else to fill in.

        Raises:
            InvalidInput
        """
        question_template(self._prompt)

    def problems(self) -> Sequence[Problem]:
        """All problems, in the order of their file.

        Raises:
            DataError: no such file, or a solution without a number after ``####``.
        """
        rows = benchmark_rows(self._options, ["question", "answer"], path="openai/gsm8k", subset="main", split="test")
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
            problems.append(Problem(f"{self.name}/{number}", (prompt,), {"expected": written(expected)}))
        if faults:
            raise DataError(faults)
        return problems

    def grading(self) -> Mapping[str, Any]:
        return {}

    def score(self, replies: Sequence[Reply], progress: Progress) -> Score:
        """Both readings of every reply; see the class."""
        readings = [self._read(reply) for reply in replies]
        count = len(readings)
        values = {
            "accuracy": sum(reading.is_right for reading in readings) / count,
            "strict": sum(reading.is_strictly_right for reading in readings) / count,
            "no_answer": sum(reading.answer is None for reading in readings) / count,
        }
        if self._options.samples > 1:
            values["majority"] = _majority(replies, readings)
        return Score(values, [reading.verdict() for reading in readings])

    def _read(self, reply: Reply) -> Reading:
        expected = read_number(reply.problem.row["expected"])
        assert expected is not None
        text = reply.texts[-1]
        for stop in self.stops:
            text = text.partition(stop)[0]
        return Reading(expected, read_first(text), read_strictly(text))


@dataclass(frozen=True)
class Reading:
    """The numbers found in a reply, by the first reading and the strict one, beside the right one."""

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
            "answer": None if self.answer is None else written(self.answer),
            "expected": written(self.expected),
            "correct": self.is_right,
            "strict": self.is_strictly_right,
            "outcome": "no answer" if self.answer is None else "right" if self.is_right else "wrong",
        }


def further_question(prompt: str) -> tuple[str, ...]:
    """How a model begins a further question: as the template does on its question's line. None where it has no mark."""
    before = prompt.partition(QUESTION)[0].replace("{{", "{").replace("}}", "}").strip().splitlines()
    return ("\n" + before[-1].strip(),) if before else ()


def read_first(text: str) -> Fraction | None:
    """The number after the first ``####`` that has one, on its line or the next that holds anything."""
    numbers = (read_number(found[1]) for found in MARK.finditer(text))
    return next((number for number in numbers if number is not None), None)


def read_strictly(text: str) -> Fraction | None:
    """The number of the only ``####`` line; None where there are several marks, or the line holds anything else."""
    lines = [line.strip() for line in text.split("\n") if "####" in line]
    if len(lines) != 1 or not lines[0].startswith("####"):
        return None
    return read_plain(lines[0].removeprefix("####").strip())


def _majority(replies: Sequence[Reply], readings: Sequence[Reading]) -> float:
    """The share of problems whose most frequent answer is right."""
    votes: dict[str, Counter[Fraction]] = {}
    expected: dict[str, Fraction] = {}
    for reply, reading in zip(replies, readings, strict=True):
        tally = votes.setdefault(reply.problem.id, Counter())
        expected[reply.problem.id] = reading.expected
        if reading.answer is not None:
            tally[reading.answer] += 1
    # most_common keeps the order of first appearance among equals
    elected = {problem: tally.most_common(1)[0][0] for problem, tally in votes.items() if tally}
    return sum(elected.get(problem) == right for problem, right in expected.items()) / len(expected)
