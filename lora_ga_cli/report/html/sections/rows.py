"""What the model sees: some training rows with what is learned of them, and the lengths of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_ga_cli.data.show import Segment
from lora_ga_cli.registry import SECTIONS
from lora_ga_cli.report.html.histogram import Histogram, histogram
from lora_ga_cli.report.html.record import RunRecord, ShownRow, absences
from lora_ga_cli.report.html.section import Section, SectionContent

LONG = 700
"""Letters and line ends from which a row is folded; a line end counts as much as a line of letters."""
LINE = 80
BEGINNING = 160
"""Letters of a folded row that are shown."""
MOST_LETTERS = 12_000
"""Letters of a row that are in the page."""
MOST_GROUPS = 3
"""Groups of runs whose rows are shown."""


@dataclass(frozen=True)
class Folded:
    """A row for the template.

    Args:
        beginning: what is shown of a long row before it is opened; empty for a short row.
        left_out: letters at its end that are not in the page.
    """

    row: ShownRow
    segments: Sequence[Segment]
    beginning: str
    left_out: int


@dataclass(frozen=True)
class RowsOfRuns:
    """The rows of runs that read the same ones."""

    names: Sequence[str]
    rows: Sequence[Folded]
    facts: Sequence[tuple[str, str]]
    lengths: Histogram | None


@SECTIONS.register("rows")
class Rows(Section):
    """Runs with the same rows share them."""

    name = "rows"
    title = "What the model sees"
    position = 20
    styles = ("rows.css",)

    def content(self, runs: Sequence[RunRecord]) -> SectionContent | None:
        groups: dict[tuple[object, ...], list[RunRecord]] = {}
        for run in runs:
            if run.rows:
                groups.setdefault((*(row_key(row) for row in run.rows), str(run.lengths)), []).append(run)
        absent = absences(runs, "rows")
        if not groups and not absent:
            return None
        shown = [_of_runs(group) for group in list(groups.values())[:MOST_GROUPS]]
        more = [run.name for group in list(groups.values())[MOST_GROUPS:] for run in group]
        several = len(shown) > 1 or len(groups) + len(absent) > 1
        return SectionContent({"groups": shown, "absent": absent, "more": more, "several": several})


def row_key(row: ShownRow) -> tuple[object, ...]:
    return (row.title, row.tokens, *row.segments)


def _of_runs(runs: Sequence[RunRecord]) -> RowsOfRuns:
    found = runs[0].lengths
    return RowsOfRuns(
        [run.name for run in runs],
        [_folded(row) for row in runs[0].rows],
        _facts(runs[0]),
        histogram(found["lengths"], "tokens") if found and found["lengths"] else None,
    )


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    """Names and values about all rows."""
    found = run.lengths
    if not found or not found["lengths"]:
        return []
    lengths = sorted(found["lengths"])
    of = "" if found["looked_at"] == len(lengths) else f" (of {found['looked_at']:,} rows)"
    facts = [
        ("rows", f"{len(lengths):,}"),
        ("tokens", f"{sum(lengths):,}"),
        ("tokens of a row", f"{lengths[0]:,} to {lengths[-1]:,}, median {lengths[(len(lengths) - 1) // 2]:,}"),
    ]
    if found["labelled_share"] is not None:
        facts.append(("tokens that are learned", f"{found['labelled_share']:.1%}{of}"))
    if found["padding_share"] is not None:
        facts.append(("padding, if rows are padded", f"{found['padding_share']:.1%} of the tokens"))
    facts.append(("rows that were truncated", f"{found['truncated']:,}"))
    facts += [(f"rows left out: {reason}", f"{count:,}") for reason, count in found["skipped"].items()]
    return facts


def _folded(row: ShownRow) -> Folded:
    text = "".join(segment.text for segment in row.segments)
    segments, room = [], MOST_LETTERS
    for segment in row.segments:
        if room <= 0:
            break
        segments.append(Segment(segment.text[:room], segment.learned, segment.special))
        room -= len(segment.text)
    is_long = len(text) + LINE * text.count("\n") > LONG
    beginning = " ".join(text[:BEGINNING].split()) + " …" if is_long else ""
    return Folded(row, segments, beginning, max(len(text) - MOST_LETTERS, 0))
