"""What a benchmark is: a task whose problems a model answers in text, and a score of the answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from lora_ga_cli.config.schema import EvalOptions
from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.evaluation.prompt import check_conversation
from lora_ga_cli.evaluation.tasks.answers import Answer, answers_of_completion, verdict_of
from lora_ga_cli.evaluation.tasks.base import EvalInputs, Progress, Result, Score, Task
from lora_ga_cli.evaluation.tasks.problems import (
    ANSWER_OPTIONS,
    Completion,
    GenerationOptions,
    Problem,
    problems_of,
)
from lora_ga_cli.interruption import keeping
from lora_ga_cli.json_files import sha256_json

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config
    from lora_ga_cli.evaluation.generate import Generator
    from lora_ga_cli.evaluation.served import ServedGenerator

__all__ = ["ANSWER_OPTIONS", "Benchmark", "Completion", "GenerationOptions", "Problem", "collect_faults", "problems_of"]
Loaded = TypeVar("Loaded")


class Benchmark(Task):
    """A task whose problems the model answers in text. A subclass states its problems and scores the completions."""

    Options: ClassVar[type[EvalOptions]] = GenerationOptions
    options: GenerationOptions
    chat: ClassVar[bool] = False
    """Whether the turns are messages of a user in a conversation, and not the model's complete input."""
    stops: tuple[str, ...] = ()
    """Texts that end an answer."""

    @abstractmethod
    def problems(self) -> Sequence[Problem]:
        """All problems, in order.

        Raises:
            DataError: their file is missing or malformed.
        """

    @abstractmethod
    def score(self, completions: Sequence[Completion], progress: Progress) -> Score:
        """Scores the completions of all problems, in the order of problems and of their ``eval.samples`` samples."""

    def grading(self) -> Mapping[str, Any]:
        """What the score depends on besides completions and options, by content; plain data.

        Raises:
            DataError: a file is missing or malformed.
        """
        return {}

    def check_requirements(self) -> None:
        """Refuses files and options with which `score` would fail, and services that it needs and cannot reach.

        Raises:
            UserError
        """

    @classmethod
    def needs_logits(cls, options: Any) -> str:
        return ""

    @classmethod
    def converses(cls, options: Any) -> bool:
        return cls.chat and options.prompt is None

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        options: Any = config.eval
        if options.samples > 1 and options.temperature == 0:
            yield (
                f"eval.samples={options.samples} with eval.temperature=0 would be the same answer {options.samples} "
                "times: eval.temperature=0.8"
            )

    def check_ready(self, inputs: EvalInputs) -> None:
        faults: list[Fault] = []
        endpoint = self.endpoint(inputs)
        if self.chat and not self.options.endpoint.chat:
            tokenizer = inputs.tokenizer if self.options.prompt is None else None
            collect_faults(faults, lambda: check_conversation(self.options.prompt, tokenizer))
        collect_faults(faults, self.check_requirements)
        faults += endpoint.faults() if endpoint is not None else []
        if faults:
            raise InvalidInput(faults)
        if self.options.file is not None:
            problems_of(self)

    def check_before_training(self, inputs: EvalInputs) -> None:
        self.check_ready(inputs)
        if self.options.file is not None:
            from lora_ga_cli.evaluation.inputs import ModelInputs

            config = inputs.config
            model = inputs.empty_model()
            ModelInputs(model, inputs.tokenizer, config.model.task, self.options, config.seed).first_rows(self)

    def relevant_options(self) -> dict[str, Any]:
        sampled = {"batch_size": self.options.batch_size} if self._samples_in_batches else {}
        return super().relevant_options() | sampled

    @property
    def _samples_in_batches(self) -> bool:
        return self.options.temperature > 0 and self.options.endpoint.base_url is None

    def identity(self, inputs: EvalInputs) -> Mapping[str, Any]:
        problems = [[problem.id, problem.turns, dict(problem.row)] for problem in problems_of(self)]
        return {"problems": problems, "grading": dict(self.grading())}

    def evaluate(self, inputs: EvalInputs, file: Path) -> Result:
        """Reuses completions that another result in the folder holds, or an interrupted evaluation has left."""
        from lora_ga_cli.evaluation.completions import said_of_kept, stored_completions

        problems = problems_of(self)
        answers = self._answers_identity(inputs, problems)
        partial = file.with_name(f"{self.name}-{answers[:8]}.partial.jsonl")
        lines, completions = stored_completions(file.parent, answers, problems, inputs.warn)
        if len(completions) == len(problems) * self.options.samples:
            inputs.note(f"answers as in {lines}")
        with keeping(lambda: said_of_kept(partial)):
            if len(completions) != len(problems) * self.options.samples:
                completions = self._answers(inputs).completions(self, partial, inputs.progress)
            score = self.score(completions, inputs.progress)
        truncated = sum(completion.truncated for completion in completions) / len(completions)
        return Result(
            replace(
                score,
                values={**score.values, "truncated": truncated},
                lower_is_better=score.lower_is_better | {"truncated"},
                shares=score.shares | {"truncated"},
            ),
            len(problems),
            self.name,
            [{**one.as_json(), **verdict} for one, verdict in zip(completions, score.verdicts, strict=True)],
            {"answers": answers},
            [partial],
        )

    @classmethod
    def answers(cls, lines: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """A subclass whose verdicts hold something else than ``correct`` and ``expected`` overrides this."""
        found = []
        for line in lines:
            correct = line.get("correct")
            verdict = str(line.get("outcome", "" if correct is None else verdict_of(correct)))
            found += answers_of_completion(line, [(verdict, correct)], str(line.get("expected", "")))
        return found

    def _answers_identity(self, inputs: EvalInputs, problems: Sequence[Problem]) -> str:
        """What the answers depend on, whoever grades them."""
        sampled = {"batch_size"} if self._samples_in_batches else set()
        chosen = self.options.model_dump(mode="json", include=ANSWER_OPTIONS | sampled)
        asked = [[problem.id, problem.turns] for problem in problems]
        parts = {"eval": chosen, "model": inputs.state, "seed": inputs.config.seed, "asked": asked}
        return sha256_json({**parts, **self.served_by(inputs)})

    def _answers(self, inputs: EvalInputs) -> Generator | ServedGenerator:
        """What answers the problems."""
        from lora_ga_cli.evaluation.generate import Generator
        from lora_ga_cli.evaluation.served import ServedGenerator

        config, endpoint = inputs.config, self.endpoint(inputs)
        of_both = (inputs.tokenizer, config.model.task, self.options, config.seed)
        if endpoint is not None:
            endpoint.probe()
            return ServedGenerator(inputs.empty_model(), *of_both, endpoint)
        return Generator(inputs.model(), *of_both, inputs.warn)


def collect_faults(faults: list[Fault], read: Callable[[], Loaded]) -> Loaded | None:
    """The value that ``read`` returns; if it raises `InvalidInput`, None, and its faults are added to the others."""
    try:
        return read()
    except InvalidInput as error:
        faults += error.faults
        return None
