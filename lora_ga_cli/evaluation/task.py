"""What a benchmark is: problems that a model answers, and a score of the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

Counter = Callable[[str, str, int], AbstractContextManager[Callable[[int], None]]]
"""`report.progress.counting`, or anything alike: ``with counter("eval", "answer", total) as report: report(done)``."""


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
        cut: whether an answer ran into ``eval.max_new_tokens``.
    """

    problem: Problem
    sample: int
    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    cut: bool = False


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

    def score(self, replies: Sequence[Reply], progress: Counter) -> Score:
        """Scores replies to all problems, `EvalConfig.samples` of each, in the order of problems and samples."""
        ...
