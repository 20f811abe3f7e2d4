"""The runs in one table, and the tables that `loraga reproduce` made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_ga_cli.registry import SECTIONS
from lora_ga_cli.report.console import duration
from lora_ga_cli.report.html.plain import MISSING, compare, text_of
from lora_ga_cli.report.html.record import Report, RunRecord
from lora_ga_cli.report.html.scores import Scores, evaluations, losses, steps_of_training_loss
from lora_ga_cli.report.html.section import Section, SectionContent
from lora_ga_cli.report.html.sections.configuration import without_names

MAX_OPTIONS = 8
"""Options that differ which the table shows; the part about the configuration has all."""
UNINTERESTING = ("output_dir", "cache_dir", "recipe")
NUMBER = re.compile(r"[-−+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Cell:
    """A cell of a table that can be sorted.

    Args:
        value: what it is sorted by; None for its text.
    """

    text: str
    value: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Shown:
    """A table: the first cell of each row names it."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str]
    numeric: Sequence[bool]


@SECTIONS.register("table")
class Table(Section):
    name, title, position = "table", "Table", 5

    def of(self, report: Report) -> SectionContent | None:
        tables = [
            _shown(item.title, item.headings, [[_parsed(cell) for cell in row] for row in item.rows], item.notes)
            for item in report.tables
        ]
        if len(report.runs) > 1:
            tables.append(_of_runs(report.runs, "Runs" if tables else ""))
        return SectionContent({"tables": tables}) if tables else None

    def content(self, runs: Sequence[RunRecord]) -> SectionContent | None:
        return self.of(Report("", runs))


def _of_runs(runs: Sequence[RunRecord], title: str) -> Shown:
    options = _options(runs)
    scores = [*losses(runs), *evaluations(runs)]
    headings = ["run", *options, "steps", *(item.name for item in scores), "time"]
    rows = []
    for number, run in enumerate(runs):
        steps, seconds = run.manifest.get("steps"), run.manifest.get("training_seconds")
        time = Cell(duration(seconds), seconds) if isinstance(seconds, int | float) else Cell(MISSING)
        steps_cell = Cell(f"{steps:,}", steps) if isinstance(steps, int) else Cell(MISSING)
        settings = [_parsed(values[number]) for values in options.values()]
        rows.append([Cell(run.name), *settings, steps_cell, *(_cell(item, number) for item in scores), time])
    unfinished = [run.name for run in runs if not run.finished]
    notes = [f"Not finished: {', '.join(unfinished)}."] if unfinished else []
    notes += _about_training_loss(runs)
    return _shown(title, headings, rows, notes)


def _about_training_loss(runs: Sequence[RunRecord]) -> list[str]:
    """Over which steps the training losses are means."""
    steps = {steps_of_training_loss(run) for run in runs} - {None}
    if not steps:
        return []
    if steps == {1}:
        return ["The training loss is that of the last step."]
    if len(steps) == 1:
        return [f"The training loss is the mean of the last {steps.pop()} steps."]
    least, most = min(filter(None, steps)), max(filter(None, steps))
    return [
        f"The training losses are means of the last {least} to {most} steps, of each run over another number: "
        "compare the validation losses."
    ]


def _options(runs: Sequence[RunRecord]) -> dict[str, Sequence[str]]:
    """The options that differ, and the learning rate that was used."""
    found = compare([run.name for run in runs], [without_names(run.config) for run in runs]).different
    rates = [run.manifest.get("learning_rate") for run in runs]
    chosen: dict[str, Sequence[str]] = {}
    if "method.name" in found:
        chosen["method"] = found["method.name"]
    for name, values in found.items():
        section, _, option = name.partition(".")
        of_method = section == "method"  # the name says it
        is_rate = option == "learning_rate"
        if not (of_method or is_rate or name.startswith("eval.") or name in UNINTERESTING):
            chosen[name] = values
    if len(set(rates)) > 1:
        chosen["learning rate"] = [MISSING if rate is None else text_of(rate) for rate in rates]
    if not chosen and any(name.startswith("method.") for name in found):
        chosen = {name: values for name, values in found.items() if name.startswith("method.")}
    return dict(list(chosen.items())[:MAX_OPTIONS])


def _cell(scores: Scores, number: int) -> Cell:
    score = scores.of_runs[number]
    if score is None:
        return Cell(MISSING)
    of_rows = f" of {score.rows:,}" if scores.rows_differ and score.rows is not None else ""
    return Cell(score.text + of_rows, score.value, best=score.value == scores.best)


def _shown(title: str, headings: Sequence[str], rows: Sequence[Sequence[Cell]], notes: Sequence[str]) -> Shown:
    numeric = [
        index > 0 and all(row[index].value is not None or row[index].text in (MISSING, "") for row in rows)
        for index in range(len(headings))
    ]
    return Shown(title, headings, rows, notes, numeric)


def _parsed(text: str) -> Cell:
    """A cell that is sorted by the number that it begins with."""
    found: Any = NUMBER.match(text)
    return Cell(text, float(found.group().replace(",", "").replace("−", "-")) if found else None)
