"""MT-Bench (Zheng et al. 2023, arXiv 2306.05685): a judge grades the answers to 80 questions of two turns.

Single-answer grading with reference answers, as FastChat's ``gen_judgment --mode single`` does it. We depart from it
in what counts as a rating (see `rating`) and in asking once more where there is none.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from lora_ga_cli.config.schema import EvalConfig
from lora_ga_cli.data.faults import RowFaults
from lora_ga_cli.data.local import files_faults, read_files
from lora_ga_cli.data.source import Row
from lora_ga_cli.errors import DataError, Fault, InvalidInput, UserError
from lora_ga_cli.evaluation.judge import Judge, Judgement, Message
from lora_ga_cli.evaluation.rows import benchmark_rows
from lora_ga_cli.evaluation.task import Counter, Problem, Reply, Score

QUESTIONS, PROMPTS, REFERENCES = "eval.file", "eval.judge.prompts", "eval.judge.references"
FASTCHAT = "github.com/lm-sys/FastChat has it: fastchat/llm_judge/data/"
SOURCES = {
    QUESTIONS: FASTCHAT + "mt_bench/question.jsonl",
    PROMPTS: FASTCHAT + "judge_prompts.jsonl",
    REFERENCES: FASTCHAT + "mt_bench/reference_answer/gpt-4.jsonl",
}
"""Where to fetch the file that an option names; no copy on the hub can be relied upon."""
REFERENCED = ("math", "reasoning", "coding")
"""Categories that are graded beside a reference answer (FastChat's ``NEED_REF_CATS``)."""
TEMPLATES = {
    (1, False): "single-v1",
    (1, True): "single-math-v1",
    (2, False): "single-v1-multi-turn",
    (2, True): "single-math-v1-multi-turn",
}
"""FastChat's name of the judge's prompt, by the turn that is graded and whether it is beside a reference."""
PLACES = {
    "single-v1": {"question", "answer"},
    "single-math-v1": {"question", "answer", "ref_answer_1"},
    "single-v1-multi-turn": {"question_1", "answer_1", "question_2", "answer_2"},
    "single-math-v1-multi-turn": {"question_1", "answer_1", "question_2", "answer_2", "ref_answer_1", "ref_answer_2"},
}
"""What each prompt inserts."""
NUMBER = r"\s*(\d+(?:\.\d*)?)\s*(?:/\s*10\s*)?"
RATING = re.compile(rf"\[\[{NUMBER}\]\]")
BARE_RATING = re.compile(rf"(?<![\w\])[])\[{NUMBER}\]")
ATTEMPTS = 2
"""Times that a judgement is asked for until it holds a rating."""
SHOWN = 10
"""Questions that a fault lists."""
Loaded = TypeVar("Loaded")


def rating(judgement: str) -> float | None:
    """The first ``[[n]]`` of a judgement, or else the first ``[n]``, as FastChat reads it.

    We depart where FastChat takes a number that the judge did not mean, or misses one that it did: the ``[1]`` of
    ``list[1]`` is no rating, ``[[8/10]]`` is one, and a number off the scale of 1 to 10 is none.
    """
    found = RATING.search(judgement) or BARE_RATING.search(judgement)
    value = float(found[1]) if found else 0.0
    return value if 1 <= value <= 10 else None


@dataclass(frozen=True)
class Template:
    """One of the judge's prompts."""

    system: str
    user: str

    def messages(self, values: Mapping[str, str]) -> list[Message]:
        user = {"role": "user", "content": self.user.format_map(values)}
        return [{"role": "system", "content": self.system}, user] if self.system.strip() else [user]


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
        problems = _gathered(faults, self.problems) or []
        templates = _gathered(faults, lambda: self._templates)
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

    def score(self, replies: Sequence[Reply], progress: Counter) -> Score:
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
        faults: list[Fault] = []
        questions = _gathered(faults, self._questions)
        references = _gathered(faults, self._references)
        if questions is None or references is None:
            raise DataError(faults)
        problems, without = [], []
        for name, row in questions.items():
            known = references.get(name, ()) if row["category"] in REFERENCED else ()
            if row["category"] in REFERENCED and len(known) < len(row["turns"]):
                without.append(name)
            problems.append(Problem(name, tuple(row["turns"]), {"category": row["category"], "references": known}))
        if without:
            more = f" and {len(without) - SHOWN} more" if len(without) > SHOWN else ""
            what = f"does not answer every turn of question {', '.join(without[:SHOWN])}{more}"
            raise DataError([Fault(REFERENCES, what, SOURCES[REFERENCES])])
        return problems

    @cached_property
    def _templates(self) -> dict[str, Template]:
        """The single-answer prompts by name."""
        templates: dict[str, Template] = {}
        bad = RowFaults(PROMPTS)
        for row in _sheet(PROMPTS, self.options.judge.prompts, ("name", "system_prompt", "prompt_template")):
            if (name := str(row.get("name"))) in PLACES:
                system, user = (str(row.get(column) or "") for column in ("system_prompt", "prompt_template"))
                templates[name] = Template(system, user)
                if why := _misplaced(name, templates[name]):
                    bad.add("prompt", PROMPTS, f"prompt {name} {why}")
        if len(bad):
            raise DataError(bad.faults({"prompt": SOURCES[PROMPTS]}))
        return templates

    def _questions(self) -> dict[str, Row]:
        """The rows of questions by id, in their order."""
        if self.options.file is None:
            raise DataError([_unset(QUESTIONS)])
        rows = benchmark_rows(self.options, ("question_id", "category", "turns"), path="", split="")
        questions: dict[str, Row] = {}
        bad = RowFaults(QUESTIONS)
        for number, row in enumerate(rows, start=1):
            name = str(row.get("question_id", ""))
            if why := _unlike_a_question(row) or ("stands there twice" if name in questions else ""):
                bad.add("question", QUESTIONS, f"question {name} (row {number}) {why}")
            questions[name] = row
        if len(bad):
            raise DataError(bad.faults({"question": SOURCES[QUESTIONS]}))
        return questions

    def _references(self) -> dict[str, tuple[str, ...]]:
        """Reference answers to the turns of a question, by its id."""
        answers: dict[str, tuple[str, ...]] = {}
        for row in _sheet(REFERENCES, self.options.judge.references, ("question_id", "choices")):
            try:
                turns = row["choices"][0]["turns"]
            except (KeyError, IndexError, TypeError):
                continue  # a question that needs it will be missed, by its id
            if _are_texts(turns):
                answers[str(row.get("question_id"))] = tuple(turns)
        return answers


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


def _gathered(faults: list[Fault], read: Callable[[], Loaded]) -> Loaded | None:
    """What ``read`` returns; or None, and its faults with the others."""
    try:
        return read()
    except InvalidInput as error:
        faults += error.faults
        return None


def _sheet(option: str, file: str | None, columns: Sequence[str]) -> list[Row]:
    """The rows of the file that an option names.

    Raises:
        DataError: it is not named, missing, malformed, or another file.
    """
    if file is None:
        raise DataError([_unset(option)])
    if faults := files_faults([file], None):
        raise DataError(faults)
    source = read_files([file], column_names=None, on_bad_row="error")
    if missing := [column for column in columns if column not in source.columns]:
        what = f"{file} has no column {' and '.join(map(repr, missing))}"
        raise DataError([Fault(option, what, SOURCES[option])])
    return source.take(range(len(source)), columns)


def _unset(option: str) -> Fault:
    return Fault(option, "names no file, and MT-Bench needs one", SOURCES[option])


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value)


def _unlike_a_question(row: Row) -> str:
    """Why a row is no question of MT-Bench; empty if it is one."""
    if not isinstance(row.get("question_id"), int | str):
        return "has no question_id"
    if not isinstance(row.get("category"), str):
        return "has no category"
    if not _are_texts(row.get("turns")) or len(row["turns"]) not in (1, 2):
        return "has no list of one or two texts as its turns"
    return ""


def _misplaced(name: str, template: Template) -> str:
    """Why a template cannot be the prompt of that name; empty if it can."""
    try:
        places = {place for _, place, _, _ in string.Formatter().parse(template.user) if place is not None}
        if places <= PLACES[name]:
            template.messages(dict.fromkeys(places, "text"))
    except (TypeError, ValueError) as error:
        return f"cannot be filled in: {error}"
    wrong = [f"lacks {{{place}}}" for place in sorted(PLACES[name] - places)]
    wrong += [f"has an unknown {{{place}}}" for place in sorted(places - PLACES[name])]
    return ", ".join(wrong)
