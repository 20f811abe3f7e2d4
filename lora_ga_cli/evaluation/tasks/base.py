"""What a task of `loraga eval` is.

A task is one class in one file, with its options beside it, and registers itself by the name that ``eval.task`` gives:

    @TASKS.register("gsm8k")
    class Gsm8k(Benchmark): ...

These modules are imported to learn the options of a task, so they import torch and the like inside functions only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lora_ga_cli.config.schema import EvalOptions
from lora_ga_cli.evaluation.tasks.answers import Answer
from lora_ga_cli.paths import cache_root
from lora_ga_cli.registry import TASKS

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config
    from lora_ga_cli.data import Split
    from lora_ga_cli.evaluation.endpoint import Endpoint

Progress = Callable[[str, str, int], AbstractContextManager[Callable[[int], None]]]
"""`report.progress.counting`, or the like: ``with progress("eval", "answer", total) as report: report(done)``."""


@dataclass(frozen=True)
class Score:
    """The values of a task or metric, and a verdict on every answer or row, in their order.

    Args:
        values: the values by name.
        verdicts: plain data for each answer or row: at least what was read from it, and whether it is right.
        lower_is_better: names of values of which a lower one is better.
        unranked: names of values of which none is better than another, such as standard errors.
        shares: names of values from 0 to 1, which tables show as percentages.
    """

    values: Mapping[str, float]
    verdicts: Sequence[Mapping[str, Any]] = ()
    lower_is_better: frozenset[str] = frozenset()
    unranked: frozenset[str] = frozenset()
    shares: frozenset[str] = frozenset()

    def __or__(self, other: Score) -> Score:
        """The values of both. The verdicts are those of neither, as they are about different things."""
        return Score(
            {**self.values, **other.values},
            lower_is_better=self.lower_is_better | other.lower_is_better,
            unranked=self.unranked | other.unranked,
            shares=self.shares | other.shares,
        )


@dataclass(frozen=True)
class Result:
    """What a task returns.

    Args:
        rows: how many rows or problems were scored.
        split: what they are called.
        lines: plain data for each row or answer, kept in a file of JSON lines beside the result.
        extra: more entries for the result's file.
        obsolete: files that are deleted once the result is stored.
    """

    score: Score
    rows: int
    split: str
    lines: Sequence[Mapping[str, Any]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    obsolete: Sequence[Path] = ()


class EvalInputs(Protocol):
    """What a task can ask for. Tokenizer, rows and models are loaded when they are first asked for."""

    @property
    def config(self) -> Config: ...

    @property
    def name(self) -> str:
        """The name of what is scored."""
        ...

    @property
    def state(self) -> str:
        """A hash of the model that is scored."""
        ...

    @property
    def progress(self) -> Progress: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def split(self) -> Split:
        """The rows to score, for a task that `Task.needs_rows`.

        Raises:
            DataError: there are none.
        """
        ...

    def model(self) -> Any:
        """The model that is scored, in evaluation mode."""
        ...

    def empty_model(self) -> Any:
        """The model that would be trained, without weights."""
        ...

    def note(self, text: str) -> None:
        """Shows a line to the user."""
        ...

    def warn(self, text: str) -> None:
        """Shows a warning to the user."""
        ...


class Task(ABC):
    """One way to score a model, chosen by ``eval.task``.

    Args:
        options: the options under ``eval``, of the class `Options`.
        cache: folder for what is kept between runs.
    """

    Options: ClassVar[type[EvalOptions]]
    """The task's options; its field ``task`` is the literal name of the task."""
    model_tasks: ClassVar[tuple[str, ...]] = ("causal_lm", "seq2seq_lm")
    """The values of ``model.task`` whose models can be scored."""
    needs_rows: ClassVar[bool] = False
    """Whether it scores the rows of the data set."""
    unit: ClassVar[str] = "problems"
    """What it counts, for messages."""
    irrelevant: ClassVar[Mapping[str, Any]] = {}
    """Options that cannot change a result, as pydantic's ``exclude`` takes them. The contents of files that options
    name are part of `identity`."""

    def __init__(self, options: EvalOptions, cache: Path | None = None):
        self.options = options
        self._endpoint: Endpoint | None = None
        self.cache = cache_root(None) if cache is None else cache

    @property
    def name(self) -> str:
        return self.options.task

    @property
    def summary(self) -> str:
        """What it does, in a few words, for the list of planned stages."""
        return self.name

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        """Yields a line for each thing in a configuration that the task cannot work with; it reads no file."""
        if config.model.task not in cls.model_tasks:
            yield f"eval.task={config.eval.task} does not score models of model.task={config.model.task}"
        endpoint = config.eval.endpoint
        if endpoint.base_url is None:
            for name in ("model", "chat"):
                if getattr(endpoint, name):
                    yield f"eval.endpoint.{name} does nothing without eval.endpoint.base_url"
            return
        if needs := cls.needs_logits(config.eval):
            yield (
                f"{needs}, and the server of eval.endpoint.base_url gives only texts: leave it out, and the model is "
                "loaded here"
            )
        if config.model.task != "causal_lm":
            yield f"eval.endpoint.base_url is for model.task=causal_lm, and this is model.task={config.model.task}"
        if config.eval.endpoint.chat and not cls.converses(config.eval):
            yield "eval.endpoint.chat=true is for tasks that are conversations, without eval.prompt"

    @classmethod
    def needs_logits(cls, options: Any) -> str:
        """Why a server that gives only texts does not suffice; empty if it does."""
        return f"eval.task={options.task} needs the model's logits"

    @classmethod
    def converses(cls, options: Any) -> bool:
        """Whether the model's inputs are conversations in the tokenizer's chat template."""
        return False

    def endpoint(self, inputs: EvalInputs) -> Endpoint | None:
        """The server that generates the answers; None if the model does so in this process."""
        from lora_ga_cli.evaluation.endpoint import Endpoint

        if self._endpoint is None and self.options.endpoint.base_url is not None:
            self._endpoint = Endpoint(self.options.endpoint, inputs.name, inputs.tokenizer)
        return self._endpoint

    def served_by(self, inputs: EvalInputs) -> dict[str, Any]:
        """What of a server a result depends on: plain data, empty without one. It may move to another address."""
        options = self.options.endpoint
        return (
            {}
            if options.base_url is None
            else {"server": {"model": options.model or inputs.name, "chat": options.chat}}
        )

    def check_ready(self, inputs: EvalInputs) -> None:  # noqa: B027
        """Refuses what would fail after the model has been loaded: missing files, packages, keys.

        Raises:
            UserError
        """

    def check_before_training(self, inputs: EvalInputs) -> None:
        """Refuses what would fail after the model has been trained.

        Raises:
            UserError
        """
        self.check_ready(inputs)

    @abstractmethod
    def identity(self, inputs: EvalInputs) -> Mapping[str, Any]:
        """What a result depends on, besides model, options and seed, by content; plain data.

        Raises:
            InvalidInput: a file is missing or malformed.
        """

    @abstractmethod
    def evaluate(self, inputs: EvalInputs, file: Path) -> Result:
        """Scores the model.

        Args:
            file: where the result will be stored; unfinished work may be kept beside it.

        Raises:
            UserError
        """

    def relevant_options(self) -> dict[str, Any]:
        """The options that can change a result, as plain data. A batch size changes none, except by sampling.

        What of ``eval.endpoint`` can, is in `served_by`.
        """
        return self.options.model_dump(mode="json", exclude={"batch_size": True, "endpoint": True, **self.irrelevant})

    def files(self) -> dict[str, str | list[str] | None]:
        """The local files that options name, by option."""
        return {"eval.file": self.options.file}

    def result_file(self, folder: Path, identity: str) -> Path:
        """Where a result of this identity is stored."""
        return folder / "eval" / f"{self.name}-{identity[:8]}.json"

    def lines_file(self, result: Path) -> Path:
        """Where the lines of a result are stored."""
        return result.with_suffix(".jsonl")

    @classmethod
    def answers(cls, lines: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """The answers in the lines of a stored result, for people. By default there are none in text."""
        return []

    def stored_results(self, folder: Path) -> list[Path]:
        """The results in a folder, whatever their options."""
        return sorted((folder / "eval").glob(f"{self.name}-*.json"))


def task_of(config: Config) -> Task:
    """The task that a configuration chooses."""
    task: Task = TASKS[config.eval.task](config.eval, cache_root(config.cache_dir))
    return task
