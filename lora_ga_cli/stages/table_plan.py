"""What a table takes: its cells, and a forecast of memory and time for each, before anything runs."""

from __future__ import annotations

from typing import Any

import torch

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import InvalidInput, UserError
from lora_ga_cli.files import sha256_json
from lora_ga_cli.model.forecast import Pace, measure_pace
from lora_ga_cli.model.loading import pick_device
from lora_ga_cli.report.console import say, size, step
from lora_ga_cli.report.tables import print_table
from lora_ga_cli.stages.inputs import Inputs, prepare_inputs
from lora_ga_cli.stages.plan import estimation_forecast, training_forecast
from lora_ga_cli.stages.table_cells import Reproduction, planned
from lora_ga_cli.training.arguments import total_steps

H100 = Pace(flops=700e12, call=8e-6)
"""bfloat16 products and launches on an H100, as `measure_pace` finds them; the pace of a plan without a GPU."""
HOUR = 3600.0


def plan_table(job: Reproduction, *, fair: bool) -> None:
    """Prints a table's cells with what is done of them, peak memory, and hours of one device.

    Raises:
        InvalidInput: of any cell.
    """
    cells = job.cells()
    forecasts: dict[str, tuple[float, float] | str] = {}
    rows, total, unknown = [], 0.0, False
    for (row, column), group in planned(cells).items():
        done = sum((job.folder / "cells" / f"{cell.key}.json").exists() for cell in group)
        found = _forecast(group[0].config, group[0].measure, forecasts)
        if isinstance(found, str):
            rows.append([row, column, f"{done} of {len(group)}", "–", found])
            unknown = True
            continue
        memory, seconds = found
        hours = len(group) * seconds / HOUR
        total += hours * (len(group) - done) / len(group)
        rows.append([row, column, f"{done} of {len(group)}", size(memory), f"{hours:.2f}"])
    where = "this device" if torch.cuda.is_available() or job.scale == "tiny" else "an H100"
    print_table(["row", "column", "done", "memory", f"hours on {where}"], rows, ["done", "memory"])
    step(
        "plan",
        f"{len({cell.key for cell in cells})} trainings and measurements, {total:.1f} hours left to train on {where}",
    )
    say(
        "           Generating and judging answers comes on top."
        + (" Cells without a forecast too." if unknown else "")
    )
    if fair and job.table.fair is not None:
        count = len(planned(cells))
        least, most = len(job.table.fair.rates), job.table.fair.most
        say(f"           --fair: {least} to {most} trials for each of {count} rows and columns come before.")


def _forecast(config: Config, measure: str, known: dict[str, Any]) -> tuple[float, float] | str:
    """Peak bytes and seconds of one cell; or why they cannot be said. Cells that train alike share one."""
    alike = config.model_dump(mode="json", exclude={"seed", "output_dir", "eval", "name"})
    alike["trainer"] |= {"learning_rate": None}
    alike["method"] |= {"direction": None, "name": None}
    key = sha256_json([alike, measure])
    if key not in known:
        try:
            known[key] = _cost(prepare_inputs(config), measure)
        except (UserError, InvalidInput) as error:
            known[key] = str(error).splitlines()[0]
    return known[key]  # type: ignore[no-any-return]


def _cost(inputs: Inputs, measure: str) -> tuple[float, float]:
    config = inputs.config
    device = pick_device(config.device)
    tiny = device.type != "cuda" and config.model.path.startswith(("bundled:", "package:"))
    pace = measure_pace(device, getattr(torch, config.model.dtype)) if device.type == "cuda" or tiny else H100
    memory, seconds = 0.0, 0.0
    if config.method.start == "gradient" or measure in ("coverage", "similarity"):
        of_gradient, estimating = estimation_forecast(inputs, pace)
        memory, seconds = of_gradient.total, estimating
    if measure in ("score", "loss"):
        of_training, step_seconds, _ = training_forecast(inputs, pace)
        memory = max(memory, of_training.total)
        seconds += step_seconds * total_steps(config, len(inputs.train.rows))
    return memory, seconds
