"""What a benchmark is: problems that a model answers, and a score of the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from lora_ga_cli.data.faults import RowFaults
from lora_ga_cli.errors import DataError

Progress = Callable[[str, str, int], AbstractContextManager[Callable[[int], None]]]
"""`report.progress.counting`, or anything alike: ``with progress("eval", "answer", total) as report: report(done)``."""


@dataclass(frozen=True)
class Problem:
    """One question, of one turn or several.

    Args:
        id: unique in its benchmark.
        turns: what the model is asked, one after the other, each with the earlier ones and their answers before it.
        row: what the score needs besides.
    """

    id: str
    turns: tuple[str, ...]
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """One sample of a model's answers to a problem.

    Args:
        sample: from 0.
        prompts: what the model was given, whole, one for every turn.
        texts: what it answered, one for every turn.
        cut: whether an answer ran into ``eval.max_new_tokens`` or the model's last position.
    """

    problem: Problem
    sample: int
    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    cut: bool = False

    def as_json(self) -> dict[str, Any]:
        kept = {"sample": self.sample, "prompts": self.prompts, "texts": self.texts, "cut": self.cut}
        return {"id": self.problem.id, **kept}


@dataclass(frozen=True)
class Score:
    """The values of a benchmark or metric, and a verdict on every reply (or row), in their order.

    Args:
        values: by name; shares are from 0 to 1.
        verdicts: plain data, each with at least what was found in the reply and whether it is right.
    """

    values: dict[str, float]
    verdicts: list[dict[str, Any]] = field(default_factory=list)


class Benchmark(Protocol):
    """A benchmark that `loraga eval` runs: it knows its problems and scores replies; others generate them."""

    name: str
    chat: bool
    """Whether turns are what a user says, to be put in a conversation, and not the model's whole input."""
    stops: tuple[str, ...]
    """Texts after which nothing that is generated counts."""

    def check(self) -> None:
        """Refuses before the model loads what would fail after hours of generation.

        Raises:
            InvalidInput, UserError
        """
        ...

    def problems(self) -> Sequence[Problem]:
        """All problems, in order.

        Raises:
            DataError: their file is missing or broken.
        """
        ...

    def grading(self) -> Mapping[str, Any]:
        """What a score depends on beside the replies and the options, by content; plain data.

        Raises:
            DataError: its file is missing or broken.
        """
        ...

    def score(self, replies: Sequence[Reply], progress: Progress) -> Score:
        """Scores replies to all problems, `EvalConfig.samples` of each, in the order of problems and samples."""
        ...


def problems_of(benchmark: Benchmark) -> Sequence[Problem]:
    """All problems of a benchmark, each with an id of its own: replies are kept by it.

    Raises:
        DataError
    """
    problems, bad = benchmark.problems(), RowFaults("eval.file")
    for name, count in Counter(problem.id for problem in problems).items():
        if count > 1:
            bad.add("repeated", "eval.file", f"problem {name} stands there {count} times")
    if len(bad):
        raise DataError(bad.faults({"repeated": "each wants an id of its own"}))
    return problems
