"""Making a table: its cells are measured, then shown together."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from lora_ga_cli.errors import Fault, InvalidInput, UserError, suggest
from lora_ga_cli.registry import MEASURES
from lora_ga_cli.report import console
from lora_ga_cli.report.console import step, warn
from lora_ga_cli.report.figures import loss_curves
from lora_ga_cli.report.tables import print_table
from lora_ga_cli.reproduce.cells import Cell
from lora_ga_cli.reproduce.fill import TableJob, fill_cells
from lora_ga_cli.reproduce.leaders import leader_cells, leaders_of
from lora_ga_cli.reproduce.results import Results, write
from lora_ga_cli.reproduce.table import RowColumn, missing_columns, same_trainings
from lora_ga_cli.reproduce.tune_lr import check_tune_lr, find_rates
from lora_ga_cli.training.run_files import points_of
from lora_ga_cli.training.run_folder import RunFolder

NAMED = 8
"""How many missing cells are named."""


def check_jobs(jobs: Sequence[TableJob]) -> None:
    """Checks all cells of all tables, and what their measures need, before the first table is made.

    Raises:
        InvalidInput: everything that is wrong.
    """
    faults: list[Fault] = []
    for job in jobs:
        try:
            cells = job.in_part(job.cells())
            done = job.stored(cells)
            _check_measures([cell for cell in cells if cell.key not in done])
            if job.tune_lr:
                check_tune_lr(job)
        except InvalidInput as error:
            faults += error.faults
    if faults:
        raise InvalidInput(list(dict.fromkeys(faults)))


def make_table(job: TableJob) -> dict[str, Any]:
    """Makes a table that was checked, and shows it. Cells that were measured before are kept.

    Returns:
        ``complete``: whether every cell has a value; ``cells``: the mean of every one, by row and column; ``files``.
    """
    for heading, needs in missing_columns(job.part).items():
        warn(f"column {heading} is left out: there is no {needs}")
    rates, notes = find_rates(job) if job.tune_lr else (None, [])
    cells, every = job.cells(rates=rates), job.cells()
    own, own_total = job.in_part(cells), len(job.in_part(every))
    if job.shard is not None:
        step("table", f"part {job.shard}: {own_total} of {len(every)} cells")
    filled = fill_cells(job, own) | job.stored(cells)
    total = len(every)
    if (leaders := leaders_of(job)) is not None:
        repeated = leader_cells(job, leaders, cells, filled, rates)
        filled |= fill_cells(job, repeated)
        cells, own, own_total = cells + repeated, own + repeated, own_total + len(repeated)
        total += len(repeated)
    for message in _missing_values(cells, filled):
        warn(message)
    results = _results(job, cells, filled, rates or {}, notes)
    files = write(results, job.folder, _runs(job, cells, filled))
    if job.table.curves:
        files += _draw_curves(job, cells, filled) + _draw_measures(job, cells, filled)
    show(results)
    step("table", ", ".join(str(file) for file in files))
    empty = own_total - sum(cell.key in filled for cell in own)
    if empty:
        warn(f"{empty} of {own_total} cells are not filled; run the same command again to retry them")
    if job.shard is not None:
        _say_missing(job, every, {cell.place for cell in cells if cell.key in filled})
    values = {
        row: {column: value[0] for column in results.columns if (value := results.measured(row, column)) is not None}
        for row in results.rows
    }
    return {"complete": not empty, "cells": values, "files": files}


def _say_missing(job: TableJob, every: Sequence[Cell], there: Collection[tuple[str, str, int]]) -> None:
    """Names the cells of other parts that are not there yet, and what the parts leave out.

    Args:
        every: all cells of the table.
        there: row, column and seed of those that have a value.
    """
    own = {cell.place for cell in job.in_part(every)}
    away = [cell.title for cell in every if cell.place not in own and cell.place not in there]
    if away:
        more = f"; and {len(away) - NAMED} more" if len(away) > NAMED else ""
        step(
            "table",
            f"{len(away)} cells of other parts are not in {job.output_dir} yet: {'; '.join(away[:NAMED])}{more}",
        )
    if job.part.leaders is not None and leaders_of(replace(job, shard=None)) is not None:
        step("table", "the best rows get more seeds when all parts are there, by this command without --shard")


def show(results: Results) -> None:
    """Prints a table."""
    console.say()
    console.out.print(f"[bold]{escape(results.title)}[/]")
    print_table(results.headings, results.lines, results.headings[1:])
    for note in results.notes:
        console.say(note)
    console.say()


def _check_measures(cells: Sequence[Cell]) -> None:
    """Checks that everything the cells' measures need is available, before anything is trained.

    Raises:
        InvalidInput: everything that is missing.
    """
    faults: dict[Fault, None] = {}
    distinct = {(cell.column, cell.measure, _what_is_checked(cell)): cell for cell in cells}
    for cell in distinct.values():
        try:
            cell.measure_class().check(cell.config)
        except InvalidInput as error:
            for fault in error.faults:
                ways = [fault.hint, "or leave the column out with --columns"]
                faults[Fault(cell.column, fault.what, "; ".join(way for way in ways if way))] = None
        except UserError as error:
            faults[Fault(cell.column, str(error))] = None
    if faults:
        raise InvalidInput(list(faults))


def _what_is_checked(cell: Cell) -> str:
    """What the check of a cell's measure depends on."""
    return str(cell.config.eval.model_dump_json()) if cell.measure_class.needs_model else cell.key


