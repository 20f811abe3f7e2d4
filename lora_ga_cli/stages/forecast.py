"""``--dry-run``: what a command would do, what is done already, and the memory and time that it needs."""

from __future__ import annotations

from typing import Any

import torch
from rich.table import Table

from lora_ga_cli.config.schema import Config
from lora_ga_cli.evaluation.tasks.base import task_of
from lora_ga_cli.lora.layers import trained_parameters
from lora_ga_cli.methods.base import Link, links_of, method_of
from lora_ga_cli.model.forecast import Memory, measure_pace
from lora_ga_cli.model.loading import pick_device
from lora_ga_cli.model.unsupported import Unsupported
from lora_ga_cli.report.console import duration, number, out, say, size, step
from lora_ga_cli.report.spectrum_tables import TENSORS_ONLY
from lora_ga_cli.stages.costs import empty_training, estimation_forecast, training_forecast
from lora_ga_cli.stages.estimate import request, store_of
from lora_ga_cli.stages.experts import say_frozen_experts
from lora_ga_cli.stages.inputs import Inputs, check_folders, prepare_inputs
from lora_ga_cli.stages.left_out import say_left_out
from lora_ga_cli.stages.speed import check_speed
from lora_ga_cli.stages.useful_rank import warn_of_unused_rank
from lora_ga_cli.training.checkpoints import is_complete, step_of
from lora_ga_cli.training.learning_rate import check_learning_rate, learning_rate
from lora_ga_cli.training.run_folder import LinkFolder, RunFolder, check_run_folder, find_run
from lora_ga_cli.training.trackers import check_trackers

STAGES = ("estimate-grad", "init", "train", "eval")


def forecast(config: Config, last: str) -> dict[str, Any]:
    """Prints what would be trained, on what and with what, the stages up to ``last`` and their state, and a forecast.

    Loads no weights.

    Returns:
        The same as plain data: ``config``, ``stages`` and ``forecast``, with memory in bytes and time in seconds.

    Raises:
        RunError: as `check_run_folder`, where the run's folder would be used.
    """
    trains = STAGES.index(last) >= STAGES.index("train")
    if trains:
        check_learning_rate(config)
    check_folders(config)
    check_speed(config, pick_device(config.device))
    check_trackers(config)
    run = find_run(config)
    if last != "estimate-grad" and not config.overwrite:
        check_run_folder(config, run)
    inputs = prepare_inputs(config)
    _summarize(inputs, trains)
    table = Table("stage", "state", box=None, header_style="bold", pad_edge=False)
    states = {stage: _state(stage, inputs, run) for stage in STAGES[: STAGES.index(last) + 1]}
    for stage, state in states.items():
        table.add_row(stage, state)
    out.print(table)
    say()
    return {"config": config.model_dump(mode="json"), "stages": states, "forecast": _forecast(inputs)}


def _summarize(inputs: Inputs, trains: bool) -> None:
    """What would be trained, and how, in a few lines.

    Args:
        trains: there is a training, which has a learning rate.
    """
    config, trainer = inputs.config, inputs.config.trainer
    quantized = f", quantized: {config.model.quantization}" if config.model.quantization else ""
    step("model", f"{config.model.path}, {config.model.task}, {config.model.dtype}{quantized}, on {inputs.device}")
    used = {"rank": config.rank, "alpha": config.alpha, "target_modules": config.target_modules}
    shared = [f"{name} {value}" for name, value in used.items() if name in config.shared_uses]
    step("method", ", ".join([config.method.name, *shared]))
    rate = {"learning rate": f"{learning_rate(config, inputs.model_config):g}"} if trains else {}
    options = {
        **rate,
        "schedule": trainer.lr_scheduler,
        "optimizer": trainer.optimizer,
        "rows in a step": trainer.batch_size,
        "precision": trainer.precision,
        "seed": config.seed,
    }
    step("trainer", ", ".join(f"{name} {value}" for name, value in options.items()))
    step("options", "all of them: --cfg job in place of --dry-run, or --dry-run --json")
    say()


