"""The search for the best learning rate of every row: a grid that grows until the best rate lies inside it, and is then
refined around that rate, if the table says so."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from filelock import FileLock

from lora_ga_cli.errors import DamagedFile, Fault, InvalidInput
from lora_ga_cli.json_files import read_json, write_json
from lora_ga_cli.report.console import warn
from lora_ga_cli.reproduce.cells import Cell, key_of
from lora_ga_cli.reproduce.fill import TableJob, fill_cells
from lora_ga_cli.reproduce.table import Column, RowColumn, TuneLr, same_trainings

RATES = "rates.json"
HOLD_OUT = "dataset.validation_fraction=0.05"


def find_rates(job: TableJob) -> tuple[dict[RowColumn, float], list[str]]:
    """Finds the best learning rate of every row and column, by the loss of held-out rows at the first seed.

    A part of a table searches the rates that its cells need; seeds of one row may be in several parts.

    Returns:
        The rates, also those that other parts have found, and notes for the reader of the table. Where all trials
        failed, there is no rate.

    Raises:
        InvalidInput: see `check_tune_lr`.
    """
    tune_lr = check_tune_lr(job)
    first, own = same_trainings(job.part), job.in_part(job.cells())
    needed = {(cell.row, first[cell.column]) for cell in own}
    keys = {position: key for position, key in _trial_keys(job, tune_lr).items() if position in needed}
    losses: dict[RowColumn, dict[float, float]] = {position: {} for position in keys}
    while True:
        wanted = {position: next_rates(of_cell, tune_lr) for position, of_cell in losses.items()}
        if not any(wanted.values()):
            break
        for position, new in _try(job, tune_lr, wanted).items():
            losses[position] |= new
    best = _best(losses)
    searches = [
        {
            "row": row,
            "column": column,
            "trial": keys[row, column],
            "best": best.get((row, column)),
            "losses": _for_json(losses[row, column]),
        }
        for row, column in keys
    ]
    _write_searches(job, searches)
    of_others = stored_rates(job, tune_lr) if job.shard is not None else {}
    return of_others | _for_all_columns(job, best), _notes(job, tune_lr, losses)


def stored_rates(job: TableJob, tune_lr: TuneLr) -> dict[RowColumn, float]:
    """The best rates that earlier searches with the same trials found, of the rows and columns that were searched."""
    keys = _trial_keys(job, tune_lr)
    return _for_all_columns(
        job,
        {
            (item["row"], item["column"]): item["best"]
            for item in _read_searches(job)
            if item["best"] is not None and keys.get((item["row"], item["column"])) == item["trial"]
        },
    )


def _read_searches(job: TableJob) -> list[dict[str, Any]]:
    file = job.folder / RATES
    try:
        content = read_json(file) if file.exists() else {}
    except DamagedFile as error:
        warn(f"{error}; the search is done again")
        content = {}
    return [item for item in content.get("tried", []) if "trial" in item]


def _write_searches(job: TableJob, searches: Sequence[dict[str, Any]]) -> None:
    """Writes searches into the table's file, beside those of other rows and columns, which other processes may have
    made: ``--rows`` and ``--columns`` select some of a table."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(job.folder / f".{RATES}.lock"):
        together = {(item["row"], item["column"]): item for item in [*_read_searches(job), *searches]}
        write_json(job.folder / RATES, {"tried": list(together.values())}, digest=True)


def _for_all_columns(job: TableJob, rates: Mapping[RowColumn, float]) -> dict[RowColumn, float]:
    """Rates of all columns: those that show values of the same trainings have one search."""
    first = same_trainings(job.part)
    rows = dict.fromkeys(row for row, _ in rates)
    return {(row, name): rates[row, first[name]] for row in rows for name in first if (row, first[name]) in rates}


def check_tune_lr(job: TableJob) -> TuneLr:
    """How a table's learning rates are searched for.

    Raises:
        InvalidInput: the table has no rates to choose from, holds out no rows, or the command line sets a rate.
    """
    tune_lr = job.part.tune_lr
    if tune_lr is None:
        message = f"table {job.name} has no learning rates to choose from"
        raise InvalidInput([Fault("command line", message, "leave out --tune-lr")])
    if any(key_of(option) == "trainer.learning_rate" for option in job.extra_overrides):
        raise InvalidInput([Fault("command line", "--tune-lr chooses trainer.learning_rate", "leave out one of them")])
    if not all(cell.config.dataset.has_validation for cell in _trials(job, tune_lr, {})):
        message = "no rows are held out to choose a rate on"
        raise InvalidInput([Fault(f"table {job.name}: tune_lr.held_out", message, HOLD_OUT)])
    return tune_lr


def next_rates(losses: Mapping[float, float], search: TuneLr) -> list[float]:
    """The rates to try next; none if the best rate lies between two others, near enough, or enough rates were tried.

    Args:
        losses: the loss of every rate tried so far; infinite for a rate that failed.
        search: its first rates, by how much they are refined, and how many are tried at most.
    """
    grid, left = search.rates, search.max_rates - len(losses)
    missing = [rate for rate in grid if rate not in losses]
    if missing:
        return missing[:left]
    if left <= 0 or _all_failed(losses):
        return []
    step = grid[1] / grid[0]
    rates = sorted(losses)
    best = best_rate(losses)
    if best == rates[0]:
        return [_rounded(best / step)]
    if best == rates[-1]:
        return [_rounded(best * step)]
    return missing_neighbors(losses, search.refine)[:left] if search.refine is not None else []


