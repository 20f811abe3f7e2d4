"""``loraga reproduce --dry-run``: the cells of a table, with a forecast of memory and time. Nothing is computed."""

from __future__ import annotations

import functools
from typing import Any

import torch

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import InvalidInput, UserError
from lora_ga_cli.json_files import sha256_json
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.forecast import Pace, measure_pace
from lora_ga_cli.model.loading import pick_device
from lora_ga_cli.report import console
from lora_ga_cli.report.console import duration, say, size, step
from lora_ga_cli.report.tables import print_table
from lora_ga_cli.reproduce.cells import Cell
from lora_ga_cli.reproduce.fill import TableJob, group_by_position, group_by_work
from lora_ga_cli.reproduce.leaders import leaders_of
from lora_ga_cli.reproduce.measures.base import Cost
from lora_ga_cli.reproduce.table import same_trainings
from lora_ga_cli.reproduce.tune_lr import check_tune_lr, stored_rates
from lora_ga_cli.stages.inputs import prepare_inputs

H100 = Pace(flops=700e12, call=8e-6)
"""The speed of an H100 in bfloat16, as `measure_pace` measures it; assumed where there is no GPU."""


def forecast_table(job: TableJob) -> dict[str, Any]:
    """Prints a table's cells: how many are done, their peak memory, and their time on one device.

    Returns:
        ``cells``, a mapping for each of them, with memory in bytes and seconds for all of its seeds; ``seconds``, of
        all that is left; ``device``, for which time was computed.

    Raises:
        InvalidInput: everything that is wrong with any cell.
    """
    tune_lr = check_tune_lr(job) if job.tune_lr else None
    rates = stored_rates(job, tune_lr) if tune_lr is not None else {}
    cells = [*(job.cells(rates=rates) if rates else []), *(cell for cell in job.cells() if cell.position not in rates)]
    cells = job.in_part(cells)
    if not cells:
        say(f"part {job.shard} of this table has no cell")
        return {"cells": [], "seconds": 0.0, "device": ""}
    done = set(job.stored(cells))
    cached: dict[str, Cost | str] = {}
    with console.quiet():
        costs = {cell.key: _forecast(cell, cached) for cell in cells}
    device = pace_of(cells[0])[1]
    rows: list[list[str]] = []
    entries: list[dict[str, Any]] = []
    for (row, column), group in group_by_position(cells).items():
        cost = costs[group[0].key]
        progress = f"{sum(cell.key in done for cell in group)} of {len(group)}"
        if isinstance(cost, str):
            rows.append([row, column, progress, "–", cost])
            entries.append({"row": row, "column": column, "done": progress, "problem": cost})
            continue
        seconds_of_cell = len(group) * cost.seconds
        entries.append(
            {"row": row, "column": column, "done": progress, "memory": cost.memory, "seconds": seconds_of_cell}
        )
        rows.append([row, column, progress, size(cost.memory), duration(seconds_of_cell)])
    numeric = ["done", "memory", f"time on {device}"]
    print_table(["row", "column", *numeric], rows, numeric)
    # cells that measure the same run take its time once
    left = [group[0] for group in group_by_work(cells) if not all(cell.key in done for cell in group)]
    seconds = [cost.seconds for cell in left if isinstance(cost := costs[cell.key], Cost)]
    time = f": {duration(sum(seconds))} on {device}" if seconds or not left else ", and no forecast of their time"
    step("forecast", f"{len(left)} trainings and measurements are left{time}")
    without = " So do the cells without a forecast." if len(seconds) < len(left) else ""
    if any(cell.measure_class.needs_model for cell in cells):
        say(f"           Generating and judging answers takes extra time.{without}")
    first = same_trainings(job.part)
    unknown = {cell.position for cell in cells if cell.position not in rates and first[cell.column] == cell.column}
    if tune_lr is not None and unknown:
        trials = f"{len(tune_lr.rates)} to {tune_lr.max_rates} trials for each of {len(unknown)} cells"
        say(f"           --tune-lr runs {trials} before.")
    if (leaders := leaders_of(job)) is not None:
        say(f"           The best {leaders.count} rows are measured with {len(leaders.seeds)} more seeds.")
    return {"cells": entries, "seconds": sum(seconds), "device": device}


def _forecast(cell: Cell, cached: dict[str, Cost | str]) -> Cost | str:
    """The cost of a cell, or why it cannot be computed. Cells whose trainings have the same shape share a forecast."""
    measure = cell.measure_class()
    if not measure.needs_model:
        return measure.forecast(cell.config, pace_of(cell)[0])
    shape = cell.config.model_dump(mode="json", exclude={"seed", "output_dir", "eval", "name"})
    shape["trainer"] |= {"learning_rate": None}
    shape["method"] |= dict.fromkeys(("name", *method_of(cell.config).options_without_cost))
    key = sha256_json([shape, cell.measure])
    if key not in cached:
        try:
            cached[key] = measure.forecast(prepare_inputs(cell.config), pace_of(cell)[0])
        except (UserError, InvalidInput) as error:
            cached[key] = str(error).splitlines()[0]
    return cached[key]


def pace_of(cell: Cell) -> tuple[Pace, str]:
    """How fast a cell computes, and on which device. A measure without a model computes on this machine's CPU."""
    if cell.measure_class.needs_model:
        return pace_for(cell.config)
    return _pace_of_the_cpu(), "this device"


@functools.cache
def _pace_of_the_cpu() -> Pace:
    return measure_pace(torch.device("cpu"), torch.float32)


def pace_for(config: Config) -> tuple[Pace, str]:
    """How fast a configuration computes, and on which device: this one if it has a GPU or the model is a small bundled
    one, else an H100."""
    device = pick_device(config.device)
    is_bundled = config.model.path.startswith(("bundled:", "package:"))
    if device.type == "cuda" or is_bundled:
        return measure_pace(device, getattr(torch, config.model.dtype)), "this device"
    return H100, "an H100"
