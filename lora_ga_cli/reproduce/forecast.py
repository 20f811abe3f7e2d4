"""What a table takes: its cells, and a forecast of memory and time for each, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import InvalidInput, UserError
from lora_ga_cli.files import sha256_json
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.forecast import Pace, measure_pace
from lora_ga_cli.model.loading import pick_device
from lora_ga_cli.report import console
from lora_ga_cli.report.console import duration, say, size, step
from lora_ga_cli.report.tables import print_table
from lora_ga_cli.reproduce.cells import Cell
from lora_ga_cli.reproduce.fill import Reproduction, by_run, planned
from lora_ga_cli.reproduce.measure import REFERENCE_ROWS
from lora_ga_cli.reproduce.tune_lr import check_fair, known_rates
from lora_ga_cli.stages.forecast import estimation_forecast, training_forecast
from lora_ga_cli.stages.inputs import Inputs, prepare_inputs
from lora_ga_cli.training.arguments import total_steps

H100 = Pace(flops=700e12, call=8e-6)
"""bfloat16 products and launches on an H100, as `measure_pace` finds them; the pace of a plan without a GPU."""


@dataclass(frozen=True)
class Forecast:
    """Peak bytes, and seconds."""

    memory: float
    seconds: float


def plan_table(job: Reproduction) -> None:
    """Prints a table's cells with what is done of them, peak memory, and the time of one device.

    Raises:
        InvalidInput: of any cell.
    """
    fair = check_fair(job) if job.fair else None
    rates = known_rates(job, fair) if fair is not None else {}
    cells = job.cells(rates=rates or None)
    done = set(job.known(cells))
    forecasts: dict[str, Forecast | str] = {}
    with console.quiet():
        found = {cell.key: _forecast(cell, forecasts) for cell in cells}
    pace = pace_here(cells[0].config)[1]
    rows = []
    for (row, column), group in planned(cells).items():
        of_cell = found[group[0].key]
        there = f"{sum(cell.key in done for cell in group)} of {len(group)}"
        if isinstance(of_cell, str):
            rows.append([row, column, there, "–", of_cell])
            continue
        rows.append([row, column, there, size(of_cell.memory), duration(len(group) * of_cell.seconds)])
    print_table(["row", "column", "done", "memory", f"time on {pace}"], rows, ["done", "memory", f"time on {pace}"])
    # what measures the same run takes its time once
    left = [group[0] for group in by_run(cells) if not all(cell.key in done for cell in group)]
    seconds = [item.seconds for cell in left if isinstance(item := found[cell.key], Forecast)]
    step("plan", f"{len(left)} trainings and measurements are left, {duration(sum(seconds))} on {pace} (h:mm:ss)")
    unknown = " Cells without a forecast too." if len(seconds) < len(left) else ""
    say(f"           Generating and judging answers comes on top.{unknown}")
    if fair is not None and not rates:
        say(f"           --fair: {len(fair.rates)} to {fair.most} trials for each of {len(rows)} cells come before.")


def _forecast(cell: Cell, known: dict[str, Forecast | str]) -> Forecast | str:
    """Of one cell, or why there is none. Cells that train alike share one."""
    alike = cell.config.model_dump(mode="json", exclude={"seed", "output_dir", "eval", "name"})
    alike["trainer"] |= {"learning_rate": None}
    alike["method"] |= {"direction": None, "name": None}
    key = sha256_json([alike, cell.measure])
    if key not in known:
        try:
            known[key] = _cost(prepare_inputs(cell.config), cell)
        except (UserError, InvalidInput) as error:
            known[key] = str(error).splitlines()[0]
    return known[key]


def pace_here(config: Config) -> tuple[Pace, str]:
    """How fast a configuration computes, and where: on this device if it is meant to, else on an H100."""
    device = pick_device(config.device)
    bundled = config.model.path.startswith(("bundled:", "package:"))
    if device.type == "cuda" or bundled:
        return measure_pace(device, getattr(torch, config.model.dtype)), "this device"
    return H100, "an H100"


def _cost(inputs: Inputs, cell: Cell) -> Forecast:
    config, pace = inputs.config, pace_here(inputs.config)[0]
    memory, seconds = 0.0, 0.0
    if cell.measure == "similarity":
        exact = config.gradient.model_copy(update={"estimator": "exact", "offload": True})
        inputs = replace(inputs, config=config.model_copy(update={"gradient": exact}))
    if method_of(config).needs_gradient or not cell.trains:
        of_gradient, seconds = estimation_forecast(inputs, pace)
        memory = of_gradient.total
    if cell.measure == "similarity":  # against the gradient of many
        seconds *= 1 + REFERENCE_ROWS / config.gradient.samples
    if cell.trains:
        of_training, step_seconds, _ = training_forecast(inputs, pace)
        memory = max(memory, of_training.total)
        seconds += step_seconds * total_steps(config, len(inputs.train.rows))
    return Forecast(memory, seconds)
