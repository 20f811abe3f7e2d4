"""The cells of a table that is being made: which there are, and filling them through a launcher."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ga_cli.config.compose import launch_each
from lora_ga_cli.config.tables import Cell, Part, Scale, Table, cells_of
from lora_ga_cli.files import read_json, write_json
from lora_ga_cli.report import console
from lora_ga_cli.report.console import step
from lora_ga_cli.report.provenance import now, provenance
from lora_ga_cli.report.results import Place

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
    scale: Scale
    further: tuple[str, ...]
    flags: tuple[str, ...]
    folder: Path
    failed: Failed

    def cells(
        self, part: Part | None = None, rates: Mapping[Place, float] | None = None, held_out: Sequence[str] = ()
    ) -> list[Cell]:
        """All cells, with runs in this table's folder."""
        last = [*held_out, f"output_dir={self.folder / 'runs'}"]
        return cells_of(self.table, part or self.part, self.further, rates=rates, last=last)


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


def planned(cells: Sequence[Cell]) -> dict[Place, list[Cell]]:
    """Cells by row and column."""
    places: dict[Place, list[Cell]] = defaultdict(list)
    for cell in cells:
        places[cell.row, cell.column].append(cell)
    return places
