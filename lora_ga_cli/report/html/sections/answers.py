"""Answers of evaluations, those of several runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from lora_ga_cli.evaluation.tasks.answers import Answer
from lora_ga_cli.registry import SECTIONS
from lora_ga_cli.report.html.record import Answered, RunRecord, absences
from lora_ga_cli.report.html.section import Section, SectionContent

MOST_RUNS = 4
"""Runs whose answers are shown beside each other."""
MOST_BYTES = 450_000
"""Bytes of all answers in a page, so that it stays below 1.5 MB."""
MARKUP_BYTES = 900
"""Bytes of a question's markup."""
MOST_LETTERS = 4_000
"""Letters of one text."""
BEGINNING = 110
"""Letters of a prompt that are shown before it is opened."""
SYMBOLS = {True: "right", False: "wrong", None: "other"}


@dataclass(frozen=True)
class Shown:
    """A text as far as it is in the page, and how many letters are not."""

    text: str
    left_out: int = 0


@dataclass(frozen=True)
class OfRun:
    """A run's answer to a question; without a text if the run was not asked it.

    Args:
        kind: ``right``, ``wrong`` or ``other``.
    """

    name: str
    kind: str
    verdict: str
    text: Shown | None


@dataclass(frozen=True)
class Question:
    """A question with all answers to it.

    Args:
        differs: whether one run's verdict differs from another's; where no answer is right or wrong, whether one's text
            does.
        wrong: whether any answer is wrong.
    """

    title: str
    beginning: str
    prompt: Shown
    expected: Shown | None
    is_code: bool
    answers: Sequence[OfRun]
    differs: bool
    wrong: bool


@dataclass(frozen=True)
class OfTask:
    """All questions of a task that are shown.

    Args:
        counts: what each run has: its name, right answers, answers that are right or wrong, the file.
        notes: what a reader has to know.
    """

    title: str
    questions: Sequence[Question]
    counts: Sequence[tuple[str, str, str]]
    notes: Sequence[str]
    judged: bool


@SECTIONS.register("answers")
class Answers(Section):
    name = "answers"
    title = "Answers"
    position = 50
    styles = ("answers.css",)
    scripts = ("answers.js",)

    def content(self, runs: Sequence[RunRecord]) -> SectionContent | None:
        having = [run for run in runs if run.answers]
        absent = absences(runs, "answers")
        if not having and not absent:
            return None
        shown = having[:MOST_RUNS]
        tasks = list(dict.fromkeys(found.task for run in shown for found in run.answers))
        room = MOST_BYTES // max(len(tasks), 1)
        values = {
            "tasks": [_of_task(task, shown, room) for task in tasks],
            "names": [run.name for run in shown],
            "several": len(shown) > 1,
            "more": [run.name for run in having[MOST_RUNS:]],
            "absent": absent,
        }
        return SectionContent(values)


def _of_task(task: str, runs: Sequence[RunRecord], room: int) -> OfTask:
    found = {run.name: one for run in runs for one in run.answers if one.task == task}
    by_question: dict[str, dict[str, Answer]] = {}
    for name, answered in found.items():
        for answer in answered.answers:
            by_question.setdefault(answer.question, {})[name] = answer
    chosen = _that_fit(list(by_question.values()), list(found), room)
    notes = []
    if len(chosen) < len(by_question):
        first = "those that differ first, " if len(found) > 1 else ""
        notes.append(
            f"{len(chosen):,} of {len(by_question):,} questions are here, {first}because this file is to stay small; "
            f"all are in {', '.join(f'{name}/{one.file}' for name, one in found.items())}."
        )
    notes += [
        f"{name}: the newest of {answered.left_out + 1} results, {answered.file}."
        for name, answered in found.items()
        if answered.left_out
    ]
    counts = [(name, *_counts(answered)) for name, answered in found.items()]
    judged = any(answer.correct is not None for one in found.values() for answer in one.answers)
    title = next(iter(found.values())).title
    return OfTask(title, [_question(item, list(found)) for item in chosen], counts, notes, judged)


def _counts(answered: Answered) -> tuple[str, str]:
    """How many answers are right, and in words of how many."""
    judged = [answer for answer in answered.answers if answer.correct is not None]
    if not judged:
        return f"{len(answered.answers):,} answers", ""
    right = sum(bool(answer.correct) for answer in judged)
    return f"{right:,} of {len(judged):,} right", f"{right / len(judged):.1%}"


def _that_fit(questions: Sequence[dict[str, Answer]], names: Sequence[str], room: int) -> list[dict[str, Answer]]:
    """The questions that have room, in their order; those on which runs differ before others."""
    order = sorted(range(len(questions)), key=lambda number: not _differs(questions[number], names))
    chosen: list[int] = []
    for number in order:
        room -= _size(questions[number])
        if room < 0 and chosen:
            break
        chosen.append(number)
    return [questions[number] for number in sorted(chosen)]


def _size(answers: dict[str, Answer]) -> int:
    texts = {text[:MOST_LETTERS] for one in answers.values() for text in (one.prompt, one.expected)}
    texts_of_runs = [one.text[:MOST_LETTERS] for one in answers.values()]
    return MARKUP_BYTES + sum(len(text.encode("utf-8", "replace")) for text in [*texts, *texts_of_runs])


def _differs(answers: dict[str, Answer], names: Sequence[str]) -> bool:
    if len(names) < 2:
        return False
    if len(answers) < len(names):
        return True
    if all(one.correct is None for one in answers.values()):
        return len({(one.verdict, one.text) for one in answers.values()}) > 1
    return len({one.correct for one in answers.values()}) > 1


def _question(answers: dict[str, Answer], names: Sequence[str]) -> Question:
    first = next(iter(answers.values()))
    beginning = " ".join(islice(first.prompt[: 4 * BEGINNING].split(), 60))
    # of a long prompt that shows examples first, the question is at the end
    if len(first.prompt) > 10 * BEGINNING:
        beginning = "… " + " ".join(first.prompt[-2 * BEGINNING :].split())[-BEGINNING:]
    elif len(beginning) > BEGINNING:
        beginning = beginning[:BEGINNING].rstrip() + " …"
    return Question(
        first.title,
        beginning,
        _shown(first.prompt),
        _shown(first.expected) if first.expected else None,
        first.is_code,
        [_of_run(name, answers.get(name)) for name in names],
        _differs(answers, names),
        any(one.correct is False for one in answers.values()),
    )


def _of_run(name: str, answer: Answer | None) -> OfRun:
    if answer is None:
        return OfRun(name, "other", "was not asked", None)
    return OfRun(name, SYMBOLS[answer.correct], answer.verdict, _shown(answer.text))


def _shown(text: str) -> Shown:
    return Shown(text[:MOST_LETTERS], max(len(text) - MOST_LETTERS, 0))
