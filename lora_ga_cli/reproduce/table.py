"""What a table's file contains: rows, columns and seeds. Each cell is a configuration.

Every row, column and scale gives overrides as one would type them. The overrides of a cell are those of its scale, row
and column, then those of the command line, and last those that a search for learning rates sets.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lora_ga_cli.config.schema import Section
from lora_ga_cli.errors import Fault, InvalidInput, suggest
from lora_ga_cli.paths import resolve_path
from lora_ga_cli.registry import MEASURES
from lora_ga_cli.reproduce.formats import FormatName

Overrides = list[str]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
TableScale = Literal["full", "tiny"]
RowColumn = tuple[str, str]
"""The heading of a row and the heading of a column."""


class Column(Section):
    """What is measured of every row."""

    overrides: Overrides = Field(default_factory=list)
    """Overrides of every cell in this column."""
    measure: str = "score"
    """What is computed: ``score``, ``loss``, ``coverage``, ``similarity``, or another registered measure."""
    value: str
    """Which of the measure's values is shown."""
    format: FormatName = "percent"
    """How values are shown: ``percent`` (times a hundred), ``number``, ``bytes``, ``seconds`` or ``count``."""
    needs: str | None = None
    """A file or folder without which the column is left out."""

    @field_validator("measure")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        if MEASURES.find(name) is None:
            raise ValueError(f"no measure {name!r}; {MEASURES.hint_for(name)}")
        return name


class TuneLr(Section):
    """How the best learning rate of every row is searched for."""

    rates: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3)]
    """The first rates to try, evenly spaced on a logarithmic scale. The grid is extended while the best rate is its
    smallest or largest."""
    max_rates: Annotated[int, Field(ge=3)] = 8
    """How many rates are tried at most for one row and column."""
    refine: Annotated[float, Field(gt=1)] | None = None
    """Once the best rate lies inside the grid, the rates a factor above and below it are tried too, until the best rate
    has neighbors that near. ``max_rates`` counts them all."""
    held_out: Annotated[Overrides, Field(min_length=1)]
    """Overrides of the trials. They hold rows out for choosing a rate, which must not be the rows that are scored.
    No other override replaces these."""

    @model_validator(mode="after")
    def _is_a_grid(self) -> TuneLr:
        steps = [larger / smaller for smaller, larger in itertools.pairwise(self.rates)]
        if min(steps) <= 1 or max(steps) > 1.01 * min(steps):
            raise ValueError("rates: they must ascend, each the same multiple of the one before")
        if self.refine is not None and self.refine >= steps[0]:
            raise ValueError(f"refine={self.refine:g}: it must be below the factor between two rates, {steps[0]:g}")
        return self


class Leaders(Section):
    """The best rows, which are measured with more seeds once every row was measured with the seeds of the table."""

    count: Annotated[int, Field(ge=1)]
    """How many rows."""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    """The seeds that are added."""
    better: Literal["lower", "higher"] = "lower"
    """Which values of the table's first column are the best."""


class Part(Section):
    """A table at one scale."""

    overrides: Overrides
    """Overrides of every cell."""
    columns: dict[str, Column]
    """Columns by heading."""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    """Each cell shows the mean over these seeds."""
    leaders: Leaders | None = None
    """Measure the best rows with more seeds. It has no effect where ``seed=`` or ``--rows`` chooses seeds or rows, and
    where the first column is left out."""
    leave_out: list[str] = Field(default_factory=list)
    """Rows that this scale does not have."""
    tune_lr: TuneLr | None = None
    """How ``--tune-lr`` chooses a learning rate for every row. Without it, the table cannot be made with that flag."""
    title: str = ""
    """A title for this scale, if the table's title does not fit."""
    note: str = ""
    """What a reader has to know about this scale."""

    @model_validator(mode="after")
    def _leaders_have_other_seeds(self) -> Part:
        if self.leaders is not None and (twice := set(self.leaders.seeds) & set(self.seeds)):
            raise ValueError(f"leaders.seeds: every row has seed {min(twice)} already, give others")
        return self


class Table(Section):
    """A table of the paper, or one of the user's."""

    title: str
    rows: dict[str, Overrides]
    """The overrides of every row, by heading."""
    full: Part
    tiny: Part | None = None
    paper: dict[str, dict[str, list[float]]] = Field(default_factory=dict)
    """The paper's mean and standard deviation, by row and column."""
    source: str = ""
    """Where the paper's values are printed."""
    provenance: str = ""
    """How the paper's values were copied."""
    curves: bool = True
    """Draw the loss curves of the rows."""

    @model_validator(mode="after")
    def _paper_fits(self) -> Table:
        rows = [row for row in self.paper if row not in self.rows]
        columns = [name for cells in self.paper.values() for name in cells if name not in self.full.columns]
        if rows or columns:
            raise ValueError(f"paper: no such row or column: {', '.join(map(repr, dict.fromkeys(rows + columns)))}")
        return self


def part_of(table: Table, name: str, scale: str) -> Part:
    """A table at one scale.

    Raises:
        InvalidInput: the table does not have this scale.
    """
    part = table.full if scale == "full" else table.tiny
    if part is None:
        raise InvalidInput([Fault("command line", f"table {name} has no tiny scale", "--scale full")])
    return part


def missing_columns(part: Part) -> dict[str, str]:
    """Columns that cannot be filled on this machine, and the file or folder that each one needs."""
    return {
        name: column.needs
        for name, column in part.columns.items()
        if column.needs is not None and not resolve_path(column.needs).exists()
    }


def same_trainings(part: Part) -> dict[str, str]:
    """For each column, the first one with the same overrides; both show values of the same trainings."""
    first: dict[tuple[str | None, ...], str] = {}
    return {name: first.setdefault((column.needs, *column.overrides), name) for name, column in part.columns.items()}


def select(table: Table, part: Part, rows: Sequence[str], columns: Sequence[str]) -> tuple[Table, Part]:
    """A table with some of its rows and columns. An empty selection means all of them.

    Raises:
        InvalidInput: the table does not have such a row or column.
    """
    faults = [Fault("--rows", f"no row {name!r}", suggest(name, table.rows)) for name in rows if name not in table.rows]
    for name in columns:
        if name not in part.columns:
            faults.append(Fault("--columns", f"no column {name!r}", suggest(name, part.columns)))
    if faults:
        raise InvalidInput(faults)
    selected_rows = {name: options for name, options in table.rows.items() if name in rows or not rows}
    selected_columns = {name: column for name, column in part.columns.items() if name in columns or not columns}
    changes: dict[str, object] = {"columns": selected_columns}
    if rows or next(iter(part.columns)) not in selected_columns:
        # the best of some rows are not the best of the table, and the first column says which are
        changes["leaders"] = None
    return table.model_copy(update={"rows": selected_rows}), part.model_copy(update=changes)
