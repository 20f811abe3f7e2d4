"""A table's results: on the terminal, as Markdown, as CSV and as a picture."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_ga_cli.files import atomic_file
from lora_ga_cli.report.figures import dots

Place = tuple[str, str]
"""Row and column."""


@dataclass(frozen=True)
class Results:
    """What was measured, beside what the paper says.

    Args:
        values: by row and column, one of every seed that has come to an end.
        wanted: seeds that there should be.
        percent: columns that are shown times a hundred.
        paper: mean and standard deviation by row and column.
        notes: what a reader has to know, a line each.
        rates: the learning rate that each cell was trained at, where rows have their own.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Mapping[Place, Sequence[float]]
    wanted: int
    percent: Sequence[str]
    paper: Mapping[str, Mapping[str, Sequence[float]]]
    notes: Sequence[str]
    rates: Mapping[Place, float]

    def measured(self, row: str, column: str) -> tuple[float, float | None] | None:
        """Mean and standard deviation over seeds (of the sample; None of a single one), as they are shown."""
        values = self.values.get((row, column))
        if not values:
            return None
        factor = 100 if column in self.percent else 1
        spread = factor * statistics.stdev(values) if len(values) > 1 else None
        return factor * statistics.mean(values), spread

    def text(self, row: str, column: str) -> str:
        """A measured cell: mean ± standard deviation."""
        found = self.measured(row, column)
        if found is None:
            return "–"
        mean, spread = found
        digits = 2 if column in self.percent else 3
        text = f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")
        lacking = self.wanted - len(self.values[row, column])
        if lacking:
            text += f" ({self.wanted - lacking} of {self.wanted} seeds)"
        if (row, column) in self.rates:
            text += f" at {self.rates[row, column]:g}"
        return text

    def paper_text(self, row: str, column: str) -> str:
        """The paper's cell, and how far the measured mean is from it."""
        cell = self.paper.get(row, {}).get(column)
        if not cell:
            return ""
        found = self.measured(row, column)
        text = f"{cell[0]:.2f}" + (f" ± {cell[1]:.2f}" if len(cell) > 1 else "")
        return text + (f" ({found[0] - cell[0]:+.2f})" if found is not None else "")

    @property
    def headings(self) -> list[str]:
        """Every column, and where the paper has it, a second one with the paper's."""
        return ["", *(text for column in self.columns for text in self._pair(column, f"{column}, paper"))]

    @property
    def lines(self) -> list[list[str]]:
        """The table's cells as text, a list a row."""
        return [
            [row, *(text for column in self.columns for text in self._pair(column, self.paper_text(row, column), row))]
            for row in self.rows
        ]

    def _pair(self, column: str, of_paper: str, row: str | None = None) -> list[str]:
        ours = column if row is None else self.text(row, column)
        in_paper = any(column in cells for cells in self.paper.values())
        return [ours, of_paper] if in_paper else [ours]


def markdown(results: Results) -> str:
    lines = [f"# {results.title}", "", _row(results.headings), "|" + "---|" * len(results.headings)]
    lines += [_row(line) for line in results.lines]
    return "\n".join([*lines, "", *(f"{note}\n" for note in results.notes)])


def csv_text(results: Results) -> str:
    """One line a cell: numbers, for programs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "column", "mean", "standard_deviation", "seeds", "learning_rate", "paper", "difference"])
    for row in results.rows:
        for column in results.columns:
            found, cell = results.measured(row, column), results.paper.get(row, {}).get(column)
            mean, spread = found if found is not None else (None, None)
            difference = mean - cell[0] if mean is not None and cell else None
            seeds = len(results.values.get((row, column), ()))
            rate = results.rates.get((row, column))
            numbers = [mean, spread, seeds, rate, cell[0] if cell else None, difference]
            writer.writerow([row, column, *("" if item is None else f"{item:.6g}" for item in numbers)])
    return out.getvalue()


def write(results: Results, folder: Path) -> list[Path]:
    """Writes table.md, table.csv and table.png; returns the files."""
    files = {"table.md": markdown(results), "table.csv": csv_text(results)}
    for name, text in files.items():
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    measured = {
        column: {row: found for row in results.rows if (found := results.measured(row, column)) is not None}
        for column in results.columns
    }
    paper = {
        column: {row: cells[column][0] for row, cells in results.paper.items() if column in cells}
        for column in results.columns
    }
    dots(measured, paper, folder / "table.png", title=results.title)
    return [folder / name for name in (*files, "table.png")]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
