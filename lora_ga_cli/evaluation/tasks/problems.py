"""The problems of a benchmark, the options of answering them in text, and the completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import Field

from lora_ga_cli.config.schema import EvalOptions, Positive, Temperature
from lora_ga_cli.data.faults import RowFaults
from lora_ga_cli.errors import DataError


class GenerationOptions(EvalOptions):
    """Options of a benchmark whose problems the model answers in text."""

    max_new_tokens: Positive = 256
    """Longest generated answer, in tokens."""
    prompt: str | None = None
    """Template around a question, with ``{question}``. Null uses the benchmark's default; for a conversation that is
    the tokenizer's chat template."""
    temperature: Temperature = 0.0
    """Sampling temperature of the answers, 0 or from 0.001 to 1000; 0 decodes greedily."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the smallest set of tokens whose probabilities sum to at least this."""
    samples: Positive = 1
    """Answers per problem."""


ANSWER_OPTIONS = {"task", "prompt", "max_new_tokens", "temperature", "top_p", "samples"}
"""Options that an answer depends on, besides the batch size of sampling."""


@dataclass(frozen=True)
class Problem:
    """One question, of one turn or several.

    Args:
        id: unique in its benchmark.
        turns: what the model is asked, in order; each turn is shown with the earlier turns and their answers.
        row: what else the score needs.
    """

    id: str
    turns: tuple[str, ...]
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """One sample of a model's answers to a problem.

    Args:
        sample: number of the sample, from 0.
        prompts: the complete inputs of the model, one for every turn.
        texts: its answers, one for every turn.
        truncated: whether an answer ended at ``eval.max_new_tokens`` or at the model's last position.
    """

    problem: Problem
    sample: int
    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    truncated: bool = False

    def as_json(self) -> dict[str, Any]:
        stored = {"sample": self.sample, "prompts": self.prompts, "texts": self.texts, "truncated": self.truncated}
        return {"id": self.problem.id, **stored}


class ProblemSource(Protocol):
    """What generation needs of a benchmark; see `Benchmark`."""

    chat: ClassVar[bool]
    stops: tuple[str, ...]

    @property
    def name(self) -> str:
        """The benchmark's name in messages."""
        ...

    def problems(self) -> Sequence[Problem]:
        """All problems, in order."""
        ...


def problems_of(benchmark: ProblemSource) -> Sequence[Problem]:
    """All problems of a benchmark. Completions are stored by the problem's id, so no two may share one.

    Raises:
        DataError
    """
    problems, bad = benchmark.problems(), RowFaults("eval.file")
    for name, count in Counter(problem.id for problem in problems).items():
        if count > 1:
            bad.add("repeated", "eval.file", f"problem {name} is there {count} times")
    if len(bad):
        raise DataError(bad.faults({"repeated": "each needs an id of its own"}))
    return problems