def missing_neighbors(losses: Mapping[float, float], factor: float) -> list[float]:
    """The rates a factor below and above the best one that were not tried, whatever their rounding."""
    best = best_rate(losses)
    tolerance = math.log(factor) / 4
    return [
        _rounded(wanted)
        for wanted in (best / factor, best * factor)
        if all(abs(math.log(rate / wanted)) > tolerance for rate in losses)
    ]


def best_rate(losses: Mapping[float, float]) -> float:
    """The rate with the smallest loss; the smaller rate if two are equal."""
    return min(sorted(losses), key=losses.__getitem__)


def best_is_at_edge(losses: Mapping[float, float]) -> bool:
    """Whether the best rate is the smallest or the largest that was tried."""
    return best_rate(losses) in (min(losses), max(losses))


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def _trial_keys(job: TableJob, tune_lr: TuneLr) -> dict[RowColumn, str]:
    """For every row and column that is searched, what identifies its trials apart from their rates."""
    return {cell.position: cell.key for cell in _trials(job, tune_lr, {})}


def _trials(job: TableJob, tune_lr: TuneLr, rates: Mapping[RowColumn, float]) -> list[Cell]:
    """One training of every row and column with held-out rows, at these rates or else at the first of the grid.

    Of several columns that show values of the same trainings, only the first is searched.
    """
    first = same_trainings(job.part)
    columns = {
        heading: Column(overrides=column.overrides, measure="loss", value="validation_loss", needs=column.needs)
        for heading, column in job.part.columns.items()
        if first[heading] == heading
    }
    part = job.part.model_copy(update={"columns": columns, "seeds": job.part.seeds[:1]})
    first_rates = {(row, column): tune_lr.rates[0] for row in job.table.rows for column in columns}
    cells = job.cells(part, first_rates | dict(rates), final_overrides=tune_lr.held_out)
    return [cell for cell in cells if cell.seed == cells[0].seed]


def _try(
    job: TableJob, tune_lr: TuneLr, wanted: Mapping[RowColumn, Sequence[float]]
) -> dict[RowColumn, dict[float, float]]:
    """Runs trials; returns their losses. A trial that failed, for example because it diverged, has an infinite loss."""
    trials: list[tuple[float, Cell]] = []
    for index in range(max(map(len, wanted.values()))):
        rates = {position: of_cell[index] for position, of_cell in wanted.items() if index < len(of_cell)}
        cells = _trials(job, tune_lr, rates)
        trials += [(rates[cell.position], cell) for cell in cells if cell.position in rates]
    results = fill_cells(job, [cell for _, cell in trials])
    losses: dict[RowColumn, dict[float, float]] = defaultdict(dict)
    for rate, cell in trials:
        result = results.get(cell.key)
        losses[cell.position][rate] = result["values"]["validation_loss"] if result is not None else math.inf
    return losses


def _best(losses: Mapping[RowColumn, Mapping[float, float]]) -> dict[RowColumn, float]:
    return {position: best_rate(of_cell) for position, of_cell in losses.items() if not _all_failed(of_cell)}


def _for_json(losses: Mapping[float, float]) -> dict[str, float | None]:
    """Losses by rate for JSON, which has no infinity."""
    return {f"{rate:g}": None if math.isinf(losses[rate]) else losses[rate] for rate in sorted(losses)}


def _all_failed(losses: Mapping[float, float]) -> bool:
    return bool(losses) and all(math.isinf(loss) for loss in losses.values())


def _notes(job: TableJob, tune_lr: TuneLr, losses: Mapping[RowColumn, Mapping[float, float]]) -> list[str]:
    """What the reader of the table has to know about the search."""
    has_one_search = len(set(same_trainings(job.part).values())) == 1

    def name(position: RowColumn) -> str:
        row, column = position
        return row if has_one_search else f"{row} ({column})"

    notes = [
        f"Every row is trained at its own best learning rate, chosen on held-out rows from at most {tune_lr.max_rates}."
    ]
    succeeded = {position: of_cell for position, of_cell in losses.items() if not _all_failed(of_cell)}
    edges = [name(position) for position, of_cell in succeeded.items() if best_is_at_edge(of_cell)]
    if edges:
        notes.append(f"The search ended at the edge of the tried rates, a better one may exist: {', '.join(edges)}.")
    if (factor := tune_lr.refine) is not None:
        coarse = [
            name(position)
            for position, of_cell in succeeded.items()
            if not best_is_at_edge(of_cell) and missing_neighbors(of_cell, factor)
        ]
        if coarse:
            notes.append(
                f"The search ended before the rates a factor of {factor:.3g} around the best one were tried: "
                f"{', '.join(coarse)}."
            )
    failed = [
        f"{name(position)} at {rate:g}"
        for position, of_cell in losses.items()
        for rate, loss in sorted(of_cell.items())
        if math.isinf(loss)
    ]
    if failed:
        notes.append(f"These trials failed and count as the worst: {', '.join(failed)}.")
    return notes