def _state(stage: str, inputs: Inputs, run: RunFolder) -> str:
    """What a stage has done already, or has to do, in a few words."""
    config = inputs.config
    if stage == "estimate-grad":
        if not method_of(config).needs_gradient:
            return f"not needed by method {config.method.name}"
        wanted = request(inputs)
        cached = store_of(inputs).find(wanted.key, wanted.min_capacity)
        if cached is not None:
            return f"cached: {wanted.key}, serves ranks up to {cached.capacity // 2}"
        return f"to do: {len(wanted.rows)} rows, {len(wanted.targets)} layers, then cached as {wanted.key}"
    if config.overwrite and run.path.exists():
        return f"to do, once the folder {run.path} is renamed"
    if stage == "init":
        return "stored in the run" if run.finished or _folders(inputs, run)[0].init_file.exists() else "to do"
    if stage == "train":
        if run.finished:
            return f"finished: {run.path}"
        reached = _reached(inputs, run)
        resume = f", resuming after step {reached}" if reached else ""
        return f"to do: {inputs.total_steps} steps in {run.path}{resume}"
    if stage == "eval":
        task = task_of(config)
        done = task.stored_results(run.path)
        return f"done: {', '.join(map(str, done))}" if done else f"to do: {task.summary}"
    raise ValueError(stage)


def _links(inputs: Inputs) -> list[Link]:
    return links_of(method_of(inputs.config), inputs.total_steps)


def _folders(inputs: Inputs, run: RunFolder) -> list[LinkFolder]:
    return [run.link(link) for link in _links(inputs)]


def _reached(inputs: Inputs, run: RunFolder) -> int:
    """The optimizer step after which the run would resume."""
    reached = 0
    for link in _links(inputs):
        folder = run.link(link)
        steps = [step_of(item) for item in folder.checkpoints.glob("checkpoint-*") if is_complete(item)]
        done = link.steps if folder.finished else max(steps, default=0)
        reached = max(reached, link.first_step + done if done else 0)
    return reached


def _forecast(inputs: Inputs) -> dict[str, Any]:
    """Prints the memory and time that estimation and training need, and returns them in bytes and seconds."""
    config, steps = inputs.config, inputs.total_steps
    found: dict[str, Any] = {"steps": steps}
    say_left_out(inputs.empty_model(), config)
    say_frozen_experts(method_of(config), inputs.empty_model())
    pace = measure_pace(inputs.device, getattr(torch, config.model.dtype))
    try:
        if method_of(config).needs_gradient:
            found["estimation"] = _say("estimation", *estimation_forecast(inputs, pace), "sums of gradients")
        memory, step_seconds, model = training_forecast(inputs, pace)
        found["training"] = _say("training", memory, step_seconds * steps, "gradients and optimizer")
        step("forecast", TENSORS_ONLY)
    except Unsupported as reason:
        step("forecast", f"memory and time are not known: {reason}")
        found["unknown"] = str(reason)
        model = empty_training(inputs).model
    warn_of_unused_rank(method_of(config), model)
    trained, total = trained_parameters(model), sum(item.numel() for item in model.parameters())
    step("forecast", f"{number(trained)} of {number(total)} parameters train ({trained / total:.2%})")
    if torch.cuda.is_available():
        step("forecast", f"this GPU has {size(torch.cuda.get_device_properties(0).total_memory)}")
    return found | {"trained_parameters": trained, "parameters": total}


def _say(what: str, memory: Memory, seconds: float, states: str) -> dict[str, float]:
    """Prints the forecast of one stage, and returns it as plain data.

    Args:
        states: what ``memory.states`` holds, for people.
    """
    length = f"{seconds:.0f} s" if seconds < 60 else duration(seconds)
    parts = f"weights {size(memory.weights)}, {states} {size(memory.states)}, activations {size(memory.activations)}"
    step("forecast", f"{what}: about {length}, peak memory {size(memory.total)} ({parts})")
    return {"seconds": seconds, "peak_memory": memory.total}
