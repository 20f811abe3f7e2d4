"""MT-Bench (Zheng et al. 2023, arXiv 2306.05685): a judge grades the answers to 80 questions of two turns.

This is single-answer grading with reference answers, as in FastChat's ``gen_judgment --mode single``. It differs in
what counts as a rating (see `rating`), and in asking the judge again if there is no rating.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

from lora_ga_cli.config.schema import EvalOptions
from lora_ga_cli.errors import Fault, InvalidInput, UserError
from lora_ga_cli.evaluation.judge import Judge, Judgement, JudgeOptions, Message
from lora_ga_cli.evaluation.tasks.answers import Answer, answers_of_completion
from lora_ga_cli.evaluation.tasks.base import Progress, Score
from lora_ga_cli.evaluation.tasks.benchmark import (
    Benchmark,
    Completion,
    GenerationOptions,
    Problem,
    collect_faults,
    problems_of,
)
from lora_ga_cli.evaluation.tasks.mt_bench_files import (
    PROMPTS,
    REFERENCED,
    REFERENCES,
    SOURCES,
    TEMPLATES,
    Template,
    read_problems,
    read_templates,
)
from lora_ga_cli.registry import TASKS

NUMBER = r"\s*(\d+(?:\.\d*)?)\s*(?:/\s*10\s*)?"
RATING = re.compile(rf"\[\[{NUMBER}\]\]")
BARE_RATING = re.compile(rf"(?<![\w\])[])\[{NUMBER}\]")
ATTEMPTS = 2
"""How often the judge is asked for a judgement that contains a rating."""


def rating(judgement: str) -> float | None:
    """The first ``[[n]]`` of a judgement, or else the first ``[n]``, as FastChat reads it.

    This differs from FastChat where FastChat reads a number that is not the rating, or misses the rating: ``[1]`` in
    ``list[1]`` is no rating, ``[[8/10]]`` is one, and a number outside the scale of 1 to 10 is none.
    """
    match = RATING.search(judgement) or BARE_RATING.search(judgement)
    value = float(match[1]) if match else 0.0
    return value if 1 <= value <= 10 else None


@dataclass(frozen=True)
class Grade:
    """The judge's grade of one turn.

    Args:
        turn: number of the turn, from 1.
        rating: None if no judgement contains a rating.
        judgements: all judgements of the turn; the rating is the last one's.
    """

    turn: int
    category: str
    rating: float | None
    judgements: tuple[Judgement, ...]

    def as_json(self) -> dict[str, Any]:
        texts = [judgement.text for judgement in self.judgements]
        return {"rating": self.rating, "judgements": texts, "model": self.judgements[-1].model}


class MtBenchOptions(GenerationOptions):
    """Options of MT-Bench."""

    task: Literal["mt_bench"] = "mt_bench"
    """What is scored."""
    judge: JudgeOptions = JudgeOptions()


@TASKS.register("mt_bench")
class MtBench(Benchmark):
    """MT-Bench. The questions are in ``eval.file``; ``eval.judge`` has the judge, its prompts and the references."""

    Options = MtBenchOptions
    options: MtBenchOptions
    chat = True
    irrelevant: ClassVar = {"judge": {"prompts", "references", "concurrency", "retries", "key_variable"}}

    def __init__(self, options: EvalOptions, cache: Path | None = None):
        super().__init__(options, cache)
        self.judge = Judge(self.options.judge, self.cache / "judgements")

    def files(self) -> dict[str, str | list[str] | None]:
        judge = self.options.judge
        return {**super().files(), PROMPTS: judge.prompts, REFERENCES: judge.references}

    def check_requirements(self) -> None:
        """Reads all files, and asks the judge for one word.

        Raises:
            InvalidInput: missing or wrong files and options, all of them.
            UserError: the judge does not answer.
        """
        faults: list[Fault] = []
        problems = collect_faults(faults, lambda: problems_of(self)) or []
        templates = collect_faults(faults, lambda: self._templates)
        wanted = dict.fromkeys(_template(problem, turn) for problem in problems for turn in _turns(problem))
        if templates is not None and (missing := [name for name in wanted if name not in templates]):
            faults.append(Fault(PROMPTS, f"has no prompt named {' or '.join(missing)}", SOURCES[PROMPTS]))
        faults += self.judge.faults()
        if faults:
            raise InvalidInput(faults)
        self.judge.probe()

    def problems(self) -> Sequence[Problem]:
        """The questions in order; those of `REFERENCED` categories with the reference answers to their turns.

        Raises:
            DataError: questions or references are missing, or not in FastChat's form.
        """
        return self._problems

    def grading(self) -> Mapping[str, Any]:
        """The judge's prompts. The reference answers are part of the problems.

        Raises:
            DataError
        """
        return {name: asdict(template) for name, template in self._templates.items()}

    def score(self, completions: Sequence[Completion], progress: Progress) -> Score:
        """Asks the judge for a grade of every turn.

        Returns:
            ``first_turn`` (which the LoRA-GA paper reports), ``second_turn`` and ``both_turns``: means over all rated
            turns, from 1 to 10; ``first_turn/<category>``; ``unrated``: the share of turns without a rating, which are
            in no mean.

        Raises:
            UserError: the judge does not answer, or rates nothing.
        """
        items = [(one, turn, self._messages(one, turn)) for one in completions for turn in _turns(one.problem)]
        with progress("judge", "turn", len(items)) as report:
            grades = self.judge.each(lambda item: self._grade(*item), items, report)
        values = _means(grades)
        if "both_turns" not in values:
            what = f"no judgement by {self.options.judge.model!r} contains a rating from [[1]] to [[10]]"
            raise UserError(f"{what}: read them in {self.judge.folder}, or name another eval.judge.model")
        remaining = iter(grades)
        verdicts = []
        for completion in completions:
            turns = [next(remaining).as_json() for _ in _turns(completion.problem)]
            category = completion.problem.row["category"]
            verdicts.append({"category": category, "judge": self.options.judge.model, "turns": turns})
        return Score(values, verdicts, lower_is_better=frozenset({"unrated"}), shares=frozenset({"unrated"}))

    @classmethod
    def answers(cls, lines: Sequence[Mapping[str, Any]]) -> list[Answer]:
        found = []
        for line in lines:
            ratings = [turn["rating"] for turn in line["turns"]]
            verdicts = ["no rating" if one is None else f"rated {one:g} of 10" for one in ratings]
            found += answers_of_completion(line, [(verdict, None) for verdict in verdicts])
        return found

    def _grade(self, completion: Completion, turn: int, messages: Sequence[Message]) -> Grade:
        """Asks for a judgement of one turn, and again if it contains no rating."""
        judgements: list[Judgement] = []
        value = None
        while value is None and len(judgements) < ATTEMPTS:
            judgements.append(self.judge.ask(messages, attempt=len(judgements)))
            value = rating(judgements[-1].text)
        return Grade(turn, completion.problem.row["category"], value, tuple(judgements))

    def _messages(self, completion: Completion, turn: int) -> list[Message]:
        # FastChat strips answers before it stores them
        problem, answers = completion.problem, [text.strip() for text in completion.texts]
        values = {"question": problem.turns[0], "answer": answers[0]}
        texts = {"question": problem.turns, "answer": answers, "ref_answer": problem.row["references"]}
        for name, parts in texts.items():
            values |= {f"{name}_{number}": part for number, part in enumerate(parts, start=1)}
        return self._templates[_template(problem, turn)].messages(values)

    @cached_property
    def _problems(self) -> list[Problem]:
        options = self.options
        return read_problems(options.file, options.limit, options.judge.references)

    @cached_property
    def _templates(self) -> dict[str, Template]:
        return read_templates(self.options.judge.prompts)


def _means(grades: Sequence[Grade]) -> dict[str, float]:
    """The values of a score, without means over no rating."""
    first = [grade for grade in grades if grade.turn == 1]
    groups = {"first_turn": first, "second_turn": [grade for grade in grades if grade.turn == 2], "both_turns": grades}
    for category in dict.fromkeys(grade.category for grade in first):
        groups[f"first_turn/{category}"] = [grade for grade in first if grade.category == category]
    means = {}
    for name, group in groups.items():
        if ratings := [grade.rating for grade in group if grade.rating is not None]:
            means[name] = fmean(ratings)
    return means | {"unrated": sum(grade.rating is None for grade in grades) / max(len(grades), 1)}


def _turns(problem: Problem) -> range:
    return range(1, len(problem.turns) + 1)


def _template(problem: Problem, turn: int) -> str:
    return TEMPLATES[turn, problem.row["category"] in REFERENCED]
