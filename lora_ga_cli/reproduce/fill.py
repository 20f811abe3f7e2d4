"""The cells of a table that is being made: which there are, and filling them through a launcher."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ga_cli.config.launch import launch_each
from lora_ga_cli.files import read_json, sha256_json, write_json
from lora_ga_cli.report import console
from lora_ga_cli.report.console import step, warn
from lora_ga_cli.report.provenance import now, provenance
from lora_ga_cli.reproduce.cells import Cell, cells_of
from lora_ga_cli.reproduce.results import Place
from lora_ga_cli.reproduce.table import Part, Table, TableScale

Failed = Callable[[Exception], object]
"""Says what went wrong with a cell."""


@dataclass(frozen=True)
class Reproduction:
    """A table that is being made.

    Args:
        fair: every row is trained at its own best learning rate.
        further: overrides of every cell, from the command line.
        flags: Hydra's, that choose a launcher.
        home: the folder of all tables, which share runs and what was measured of them.
        own: a folder with recipes and choices of the user's own.
    """

    name: str
    table: Table
    part: Part
    scale: TableScale
    fair: bool
    further: tuple[str, ...]
    flags: tuple[str, ...]
    home: Path
    own: Path | None
    failed: Failed

    @property
    def folder(self) -> Path:
        """Where the table itself goes."""
        kind = [*(["tiny"] if self.scale == "tiny" else []), *(["fair"] if self.fair else [])]
        return self.home / "-".join([self.name, *kind])

    @property
    def title(self) -> str:
        """What the table shows, and whether it is tiny."""
        return (self.part.title or self.table.title) + (" (tiny scale)" if self.scale == "tiny" else "")

    def cells(
        self, part: Part | None = None, rates: Mapping[Place, float] | None = None, held_out: Sequence[str] = ()
    ) -> list[Cell]:
        """All cells.

        Raises:
            InvalidInput: what is wrong with any of them.
        """
        return cells_of(
            self.table, part or self.part, self.further, self.home / "runs", rates=rates, last=held_out, own=self.own
        )

    def file(self, cell: Cell) -> Path:
        """Where what was measured of a cell is kept."""
        return self.home / "cells" / f"{cell.key}.json"

    def known(self, cells: Iterable[Cell]) -> dict[str, dict[str, Any]]:
        """What is known of cells, by their key; those that are not filled, or were of other data, are missing."""
        from lora_ga_cli.reproduce.cell_inputs import changed

        stored = {cell.key: (cell.config, read_json(self.file(cell))) for cell in cells if self.file(cell).exists()}
        return {key: content for key, (config, content) in stored.items() if not changed(config, content["inputs"])}


def run_cells(job: Reproduction, cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """Fills cells: those of one run together, and those that need most of a gradient first, so that others share it.

    Returns:
        What is known of each, by its key; those that failed are missing.
    """
    distinct, done = {cell.key: cell for cell in cells}, job.known(cells)
    groups = by_run(cell for key, cell in distinct.items() if key not in done)
    if done:
        whole = len(by_run(distinct.values()))
        step("table", f"{whole - len(groups)} of {whole} trainings and measurements are there already")
    count = len(groups)

    def fill_group(number: int) -> None:
        group = groups[number]
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        console.title(f"{number + 1} of {count}: {group[0].title}{more}")
        outdated = any(job.file(cell).exists() for cell in group)
        if outdated:
            warn("data or base are others than when this was measured: it is done anew")
        for index, cell in enumerate(group):
            try:
                _fill(job, cell, anew=outdated and index == 0)
            except Exception as error:  # the others go on
                job.failed(error)

    if groups:
        launch_each(count, fill_group, job.flags, str(job.home / ".sweep"))
    return job.known(cells)


def by_run(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells together that are values of one run, or compare with one gradient; those of the largest ranks first."""
    groups: dict[object, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[_shared(cell)].append(cell)
    return sorted(groups.values(), key=lambda group: -group[0].config.largest_rank)


def _shared(cell: Cell) -> object:
    from lora_ga_cli.reproduce.measure import of_many
    from lora_ga_cli.training.run_folder import find_run

    if cell.trains:
        return find_run(cell.config).path
    return sha256_json(of_many(cell.config).model_dump(mode="json")) if cell.measure == "similarity" else cell.key


def _fill(job: Reproduction, cell: Cell, *, anew: bool) -> None:
    """Trains, or estimates, and measures.

    Args:
        anew: set the cell's run aside first, if there is one.
    """
    from lora_ga_cli.reproduce.cell_inputs import digests
    from lora_ga_cli.reproduce.measure import fill

    began, inputs = time.perf_counter(), digests(cell.config)
    values = fill(cell.config.model_copy(update={"overwrite": anew or cell.config.overwrite}), cell.measure)
    if "run" in values:
        values["run"] = str(Path(values["run"]).relative_to(job.home))
    write_json(
        job.file(cell),
        {
            "cell": cell.title,
            "overrides": cell.overrides,
            "values": values,
            "inputs": inputs,
            "seconds": round(time.perf_counter() - began, 1),
            "provenance": provenance(),
            "time": now(),
        },
    )


def planned(cells: Sequence[Cell]) -> dict[Place, list[Cell]]:
    """Cells by row and column."""
    places: dict[Place, list[Cell]] = defaultdict(list)
    for cell in cells:
        places[cell.row, cell.column].append(cell)
    return places
