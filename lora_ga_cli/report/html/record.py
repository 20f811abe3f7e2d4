"""What a report shows, as plain data: one record for each run, and the tables that `loraga reproduce` made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_ga_cli.data.show import Segment
from lora_ga_cli.evaluation.tasks.answers import Answer


@dataclass(frozen=True)
class ShownRow:
    """A training row as the model sees it.

    Args:
        tokens: how many tokens it has.
        labelled: how many of them the loss counts; None where it counts no token, but a class.
        title: which row it is.
    """

    segments: Sequence[Segment]
    tokens: int
    labelled: int | None = None
    title: str = ""


@dataclass(frozen=True)
class Answered:
    """The answers of a run to the questions of a task.

    Args:
        task: name of the task.
        title: what the task scores, in a few words.
        answers: in order.
        file: where they are stored.
        left_out: other results of the same task that the run has, which are not shown.
    """

    task: str
    title: str
    answers: Sequence[Answer]
    file: str
    left_out: int = 0


@dataclass(frozen=True)
class RunRecord:
    """One run. What a run does not have is empty or None.

    Args:
        name: its name in this report, which no other run of the report has.
        manifest, config: contents of its files.
        size: rank or width, and how it is saved, as a part of a sentence; empty where that is not known.
        points: what was logged, in order.
        cost: what training cost, as its files say, and ``forecast_peak_memory_bytes``.
        evaluations: contents of the files of results.
        answers: what it answered in them, of each task.
        gradient: the gradient that initialized it: ``key``, ``capacity``, ``directions_per_rank``, ``rank`` (the run's
            largest), ``varies`` (whether its layers have different ranks), ``rows`` (of which it was estimated), and
            ``layers``, as `inspection.spectrum.described` gives them.
        inspection: content of ``inspection.json``.
        rows: some training rows.
        lengths: of the training rows: ``lengths`` (tokens of each row), ``labelled_share`` and ``padding_share`` (of
            tokens, or None), ``looked_at`` (rows of which these two are), ``truncated``, ``skipped`` (rows by reason).
        absent: why something is not here and how to get it, as a sentence, by the name of the field.
    """

    name: str
    folder: Path
    manifest: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    size: str = ""
    points: Sequence[Mapping[str, Any]] = ()
    cost: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Sequence[Mapping[str, Any]] = ()
    answers: Sequence[Answered] = ()
    gradient: Mapping[str, Any] | None = None
    inspection: Mapping[str, Any] | None = None
    rows: Sequence[ShownRow] = ()
    lengths: Mapping[str, Any] | None = None
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return bool(self.manifest.get("finished"))


def absences(runs: Sequence[RunRecord], part: str) -> list[tuple[list[str], str]]:
    """Why a part of some runs is not here: the names of the runs by reason."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if part in run.absent:
            found.setdefault(run.absent[part], []).append(run.name)
    return [(names, why) for why, names in found.items()]


@dataclass(frozen=True)
class TableRecord:
    """A table of results that `loraga reproduce` made.

    Args:
        headings: of all columns; the first one names the rows.
        rows: the cells as text.
        notes: what a reader has to know, a paragraph each.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """Everything that one HTML file shows."""

    title: str
    runs: Sequence[RunRecord] = ()
    tables: Sequence[TableRecord] = ()
