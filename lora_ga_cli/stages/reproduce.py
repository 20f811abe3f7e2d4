"""Making a table: its cells one by one through a launcher, then what they say together."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ga_cli.config.compose import launch_each
from lora_ga_cli.config.tables import Cell, Column, Part, Table, cells_of, missing_columns
from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.files import read_json, write_json
from lora_ga_cli.report import console
from lora_ga_cli.report.console import step, warn
from lora_ga_cli.report.figures import loss_curves
from lora_ga_cli.report.provenance import now, provenance
from lora_ga_cli.report.results import Place, Results, write
from lora_ga_cli.stages.fair import at_an_edge, best_rate, next_rates
from lora_ga_cli.training import metrics

Failed = Callable[[Exception], object]
"""Says what went wrong with a cell."""


@dataclass(frozen=True)
class Reproduction:
    """A table that is being made.

    Args:
        scale: ``full`` or ``tiny``.
        further: overrides of every cell, from the command line.
        flags: Hydra's, that choose a launcher.
        folder: where everything of it lies.
    """

    name: str
    table: Table
    part: Part
    scale: str
    further: tuple[str, ...]
    flags: tuple[str, ...]
    folder: Path
    failed: Failed

    def cells(self, part: Part | None = None, rates: Mapping[Place, float] | None = None) -> list[Cell]:
        """All cells, with runs in this table's folder."""
        further = [*self.further, f"output_dir={self.folder / 'runs'}"]
        return cells_of(self.table, part or self.part, further, rates=dict(rates) if rates is not None else None)


def reproduce(job: Reproduction, *, fair: bool) -> bool:
    """Makes a table, as far as it was not made before, and shows it.

    Args:
        fair: train every cell at the row's own best learning rate.

    Returns:
        Whether every cell could be filled.

    Raises:
        InvalidInput: what is wrong with the table or the options, before anything runs.
    """
    for heading, needs in missing_columns(job.part).items():
        warn(f"column {heading} is left out: there is no {needs}")
    _check_scoring(job.cells())  # faults of any cell, before the first trial
    rates: dict[Place, float] = {}
    notes: list[str] = []
    if fair:
        rates, notes = _own_rates(job)
    cells = job.cells(rates=rates or None)
    filled = run_cells(job, cells)
    results = _results(job, cells, filled, rates, notes)
    files = write(results, job.folder)
    if job.table.curves:
        files += _curves(job, cells, filled)
    show(results)
    step("table", ", ".join(str(file) for file in files))
    lacking = {cell.title for cell in cells if cell.key not in filled}
    if lacking:
        warn(f"{len(lacking)} of {len(cells)} cells are not filled; the same command tries them again")
    return not lacking


def _check_scoring(cells: Sequence[Cell]) -> None:
    """Asks every benchmark whether it can score, before anything is trained for it.

    Raises:
        InvalidInput: all that is missing.
    """
    from lora_ga_cli.stages.evaluate import check_benchmark

    faults: dict[Fault, None] = {}
    for column in dict.fromkeys(cell.column for cell in cells if cell.measure == "score"):
        cell = next(cell for cell in cells if cell.column == column)
        try:
            check_benchmark(cell.config)
        except InvalidInput as error:
            for fault in error.faults:
                ways = [fault.hint, "or leave the column out by --columns"]
                faults[Fault(column, fault.what, "; ".join(way for way in ways if way))] = None
    if faults:
        raise InvalidInput(list(faults))


