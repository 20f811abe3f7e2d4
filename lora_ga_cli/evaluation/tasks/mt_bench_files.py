"""Reads the three files of MT-Bench in FastChat's form: questions, the judge's prompts, reference answers."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_ga_cli.data.faults import RowFaults
from lora_ga_cli.data.source import Row
from lora_ga_cli.errors import DataError, Fault
from lora_ga_cli.evaluation.benchmark_rows import FILE, file_rows
from lora_ga_cli.evaluation.judge import Message
from lora_ga_cli.evaluation.tasks.benchmark import Problem, collect_faults

QUESTIONS, PROMPTS, REFERENCES = FILE, "eval.judge.prompts", "eval.judge.references"
FASTCHAT = "it is in github.com/lm-sys/FastChat: fastchat/llm_judge/data/"
SOURCES = {
    QUESTIONS: FASTCHAT + "mt_bench/question.jsonl",
    PROMPTS: FASTCHAT + "judge_prompts.jsonl",
    REFERENCES: FASTCHAT + "mt_bench/reference_answer/gpt-4.jsonl",
}
"""Where to download the file that an option names, as no copy on the hub is reliable."""
REFERENCED = ("math", "reasoning", "coding")
"""Categories that are graded with a reference answer (FastChat's ``NEED_REF_CATS``)."""
TEMPLATES = {
    (1, False): "single-v1",
    (1, True): "single-math-v1",
    (2, False): "single-v1-multi-turn",
    (2, True): "single-math-v1-multi-turn",
}
"""FastChat's name of the judge's prompt, by the graded turn and by whether there is a reference answer."""
FIELDS = {
    "single-v1": {"question", "answer"},
    "single-math-v1": {"question", "answer", "ref_answer_1"},
    "single-v1-multi-turn": {"question_1", "answer_1", "question_2", "answer_2"},
    "single-math-v1-multi-turn": {"question_1", "answer_1", "question_2", "answer_2", "ref_answer_1", "ref_answer_2"},
}
"""The fields that each prompt fills in."""
MAX_LISTED = 10
"""The most questions that one message lists."""


@dataclass(frozen=True)
class Template:
    """One of the judge's prompts."""

    system: str
    user: str

    def messages(self, values: Mapping[str, str]) -> list[Message]:
        user = {"role": "user", "content": self.user.format_map(values)}
        return [{"role": "system", "content": self.system}, user] if self.system.strip() else [user]


def read_problems(file: str | list[str] | None, limit: int | None, references_file: str | None) -> list[Problem]:
    """The questions in order; those of `REFERENCED` categories with the reference answers to their turns.

    Args:
        file: file or files of questions.
        limit: reads only the first questions, at most this many.
        references_file: file of reference answers.

    Raises:
        DataError: questions or references are missing, or not in FastChat's form.
    """
    faults: list[Fault] = []
    questions = collect_faults(faults, lambda: read_questions(file, limit))
    references = collect_faults(faults, lambda: read_references(references_file))
    if questions is None or references is None:
        raise DataError(faults)
    problems, without = [], []
    for row in questions:
        name, is_referenced = str(row["question_id"]), row["category"] in REFERENCED
        answers = references.get(name, ()) if is_referenced else ()
        if is_referenced and len(answers) < len(row["turns"]):
            without.append(name)
        problems.append(Problem(name, tuple(row["turns"]), {"category": row["category"], "references": answers}))
    if without:
        more = f" and {len(without) - MAX_LISTED} more" if len(without) > MAX_LISTED else ""
        what = f"lacks the answer to a turn of question {', '.join(without[:MAX_LISTED])}{more}"
        raise DataError([Fault(REFERENCES, what, SOURCES[REFERENCES])])
    return problems


def read_questions(file: str | list[str] | None, limit: int | None) -> list[Row]:
    """The rows of questions.

    Raises:
        DataError
    """
    rows = _rows(QUESTIONS, file, ("question_id", "category", "turns"), limit)
    bad = RowFaults(QUESTIONS)
    for number, row in enumerate(rows, start=1):
        if why := _fault_of_question(row):
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
            continue  # if a question needs this answer, `read_problems` reports the question
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
        if (name := str(row.get("name"))) in FIELDS:
            system, user = (str(row.get(column) or "") for column in ("system_prompt", "prompt_template"))
            templates[name] = Template(system, user)
            if why := _fault_of_template(name, templates[name]):
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


def _fault_of_question(row: Row) -> str:
    """What is wrong with a row of questions; empty if nothing is."""
    if not isinstance(row.get("question_id"), int | str):
        return "has no question_id"
    if not isinstance(row.get("category"), str):
        return "has no category"
    if not _are_texts(row.get("turns")) or len(row["turns"]) not in (1, 2):
        return "has no list of one or two texts as its turns"
    return ""


def _fault_of_template(name: str, template: Template) -> str:
    """What is wrong with the prompt of a name; empty if nothing is."""
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template.user) if field is not None}
        if fields <= FIELDS[name]:
            template.messages(dict.fromkeys(fields, "text"))
    except (TypeError, ValueError) as error:
        return f"cannot be filled in: {error}"
    wrong = [f"lacks {{{field}}}" for field in sorted(FIELDS[name] - fields)]
    wrong += [f"has an unknown {{{field}}}" for field in sorted(fields - FIELDS[name])]
    return ", ".join(wrong)