def _runs(job: TableJob, cells: Sequence[Cell], filled: Mapping[str, dict[str, Any]]) -> list[str]:
    """The folders of the cells' runs, as seen from the table's."""
    names = [filled.get(cell.key, {}).get("values", {}).get("run") for cell in cells]
    return [os.path.relpath(job.output_dir / name, job.folder) for name in dict.fromkeys(names) if name is not None]


def _missing_values(cells: Sequence[Cell], filled: Mapping[str, dict[str, Any]]) -> list[str]:
    """A message for every column whose measure did not give the value that the column shows."""
    messages: dict[str, None] = {}
    for cell in cells:
        values = filled[cell.key]["values"] if cell.key in filled else {cell.value: None}
        if cell.value not in values:
            hint = suggest(cell.value, (name for name in values if name != "run"))
            messages[f"column {cell.column}: the measure {cell.measure} gave no value {cell.value!r} ({hint})"] = None
    return list(messages)


def _results(
    job: TableJob,
    cells: Sequence[Cell],
    filled: Mapping[str, dict[str, Any]],
    rates: Mapping[RowColumn, float],
    notes: Sequence[str],
) -> Results:
    part, table = job.part, job.table
    is_tiny = job.scale == "tiny"
    values: dict[RowColumn, list[float]] = defaultdict(list)
    of_leaders = set(leaders.seeds) if (leaders := leaders_of(job)) is not None else set()
    of_all = {cell.seed for cell in cells} - of_leaders
    seeds = {row: set(of_all) for row in table.rows if row not in part.leave_out}
    for cell in cells:
        seeds[cell.row].add(cell.seed)
        value = filled.get(cell.key, {}).get("values", {}).get(cell.value)
        if value is not None:
            values[cell.position].append(value)
    return Results(
        title=job.title + (", each row at its own best learning rate" if job.tune_lr else ""),
        rows=list(seeds),
        columns=[name for name in part.columns if name not in missing_columns(part)],
        values=values,
        seeds={row: len(of_row) for row, of_row in seeds.items()},
        formats={name: column.format for name, column in part.columns.items()},
        paper={} if is_tiny else table.paper,
        notes=_notes(job, notes),
        rates=rates,
        same_trainings=[name for name, first in same_trainings(part).items() if name != first],
    )


def _notes(job: TableJob, notes: Sequence[str]) -> list[str]:
    """What the reader of a table has to know, a line each."""
    is_tiny = job.scale == "tiny"
    lines = [f"TINY SCALE, not the paper's: {job.part.note}"] if is_tiny else []
    lines += notes
    if (leaders := leaders_of(job)) is not None:
        lines.append(
            f"The best {leaders.count} rows by {next(iter(job.part.columns))} ({leaders.better} is better) were also "
            f"measured with seed {', '.join(map(str, leaders.seeds))}."
        )
    changed = [option for option in job.extra_overrides if not option.startswith("seed=")]
    if changed:
        lines.append(f"Changed on the command line: {', '.join(changed)}.")
    if job.part.note and not is_tiny:
        lines.append(job.part.note)
    if job.table.paper and not is_tiny:
        lines.append(f"Paper: {job.table.source}. {job.table.provenance}")
    return lines


def _draw_curves(job: TableJob, cells: Sequence[Cell], filled: Mapping[str, dict[str, Any]]) -> list[Path]:
    """Draws the loss curves of each row's first seed, one picture for every column whose runs are its own."""
    drawn: dict[frozenset[str], str] = {}
    files = []
    for column in dict.fromkeys(cell.column for cell in cells):
        runs: dict[str, str] = {}
        for cell in cells:
            run = filled.get(cell.key, {}).get("values", {}).get("run")
            if cell.column == column and run is not None:
                runs.setdefault(cell.row, run)
        if not runs or drawn.setdefault(frozenset(runs.values()), column) != column:
            continue
        curves = {row: points_of(RunFolder(job.output_dir / run)) for row, run in runs.items()}
        name = "".join(sign if sign.isalnum() else "_" for sign in column.lower())
        files.append(job.folder / f"loss_{name}.png")
        loss_curves(curves, files[-1], title=f"{job.title}: {column}")
    return files


def _draw_measures(job: TableJob, cells: Sequence[Cell], filled: Mapping[str, dict[str, Any]]) -> list[Path]:
    """The figures that the measures themselves draw."""
    rows: dict[str, dict[str, tuple[Any, dict[str, Any]]]] = defaultdict(dict)
    for cell in cells:
        if cell.key in filled:
            rows[cell.measure].setdefault(cell.row, (cell.config, filled[cell.key]["values"]))
    return [file for name, of_rows in rows.items() for file in MEASURES[name]().draw(of_rows, job.folder, job.title)]
