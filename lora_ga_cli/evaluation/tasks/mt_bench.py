"""MT-Bench (Zheng et al. 2023, arXiv 2306.05685): a judge grades the answers to 80 questions of two turns.

Single-answer grading with reference answers, as FastChat's ``gen_judgment --mode single`` does it. We depart from it
in what counts as a rating (see `rating`) and in asking once more where there is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from lora_ga_cli.config.schema import EvalConfig
from lora_ga_cli.errors import Fault, InvalidInput, UserError
from lora_ga_cli.evaluation.gathering import gathered
from lora_ga_cli.evaluation.judge import Judge, Judgement, Message
from lora_ga_cli.evaluation.mt_bench_files import (
    PROMPTS,
    REFERENCED,
    SOURCES,
    TEMPLATES,
    Template,
    read_problems,
    read_templates,
)
from lora_ga_cli.evaluation.tasks.base import Problem, Progress, Reply, Score, problems_of

NUMBER = r"\s*(\d+(?:\.\d*)?)\s*(?:/\s*10\s*)?"
RATING = re.compile(rf"\[\[{NUMBER}\]\]")
BARE_RATING = re.compile(rf"(?<![\w\])[])\[{NUMBER}\]")
ATTEMPTS = 2
"""Times that a judgement is asked for until it holds a rating."""


def rating(judgement: str) -> float | None:
    """The first ``[[n]]`` of a judgement, or else the first ``[n]``, as FastChat reads it.

    We depart where FastChat takes a number that the judge did not mean, or misses one that it did: the ``[1]`` of
    ``list[1]`` is no rating, ``[[8/10]]`` is one, and a number off the scale of 1 to 10 is none.
    """
    found = RATING.search(judgement) or BARE_RATING.search(judgement)
    value = float(found[1]) if found else 0.0
    return value if 1 <= value <= 10 else None


@dataclass(frozen=True)
class Grade:
    """What the judge made of one turn.

    Args:
        turn: from 1.
        rating: None where no judgement holds one.
        judgements: all that were asked for; the rating is of the last.
    """

    turn: int
    category: str
    rating: float | None
    judgements: tuple[Judgement, ...]

    def as_json(self) -> dict[str, Any]:
        texts = [judgement.text for judgement in self.judgements]
        return {"rating": self.rating, "judgements": texts, "model": self.judgements[-1].model}


class MtBench:
    """MT-Bench, graded by `EvalConfig.judge`.

    Args:
        options: with the questions in ``file``, and the judge's prompts and references.
        cache: folder of judgements; each is asked for once.
    """

    name = "mt_bench"
    chat = True
    stops: tuple[str, ...] = ()

    def __init__(self, options: EvalConfig, cache: Path):
        self.options = options
        self.judge = Judge(options.judge, cache)

    def check(self) -> None:
        """Reads all files, and asks the judge for one word.

        Raises:
            InvalidInput: files or options that are missing or do not fit, all at once.
            UserError: the judge does not answer.
        """
        faults: list[Fault] = []
        problems = gathered(faults, lambda: problems_of(self)) or []
        templates = gathered(faults, lambda: self._templates)
        wanted = dict.fromkeys(_template(problem, turn) for problem in problems for turn in _turns(problem))
        if templates is not None and (missing := [name for name in wanted if name not in templates]):
            faults.append(Fault(PROMPTS, f"holds no prompt named {' or '.join(missing)}", SOURCES[PROMPTS]))
        faults += self.judge.faults()
        if faults:
            raise InvalidInput(faults)
        self.judge.probe()

    def problems(self) -> Sequence[Problem]:
        """The questions in their order; those of `REFERENCED` categories with the reference answers to their turns.

        Raises:
            DataError: the questions or the references are missing, or not as FastChat has them.
        """
        return self._problems

    def grading(self) -> Mapping[str, Any]:
        """The judge's prompts; reference answers belong to the problems.

        Raises:
            DataError
        """
        return {name: asdict(template) for name, template in self._templates.items()}

    def score(self, replies: Sequence[Reply], progress: Progress) -> Score:
        """Has every turn graded.

        Returns:
            ``first_turn`` (what the LoRA-GA paper reports), ``second_turn`` and ``both_turns``: means over all rated
            turns, from 1 to 10; ``first_turn/<category>``; ``unrated``: the share of turns without a rating, which
            are in no mean.

        Raises:
            UserError: the judge does not answer, or rates nothing.
        """
        items = [(reply, turn, self._messages(reply, turn)) for reply in replies for turn in _turns(reply.problem)]
        with progress("judge", "turn", len(items)) as report:
            grades = self.judge.each(lambda item: self._grade(*item), items, report)
        values = _means(grades)
        if "both_turns" not in values:
            what = f"no judgement by {self.options.judge.model!r} holds a rating from [[1]] to [[10]]"
            raise UserError(f"{what}: read them in {self.judge.folder}, or name another eval.judge.model")
        left = iter(grades)
        verdicts = []
        for reply in replies:
            turns = [next(left).as_json() for _ in _turns(reply.problem)]
            category = reply.problem.row["category"]
            verdicts.append({"category": category, "judge": self.options.judge.model, "turns": turns})
        return Score(values, verdicts)

    def _grade(self, reply: Reply, turn: int, messages: Sequence[Message]) -> Grade:
        """Asks for a judgement of one turn, and again where it holds no rating."""
        judgements: list[Judgement] = []
        value = None
        while value is None and len(judgements) < ATTEMPTS:
            judgements.append(self.judge.ask(messages, attempt=len(judgements)))
            value = rating(judgements[-1].text)
        return Grade(turn, reply.problem.row["category"], value, tuple(judgements))

    def _messages(self, reply: Reply, turn: int) -> list[Message]:
        problem, answers = reply.problem, [text.strip() for text in reply.texts]  # as FastChat keeps answers
        values = {"question": problem.turns[0], "answer": answers[0]}
        texts = {"question": problem.turns, "answer": answers, "ref_answer": problem.row["references"]}
        for name, parts in texts.items():
            values |= {f"{name}_{number}": part for number, part in enumerate(parts, start=1)}
        return self._templates[_template(problem, turn)].messages(values)

    @cached_property
    def _problems(self) -> list[Problem]:
        return read_problems(self.options)

    @cached_property
    def _templates(self) -> dict[str, Template]:
        return read_templates(self.options.judge.prompts)


def _means(grades: Sequence[Grade]) -> dict[str, float]:
    """The values of a score; a mean over nothing is left out."""
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
