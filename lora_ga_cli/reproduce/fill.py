"""Filling the cells of a table: a job describes one table, and a launcher runs what its cells need."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lora_ga_cli.config.launch import launch_each
from lora_ga_cli.config.shard import Shard
from lora_ga_cli.errors import DamagedFile
from lora_ga_cli.json_files import read_json, sha256_json, write_json
from lora_ga_cli.report import console
from lora_ga_cli.report.console import step, warn
from lora_ga_cli.report.provenance import now, provenance
from lora_ga_cli.reproduce.cells import Cell, cells_of
from lora_ga_cli.reproduce.measures.base import Measure
from lora_ga_cli.reproduce.table import Part, RowColumn, Table, TableScale


@dataclass(frozen=True)
class TableJob:
    """A table that is being made.

    Args:
        tune_lr: train every row at its own best learning rate.
        extra_overrides: overrides of every cell, from the command line.
        launcher_flags: Hydra's options that choose a launcher.
        output_dir: the folder of all tables, which share runs and measured values.
        user_dir: a folder with recipes and choices of the user.
        report_error: prints what went wrong with a cell.
        gpus: among which the processes that fill cells are divided; without any, joblib's take turns on all.
        shard: the part of the trainings and measurements that is done; all of them when None.
    """

    name: str
    table: Table
    part: Part
    scale: TableScale
    tune_lr: bool
    extra_overrides: tuple[str, ...]
    launcher_flags: tuple[str, ...]
    output_dir: Path
    user_dir: Path | None
    report_error: Callable[[Exception], object]
    gpus: tuple[str, ...] = ()
    shard: Shard | None = None

    @property
    def folder(self) -> Path:
        """The folder of the table itself."""
        suffixes = [*(["tiny"] if self.scale == "tiny" else []), *(["tune-lr"] if self.tune_lr else [])]
        return self.output_dir / "-".join([self.name, *suffixes])

    @property
    def title(self) -> str:
        """What the table shows, and whether it is at tiny scale."""
        return (self.part.title or self.table.title) + (" (tiny scale)" if self.scale == "tiny" else "")

    def cells(
        self,
        part: Part | None = None,
        rates: Mapping[RowColumn, float] | None = None,
        final_overrides: Sequence[str] = (),
    ) -> list[Cell]:
        """All cells; see `cells_of`.

        Args:
            part: a part in place of the job's.

        Raises:
            InvalidInput: everything that is wrong with any cell.
        """
        return cells_of(
            self.table,
            part or self.part,
            self.extra_overrides,
            self.output_dir / "runs",
            rates=rates,
            final_overrides=final_overrides,
            user_dir=self.user_dir,
        )

    def in_part(self, cells: Iterable[Cell]) -> list[Cell]:
        """The cells that are in this job's part.

        Cells that share work are in one part. Learning rates that were searched for change nothing about it.
        """
        if self.shard is None:
            return list(cells)
        groups = group_by_work(self.cells())
        own = {cell.place for number, group in enumerate(groups) if self.shard.has(number) for cell in group}
        return [cell for cell in cells if cell.place in own]

    def file(self, cell: Cell) -> Path:
        """The file that keeps what was measured of a cell."""
        return self.output_dir / "cells" / f"{cell.key}.json"

    def stored(self, cells: Iterable[Cell]) -> dict[str, dict[str, Any]]:
        """What was measured before, by the cells' keys. Cells that were measured on other data are missing."""
        from lora_ga_cli.reproduce.cell_inputs import changed

        contents = {}
        for cell in cells:
            try:
                contents[cell.key] = cell.config, read_json(self.file(cell))
            except FileNotFoundError:
                continue
            except DamagedFile as error:
                warn(f"{error}; it is measured again")
        return {key: content for key, (config, content) in contents.items() if not changed(config, content["inputs"])}


