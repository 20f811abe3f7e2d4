"""Tables that can be made again: YAML files of rows, columns and seeds, each cell of which is a configuration.

A file lies in ``recipes/tables/``, or in ``tables/`` of a folder of the user's own. Every row, column and scale gives
overrides as one would type them; a cell's configuration is made of all of them, in the order scale, row, column,
command line, and last what a search for learning rates sets.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from lora_ga_cli.config.locations import Locations, shown
from lora_ga_cli.config.safety import unsafe_options
from lora_ga_cli.config.schema import Section
from lora_ga_cli.errors import Fault, InvalidInput, suggest
from lora_ga_cli.files import resolve_path

Overrides = list[str]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
TableScale = Literal["full", "tiny"]


class Column(Section):
    """What is measured of every row."""

    overrides: Overrides = Field(default_factory=list)
    """Of the training."""
    measure: Literal["score", "loss", "coverage", "similarity"] = "score"
    """``score``: a value of `loraga eval`. ``loss``: of the training. ``coverage``, ``similarity``: of the gradient."""
    value: str
    """Name of the value."""
    percent: bool = True
    """Show it times a hundred."""
    needs: str | None = None
    """A file or folder without which the column is left out."""


class Fair(Section):
    """How every row finds a learning rate of its own."""

    rates: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3)]
    """The grid it begins with, evenly spaced in its logarithm; it widens while the best rate is at an edge."""
    most: Annotated[int, Field(ge=3)] = 8
    """Rates that are tried at most."""
    held_out: Annotated[Overrides, Field(min_length=1)]
    """Of the trials: rows to choose on that the scores do not come from. No other override replaces these."""

    @model_validator(mode="after")
    def _is_a_grid(self) -> Fair:
        steps = [larger / smaller for smaller, larger in itertools.pairwise(self.rates)]
        if min(steps) <= 1 or max(steps) > 1.01 * min(steps):
            raise ValueError("rates: they must ascend, each the same number of times the one before")
        return self


class Part(Section):
    """A table at one scale."""

    overrides: Overrides
    """Of all cells."""
    columns: dict[str, Column]
    """By heading."""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    """Each cell is the mean over them."""
    leave_out: list[str] = Field(default_factory=list)
    """Rows that this scale does not have."""
    fair: Fair | None = None
    title: str = ""
    """In place of the table's, which speaks of the other scale."""
    note: str = ""
    """What a reader has to know of this scale."""


class Table(Section):
    """A table of the paper, or of one's own."""

    title: str
    rows: dict[str, Overrides]
    """By heading."""
    full: Part
    tiny: Part | None = None
    paper: dict[str, dict[str, list[float]]] = Field(default_factory=dict)
    """The paper's mean and standard deviation, by row and column."""
    source: str = ""
    """Where the paper's values stand."""
    provenance: str = ""
    """How they came here."""
    curves: bool = True
    """Draw the loss curves of the rows."""

    @model_validator(mode="after")
    def _paper_fits(self) -> Table:
        rows = [row for row in self.paper if row not in self.rows]
        columns = [name for cells in self.paper.values() for name in cells if name not in self.full.columns]
        if rows or columns:
            raise ValueError(f"paper: no such row or column: {', '.join(map(repr, dict.fromkeys(rows + columns)))}")
        return self


def all_tables(own: Path | None = None) -> dict[str, Path]:
    """The files of tables by name; the user's own win."""
    folders = [Locations().recipes / "tables", *([own / "tables"] if own is not None else [])]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml")) if file.is_file()}


def find_table(name: str, own: Path | None = None) -> Table:
    """A table by name.

    Raises:
        InvalidInput: no such table, or a file that is none.
    """
    tables = all_tables(own)
    if name not in tables:
        raise InvalidInput([Fault("command line", f"no table {name!r}", suggest(name, tables))])
    return read_table(tables[name])


def read_table(file: Path) -> Table:
    """A table as a file describes it, which may do no more than a recipe.

    Raises:
        InvalidInput: everything that is wrong with the file.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise InvalidInput([Fault(shown(file), f"not YAML: {str(error).splitlines()[0]}")]) from error
    try:
        table = Table.model_validate(content)
    except ValidationError as error:
        faults = [
            Fault(f"{shown(file)}: {'.'.join(map(str, item['loc']))}", item["msg"].removeprefix("Value error, "))
            for item in error.errors()
        ]
        raise InvalidInput(faults) from error
    shipped = file.is_relative_to(Locations().recipes)
    faults = unsafe_options(_options(table), shown(file), reads_anywhere=shipped)
    if faults:
        raise InvalidInput(faults)
    return table


def part_of(table: Table, name: str, scale: str) -> Part:
    """A table at one scale.

    Raises:
        InvalidInput: the table has no such scale.
    """
    part = table.full if scale == "full" else table.tiny
    if part is None:
        raise InvalidInput([Fault("command line", f"table {name} has no tiny form", "--scale full")])
    return part


def missing_columns(part: Part) -> dict[str, str]:
    """Columns that cannot be filled here, and what they need."""
    return {
        name: column.needs
        for name, column in part.columns.items()
        if column.needs is not None and not resolve_path(column.needs).exists()
    }


def _options(table: Table) -> list[str]:
    parts = [part for part in (table.full, table.tiny) if part is not None]
    found = [option for options in table.rows.values() for option in options]
    found += [option for part in parts for option in part.overrides]
    found += [option for part in parts for column in part.columns.values() for option in column.overrides]
    found += [option for part in parts if part.fair is not None for option in part.fair.held_out]
    return found


def only(table: Table, part: Part, rows: Sequence[str], columns: Sequence[str]) -> tuple[Table, Part]:
    """A table with some of its rows and columns; with all of them where none are named.

    Raises:
        InvalidInput: a row or column that it does not have.
    """
    faults = [Fault("--rows", f"no row {name!r}", suggest(name, table.rows)) for name in rows if name not in table.rows]
    for name in columns:
        if name not in part.columns:
            faults.append(Fault("--columns", f"no column {name!r}", suggest(name, part.columns)))
    if faults:
        raise InvalidInput(faults)
    kept = {name: options for name, options in table.rows.items() if name in rows or not rows}
    shown_columns = {name: column for name, column in part.columns.items() if name in columns or not columns}
    return table.model_copy(update={"rows": kept}), part.model_copy(update={"columns": shown_columns})


def describe(file: Path) -> dict[str, Any]:
    """For a list of tables: title, number of rows, columns, and whether it can be made tiny, and fair."""
    table = read_table(file)
    return {
        "title": table.title,
        "rows": len(table.rows),
        "columns": list(table.full.columns),
        "tiny": table.tiny is not None,
        "fair": table.full.fair is not None,
    }
