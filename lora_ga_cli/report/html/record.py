"""What a report shows, as plain data: one record for each run, and the tables that `loraga reproduce` made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_ga_cli.gradient.artifact import GradientArtifact


@dataclass(frozen=True)
class Segment:
    """A piece of a row's text.

    Args:
        learned: whether the loss counts its tokens.
        special: whether its tokens are special ones, such as the end of the text.
    """

    text: str
    learned: bool
    special: bool = False


@dataclass(frozen=True)
class ShownRow:
    """A training row as the model sees it.

    Args:
        tokens: how many tokens it has.
    """

    segments: Sequence[Segment]
    tokens: int


@dataclass(frozen=True)
class RunRecord:
    """One run. What a run does not have is empty or None.

    Args:
        name: its name in this report, which no other run of the report has.
        manifest, config: contents of its files.
        points: what was logged, in order.
        cost: what training cost, as its files say, and ``forecast_peak_memory_bytes``.
        answers: the result file of each evaluation; the answers are in the file beside it that ends in ``.jsonl``.
        evaluations: contents of these files, in the same order.
        gradient: the gradient that initialized it.
        inspection: content of ``inspection.json``.
        rows: some training rows.
        lengths: ``lengths`` and ``labelled``, both numbers of tokens by row, and ``padding_share``.
        absent: why something is not here and how to get it, as a sentence, by the name of the field.
    """

    name: str
    folder: Path
    manifest: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[Mapping[str, Any]] = ()
    cost: Mapping[str, Any] = field(default_factory=dict)
    answers: Sequence[Path] = ()
    evaluations: Sequence[Mapping[str, Any]] = ()
    gradient: GradientArtifact | None = None
    inspection: Mapping[str, Any] | None = None
    rows: Sequence[ShownRow] = ()
    lengths: Mapping[str, Any] | None = None
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return bool(self.manifest.get("finished"))


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
