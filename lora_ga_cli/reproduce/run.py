"""Making a table: its cells one by one, then what they say together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_ga_cli.errors import Fault, InvalidInput, UserError
from lora_ga_cli.report import console
from lora_ga_cli.report.console import step, warn
from lora_ga_cli.report.figures import loss_curves
from lora_ga_cli.reproduce.cells import Cell
from lora_ga_cli.reproduce.fill import Reproduction, run_cells
from lora_ga_cli.reproduce.results import Place, Results, write
from lora_ga_cli.reproduce.table import missing_columns
from lora_ga_cli.reproduce.tune_lr import check_fair, own_rates
from lora_ga_cli.training import metrics
from lora_ga_cli.training.run_folder import RunFolder


def check_tables(jobs: Sequence[Reproduction]) -> None:
    """Checks all cells of all tables, and what their benchmarks need, before the first one is made.

    Raises:
        InvalidInput: everything that is wrong.
    """
    faults: list[Fault] = []
    for job in jobs:
        try:
            cells = job.cells()
            done = job.known(cells)
            _check_scoring([cell for cell in cells if cell.key not in done])
            if job.fair:
                check_fair(job)
        except InvalidInput as error:
            faults += error.faults
    if faults:
        raise InvalidInput(list(dict.fromkeys(faults)))


def reproduce(job: Reproduction) -> bool:
    """Makes a table that was checked, as far as it was not made before, and shows it.

    Returns:
        Whether every cell could be filled.
    """
    for heading, needs in missing_columns(job.part).items():
        warn(f"column {heading} is left out: there is no {needs}")
    rates, notes = own_rates(job) if job.fair else (None, [])
    cells = job.cells(rates=rates)
    filled = run_cells(job, cells)
    results = _results(job, cells, filled, rates or {}, notes)
    files = write(results, job.folder)
    if job.table.curves:
        files += _curves(job, cells, filled)
    show(results)
    step("table", ", ".join(str(file) for file in files))
    wanted = job.cells()
    lacking = len(wanted) - sum(cell.key in filled for cell in cells)
    if lacking:
        warn(f"{lacking} of {len(wanted)} cells are not filled; the same command tries them again")
    return not lacking


def _check_scoring(cells: Sequence[Cell]) -> None:
    """Asks every benchmark whether it can score, before anything is trained for it.

    Raises:
        InvalidInput: all that is missing.
    """
    from lora_ga_cli.stages.evaluate import check_evaluation

    faults: dict[Fault, None] = {}
    distinct = {(cell.column, cell.config.eval.model_dump_json()): cell for cell in cells if cell.measure == "score"}
    for (column, _), cell in distinct.items():
        try:
            check_evaluation(cell.config)
        except InvalidInput as error:
            for fault in error.faults:
                ways = [fault.hint, "or leave the column out by --columns"]
                faults[Fault(column, fault.what, "; ".join(way for way in ways if way))] = None
        except UserError as error:
            faults[Fault(column, str(error))] = None
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
    changed = [option for option in job.further if not option.startswith("seed=")]
    if changed:
        told.append(f"Changed on the command line: {', '.join(changed)}.")
    if table.paper and not tiny:
        told.append(f"Paper: {table.source}. {table.provenance}")
    return Results(
        title=job.title + (", own learning rates" if job.fair else ""),
        rows=[row for row in table.rows if row not in part.leave_out],
        columns=[name for name in part.columns if name not in missing_columns(part)],
        values=values,
        wanted=len({cell.seed for cell in cells}),
        percent=[name for name, column in part.columns.items() if column.percent],
        paper={} if tiny else table.paper,
        notes=told,
        rates=rates,
    )


def show(results: Results) -> None:
    """Prints a table."""
    from rich.markup import escape

    from lora_ga_cli.report.tables import print_table

    console.say()
    console.out.print(f"[bold]{escape(results.title)}[/]")
    print_table(results.headings, results.lines, results.headings[1:])
    for note in results.notes:
        console.say(note)
    console.say()


def _curves(job: Reproduction, cells: Sequence[Cell], filled: Mapping[str, dict[str, Any]]) -> list[Path]:
    """A picture of loss curves, each row's first seed, for every column that has runs of its own."""
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
        curves = {row: metrics.read(RunFolder(job.home / run).metrics_file) for row, run in runs.items()}
        name = "".join(sign if sign.isalnum() else "_" for sign in column.lower())
        files.append(job.folder / f"loss_{name}.png")
        loss_curves(curves, files[-1], title=f"{job.title}: {column}")
    return files
