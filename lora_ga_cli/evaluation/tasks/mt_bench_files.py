"""The three files of MT-Bench, as FastChat has them: questions, the judge's prompts, reference answers."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_ga_cli.config.schema import EvalConfig
from lora_ga_cli.data.faults import RowFaults
from lora_ga_cli.data.source import Row
from lora_ga_cli.errors import DataError, Fault
from lora_ga_cli.evaluation.gathering import gathered
from lora_ga_cli.evaluation.judge import Message
from lora_ga_cli.evaluation.rows import FILE, file_rows
from lora_ga_cli.evaluation.tasks.base import Problem

QUESTIONS, PROMPTS, REFERENCES = FILE, "eval.judge.prompts", "eval.judge.references"
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
SHOWN = 10
"""Questions that a fault lists."""


@dataclass(frozen=True)
class Template:
    """One of the judge's prompts."""

    system: str
    user: str

    def messages(self, values: Mapping[str, str]) -> list[Message]:
        user = {"role": "user", "content": self.user.format_map(values)}
        return [{"role": "system", "content": self.system}, user] if self.system.strip() else [user]


def read_problems(options: EvalConfig) -> list[Problem]:
    """The questions in their order; those of `REFERENCED` categories with the reference answers to their turns.

    Raises:
        DataError: the questions or the references are missing, or not as FastChat has them.
    """
    faults: list[Fault] = []
    questions = gathered(faults, lambda: read_questions(options))
    references = gathered(faults, lambda: read_references(options.judge.references))
    if questions is None or references is None:
        raise DataError(faults)
    problems, without = [], []
    for row in questions:
        name, is_referenced = str(row["question_id"]), row["category"] in REFERENCED
        known = references.get(name, ()) if is_referenced else ()
        if is_referenced and len(known) < len(row["turns"]):
            without.append(name)
        problems.append(Problem(name, tuple(row["turns"]), {"category": row["category"], "references": known}))
    if without:
        more = f" and {len(without) - SHOWN} more" if len(without) > SHOWN else ""
        what = f"does not answer every turn of question {', '.join(without[:SHOWN])}{more}"
        raise DataError([Fault(REFERENCES, what, SOURCES[REFERENCES])])
    return problems


def read_questions(options: EvalConfig) -> list[Row]:
    """The rows of questions.

    Raises:
        DataError
    """
    rows = _rows(QUESTIONS, options.file, ("question_id", "category", "turns"), options.limit)
    bad = RowFaults(QUESTIONS)
    for number, row in enumerate(rows, start=1):
        if why := _unlike_a_question(row):
            bad.add("question", QUESTIONS, f"question {row.get('question_id', '')} (row {number}) {why}")
    if len(bad):
        raise DataError(bad.faults({"question": SOURCES[QUESTIONS]}))
    return rows


def read_references(file: str | None) -> dict[str, tuple[str, ...]]:
    """Reference answers to the turns of a question, by its id.

    Raises:
        DataError
    """
    answers: dict[str, tuple[str, ...]] = {}
    for row in _rows(REFERENCES, file, ("question_id", "choices")):
        try:
            turns = row["choices"][0]["turns"]
        except (KeyError, IndexError, TypeError):
            continue  # a question that needs it will be missed, by its id
        if _are_texts(turns):
            answers[str(row.get("question_id"))] = tuple(turns)
    return answers


def read_templates(file: str | None) -> dict[str, Template]:
    """The single-answer prompts by name.

    Raises:
        DataError
    """
    templates: dict[str, Template] = {}
    bad = RowFaults(PROMPTS)
    for row in _rows(PROMPTS, file, ("name", "system_prompt", "prompt_template")):
        if (name := str(row.get("name"))) in PLACES:
            system, user = (str(row.get(column) or "") for column in ("system_prompt", "prompt_template"))
            templates[name] = Template(system, user)
            if why := _misplaced(name, templates[name]):
                bad.add("prompt", PROMPTS, f"prompt {name} {why}")
    if len(bad):
        raise DataError(bad.faults({"prompt": SOURCES[PROMPTS]}))
    return templates


def _rows(option: str, file: str | list[str] | None, columns: Sequence[str], limit: int | None = None) -> list[Row]:
    if file is None:
        raise DataError([Fault(option, "names no file, and MT-Bench needs one", SOURCES[option])])
    return file_rows(option, file, columns, hint=SOURCES[option], limit=limit)


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