def fill_cells(job: TableJob, cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """Measures all cells that were not measured before.

    Cells that share work are measured together. Those that need the most of a gradient come first, so that the others
    can use it. Several processes may fill the cells of one folder at once, with the same command or with others: no
    cells are measured twice, and what another process is measuring is waited for at the end.

    Returns:
        What was measured, by the cells' keys. Cells that failed are missing.
    """
    distinct, done = {cell.key: cell for cell in cells}, job.stored(cells)
    groups = group_by_work(cell for key, cell in distinct.items() if key not in done)
    if done:
        total = len(group_by_work(distinct.values()))
        step("table", f"{total - len(groups)} of {total} trainings and measurements exist already")
    _launch(job, groups, wait=False)
    done = job.stored(distinct.values())
    elsewhere = [group for group in groups if any(cell.key not in done for cell in group) and _is_locked(job, group)]
    if elsewhere:
        step("table", f"another process measures {len(elsewhere)} of them; waiting for it")
        _launch(job, elsewhere, wait=True)
    return job.stored(cells)


def _launch(job: TableJob, groups: Sequence[Sequence[Cell]], *, wait: bool) -> None:
    """Fills groups of cells, here or in the processes of a launcher.

    Args:
        wait: for groups that another process is measuring; else they are left out.
    """

    def fill(number: int) -> None:
        group = groups[number]
        try:
            with _lock(job, group).acquire(timeout=-1 if wait else 0):
                done = job.stored(group)
                left = [cell for cell in group if cell.key not in done]
                if left:
                    others = f" and {len(left) - 1} more" if len(left) > 1 else ""
                    console.title(f"{number + 1} of {len(groups)}: {left[0].title}{others}")
                    _fill_group(job, left)
        except Timeout:
            return

    if groups:
        launch_each(len(groups), fill, job.launcher_flags, str(job.output_dir / ".sweep"), job.gpus)


def _fill_group(job: TableJob, group: Sequence[Cell]) -> None:
    """Measures cells that share work, one after another."""
    is_outdated = any(job.file(cell).exists() for cell in group)
    if is_outdated:
        warn("data or base model changed since this was measured: it is measured again")
    measures = {cell.measure: cell.measure_class() for cell in group}
    for index, cell in enumerate(group):
        try:
            _fill(job, cell, measures[cell.measure], overwrite=is_outdated and index == 0)
        except Exception as error:  # the other cells are still measured
            job.report_error(error)


def _lock(job: TableJob, group: Sequence[Cell]) -> FileLock:
    """The lock of the process that measures these cells. Its file stays, since others may wait for it."""
    folder = job.output_dir / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f".{sha256_json(_work_of(group[0]))[:16]}.lock")


def _is_locked(job: TableJob, group: Sequence[Cell]) -> bool:
    try:
        with _lock(job, group).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _work_of(cell: Cell) -> str:
    """A name for the work that a cell shares with others, or else for the cell."""
    return cell.measure_class().shared_work(cell.config) or cell.key


def group_by_work(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells in groups that share a run or a gradient, those of the largest ranks first."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[_work_of(cell)].append(cell)
    return sorted(groups.values(), key=lambda group: -_largest_rank(group[0]))


def _largest_rank(cell: Cell) -> int:
    """The largest rank that a gradient has to serve for a cell; 0 where there is no model."""
    from lora_ga_cli.methods.base import method_of

    return method_of(cell.config).largest_rank if cell.measure_class.needs_model else 0


def group_by_position(cells: Sequence[Cell]) -> dict[RowColumn, list[Cell]]:
    """Cells by row and column; those of one group differ in their seeds."""
    groups: dict[RowColumn, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.position].append(cell)
    return groups


def _fill(job: TableJob, cell: Cell, measure: Measure, *, overwrite: bool) -> None:
    """Measures a cell and stores the values.

    Args:
        overwrite: first set aside the cell's run, if there is one.
    """
    from lora_ga_cli.reproduce.cell_inputs import digests

    began, inputs = time.perf_counter(), digests(cell.config)
    config = cell.config
    if measure.needs_model:
        config = config.model_copy(update={"overwrite": overwrite or config.overwrite})
    values = measure.compute(config)
    if "run" in values:
        values["run"] = str(Path(values["run"]).relative_to(job.output_dir))
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
        digest=True,
    )
