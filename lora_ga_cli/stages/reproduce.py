"""Making a table: its cells one by one, then what they say together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_ga_cli.config.tables import Cell, missing_columns
from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.report import console
from lora_ga_cli.report.console import step, warn
from lora_ga_cli.report.figures import loss_curves
from lora_ga_cli.report.results import Place, Results, write
from lora_ga_cli.stages.fair import own_rates
from lora_ga_cli.stages.table_cells import Reproduction, run_cells
from lora_ga_cli.training import metrics


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
        rates, notes = own_rates(job)
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