def run_cells(job: Reproduction, cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """Fills cells, those that need most of a gradient first, so that the others can share it.

    Returns:
        What is known of each, by its key; those that failed are missing.
    """
    distinct = {cell.key: cell for cell in cells}
    pending = [cell for cell in distinct.values() if not _file(job, cell).exists()]
    pending.sort(key=lambda cell: -cell.config.largest_rank)
    if len(pending) < len(distinct):
        step("table", f"{len(distinct) - len(pending)} of {len(distinct)} trainings and measurements are there already")
    folder, failed, count = job.folder, job.failed, len(pending)

    def fill_one(number: int) -> None:
        cell = pending[number]
        console.title(f"{number + 1} of {count}: {cell.title}")
        try:
            _fill(cell, folder / "cells" / f"{cell.key}.json")
        except Exception as error:  # the others go on
            failed(error)

    if pending:
        launch_each(count, fill_one, job.flags, str(folder / ".sweep"))
    return {key: read_json(_file(job, cell)) for key, cell in distinct.items() if _file(job, cell).exists()}


def _fill(cell: Cell, file: Path) -> None:
    from lora_ga_cli.stages.cell import fill

    began = time.perf_counter()
    values = fill(cell.config, cell.measure)
    write_json(
        file,
        {
            "cell": cell.title,
            "overrides": cell.overrides,
            "values": values,
            "seconds": round(time.perf_counter() - began, 1),
            "provenance": provenance(),
            "time": now(),
        },
    )


def _file(job: Reproduction, cell: Cell) -> Path:
    return job.folder / "cells" / f"{cell.key}.json"


def _own_rates(job: Reproduction) -> tuple[dict[Place, float], list[str]]:
    """The best learning rate of every row and column, by the loss of rows held out from training, at the first seed."""
    fair, part = job.table.fair, job.part
    if fair is None:
        raise InvalidInput([Fault("command line", f"table {job.name} has no rates to choose from", "leave out --fair")])
    overrides = [*part.overrides, *fair.overrides.get(job.scale, [])]  # type: ignore[call-overload]
    columns = {
        heading: Column(overrides=column.overrides, measure="loss", value="validation_loss", needs=column.needs)
        for heading, column in part.columns.items()
    }
    trial = part.model_copy(update={"overrides": overrides, "columns": columns, "seeds": part.seeds[:1]})
    places = list(dict.fromkeys((cell.row, cell.column) for cell in job.cells(trial)))
    known: dict[Place, dict[float, float]] = {place: {} for place in places}
    while True:
        wanted = {place: next_rates(known[place], fair.rates, fair.most) for place in places}
        if not any(wanted.values()):
            break
        rounds: list[tuple[Place, float, Cell]] = []
        for turn in range(max(len(rates) for rates in wanted.values())):
            chosen = {place: rates[turn] for place, rates in wanted.items() if turn < len(rates)}
            every = {place: chosen.get(place, fair.rates[0]) for place in places}
            for cell in job.cells(trial, every):
                if (cell.row, cell.column) in chosen:
                    rounds.append(((cell.row, cell.column), chosen[cell.row, cell.column], cell))
        filled = run_cells(job, [cell for _, _, cell in rounds])
        for place, rate, cell in rounds:
            loss = filled.get(cell.key, {}).get("values", {}).get("validation_loss")
            known[place][rate] = math.inf if loss is None else float(loss)
    write_json(
        job.folder / "rates.json",
        {
            f"{row} | {column}": {f"{rate:g}": loss for rate, loss in sorted(known[row, column].items())}
            for row, column in places
        },
    )
    edges = [f"{row} ({column})" for row, column in places if at_an_edge(known[row, column])]
    notes = [f"Every row at its own learning rate, the best of {fair.most} at most on rows held out from training."]
    if edges:
        notes.append(f"The best rate may lie further out for {', '.join(edges)}: it was the last one tried.")
    return {place: best_rate(losses) for place, losses in known.items()}, notes


def _results(
    job: Reproduction,
    cells: Sequence[Cell],
    filled: Mapping[str, dict[str, Any]],
    rates: Mapping[Place, float],
    notes: Sequence[str],
) -> Results:
    values: dict[Place, list[float]] = defaultdict(list)
    for cell in cells:
        found = filled.get(cell.key, {}).get("values", {})
        if cell.value in found:
            values[cell.row, cell.column].append(found[cell.value])
    part, table = job.part, job.table
    tiny = job.scale == "tiny"
    told = list(notes)
    if tiny:
        told.insert(0, f"TINY SCALE, not the paper's: {part.note}")
    if table.paper and not tiny:
        told.append(f"Paper: {table.source}. {table.provenance}")
    return Results(
        title=table.title + (" (tiny scale)" if tiny else "") + (", own learning rates" if rates else ""),
        rows=[row for row in table.rows if row not in part.leave_out],
        columns=[name for name in part.columns if name not in missing_columns(part)],
        values=values,
        wanted=len(part.seeds),
        percent=[name for name, column in part.columns.items() if column.percent],
        paper={} if tiny else table.paper,
        notes=told,
        rates=rates,
    )


def show(results: Results) -> None:
    """Prints a table."""
    from lora_ga_cli.report.tables import print_table

    console.say()
    console.out.print(f"[bold]{results.title}[/]")
    print_table(results.headings, results.lines, results.headings[1:])
    for note in results.notes:
        console.say(note)
    console.say()


def _curves(job: Reproduction, cells: Sequence[Cell], filled: Mapping[str, dict[str, Any]]) -> list[Path]:
    """A picture of loss curves for every column: each row's first seed."""
    files = []
    for column in dict.fromkeys(cell.column for cell in cells):
        curves = {}
        for cell in cells:
            run = filled.get(cell.key, {}).get("values", {}).get("run")
            if cell.column == column and cell.row not in curves and run is not None:
                curves[cell.row] = metrics.read(Path(run) / "metrics.jsonl")
        if curves:
            name = "".join(sign if sign.isalnum() else "_" for sign in column.lower())
            files.append(job.folder / f"loss_{name}.png")
            tiny = ", tiny scale" if job.scale == "tiny" else ""
            loss_curves(curves, files[-1], title=f"{column}{tiny}")
    return files


def planned(cells: Sequence[Cell]) -> dict[Place, list[Cell]]:
    """Cells by row and column."""
    places: dict[Place, list[Cell]] = defaultdict(list)
    for cell in cells:
        places[cell.row, cell.column].append(cell)
    return places
