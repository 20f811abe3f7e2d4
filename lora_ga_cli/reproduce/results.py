"""A table's results: on the terminal, as Markdown, as CSV and as a picture."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_ga_cli.files import atomic_file
from lora_ga_cli.json_files import text_of_json
from lora_ga_cli.report.figures import dots
from lora_ga_cli.reproduce.formats import FORMATS, Format, FormatName
from lora_ga_cli.reproduce.table import RowColumn


@dataclass(frozen=True)
class Results:
    """Measured values beside the values of the paper.

    Args:
        values: by row and column, one value of every seed that finished.
        seeds: how many seeds the cells of each row should have. Where rows differ, the table has a column with it.
        formats: how each column is shown.
        paper: the paper's mean and standard deviation, by row and column.
        notes: what a reader has to know, a line each.
        rates: the learning rate of each cell, if every row was trained at its own.
        same_trainings: columns that show another value of the trainings of an earlier column, whose learning rates are
            not shown again.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Mapping[RowColumn, Sequence[float]]
    seeds: Mapping[str, int]
    formats: Mapping[str, FormatName]
    paper: Mapping[str, Mapping[str, Sequence[float]]]
    notes: Sequence[str]
    rates: Mapping[RowColumn, float]
    same_trainings: Collection[str] = ()

    def format_of(self, column: str) -> Format:
        """How a column is shown."""
        return FORMATS[self.formats[column]]

    def measured(self, row: str, column: str) -> tuple[float, float | None] | None:
        """Mean and sample standard deviation over seeds, as they are shown. One seed has no deviation."""
        values = self.values.get((row, column))
        if not values:
            return None
        factor = self.format_of(column).factor
        spread = factor * statistics.stdev(values) if len(values) > 1 else None
        return factor * statistics.mean(values), spread

    def text(self, row: str, column: str) -> str:
        """A measured cell: mean ± standard deviation."""
        measured = self.measured(row, column)
        if measured is None:
            return "–"
        text = self.format_of(column).cell(*measured)
        finished = len(self.values[row, column])
        if finished < self.seeds[row]:
            text += f" ({finished} of {self.seeds[row]} seeds)"
        if (row, column) in self.rates and column not in self.same_trainings:
            text += f" at {self.rates[row, column]:g}"
        return text

    def paper_text(self, row: str, column: str) -> str:
        """The paper's cell, and the difference of the measured mean to it."""
        cell = self.paper.get(row, {}).get(column)
        if not cell:
            return ""
        measured = self.measured(row, column)
        text = f"{cell[0]:.2f}" + (f" ± {cell[1]:.2f}" if len(cell) > 1 else "")
        return text + (f" ({measured[0] - cell[0]:+.2f})" if measured is not None else "")

    @property
    def headings(self) -> list[str]:
        """Every column, followed by one with the paper's values if the paper has the column."""
        seeds = ["seeds"] if self._rows_differ_in_seeds else []
        return [
            "",
            *seeds,
            *(text for column in self.columns for text in self._pair(column, column, f"{column}, paper")),
        ]

    @property
    def lines(self) -> list[list[str]]:
        """The cells as text, one list for each row."""
        return [
            [
                row,
                *([str(self.seeds[row])] if self._rows_differ_in_seeds else []),
                *(
                    text
                    for column in self.columns
                    for text in self._pair(column, self.text(row, column), self.paper_text(row, column))
                ),
            ]
            for row in self.rows
        ]

    @property
    def _rows_differ_in_seeds(self) -> bool:
        return len(set(self.seeds.values())) > 1

    def _pair(self, column: str, measured: str, paper: str) -> list[str]:
        return [measured, paper] if any(column in cells for cells in self.paper.values()) else [measured]


def markdown(results: Results) -> str:
    """The table as Markdown, with its notes."""
    lines = [f"# {results.title}", "", _row(results.headings), "|" + "---|" * len(results.headings)]
    lines += [_row(line) for line in results.lines]
    return "\n".join([*lines, "", *(f"{note}\n" for note in results.notes)])


def csv_text(results: Results) -> str:
    """The table as CSV, one line for each cell, for programs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "column", "mean", "standard_deviation", "seeds", "learning_rate", "paper", "difference"])
    for row in results.rows:
        for column in results.columns:
            cell = results.paper.get(row, {}).get(column)
            mean, spread = results.measured(row, column) or (None, None)
            difference = mean - cell[0] if mean is not None and cell else None
            seeds = len(results.values.get((row, column), ()))
            rate = results.rates.get((row, column))
            fields = [mean, spread, seeds, rate, cell[0] if cell else None, difference]
            writer.writerow([row, column, *("" if item is None else f"{item:.6g}" for item in fields)])
    return out.getvalue()


def json_text(results: Results, runs: Sequence[str]) -> str:
    """The table as JSON: the text of its cells, and the folders of its runs, as seen from its own."""
    content = {
        "format": 1,
        "title": results.title,
        "headings": results.headings,
        "rows": results.lines,
        "notes": list(results.notes),
        "runs": list(runs),
    }
    return text_of_json(content, digest=True)


def write(results: Results, folder: Path, runs: Sequence[str] = ()) -> list[Path]:
    """Writes table.md, table.csv, table.json and table.png; returns their paths.

    Args:
        runs: folders of the runs of its cells, as seen from ``folder``.
    """
    texts = (markdown(results), csv_text(results), json_text(results, runs))
    files = dict(zip(("table.md", "table.csv", "table.json"), texts, strict=True))
    for name, text in files.items():
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    measured = {
        column: {row: value for row in results.rows if (value := results.measured(row, column)) is not None}
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
