"""The best rows of a table, which are measured with more seeds than the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from lora_ga_cli.reproduce.cells import Cell, names_seeds
from lora_ga_cli.reproduce.fill import TableJob
from lora_ga_cli.reproduce.table import Leaders, RowColumn, missing_columns


def leaders_of(job: TableJob) -> Leaders | None:
    """How a job's best rows are measured again.

    None if they are not: the command line chooses the seeds or a part of the trainings, or there is no way to fill the
    column that tells which rows are the best."""
    is_missing = next(iter(job.part.columns)) in missing_columns(job.part)
    return None if is_missing or job.shard is not None or names_seeds(job.extra_overrides) else job.part.leaders


def leading_rows(values: Mapping[str, Sequence[float]], leaders: Leaders) -> list[str]:
    """The best rows by their mean, the best first; of equal ones the earlier.

    Args:
        values: the values of the first column by row; a row without values is never among the best.
    """
    sign = 1 if leaders.better == "lower" else -1
    measured = [row for row, of_row in values.items() if of_row]
    return sorted(measured, key=lambda row: sign * mean(values[row]))[: leaders.count]


def leader_cells(
    job: TableJob,
    leaders: Leaders,
    cells: Sequence[Cell],
    filled: Mapping[str, dict[str, Any]],
    rates: Mapping[RowColumn, float] | None,
) -> list[Cell]:
    """The cells of the best rows at the seeds that only they have.

    Args:
        cells: all cells at the seeds that every row has.
        filled: what was measured of them.
        rates: learning rates by row and column, in place of the configured ones.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        value = filled.get(cell.key, {}).get("values", {}).get(cell.value)
        if cell.column == cells[0].column and value is not None:
            values[cell.row].append(value)
    best = set(leading_rows(values, leaders))
    part = job.part.model_copy(update={"seeds": leaders.seeds})
    return [cell for cell in job.cells(part, rates) if cell.row in best]
