"""``--dry-run``: what a command would do, what is there already, and what it will take."""

from __future__ import annotations

import math

import torch
import yaml
from rich.syntax import Syntax
from rich.table import Table

from lora_ga_cli.config.schema import Config
from lora_ga_cli.methods.build import build_empty
from lora_ga_cli.model.forecast import Memory, activation_bytes, state_bytes, weight_bytes
from lora_ga_cli.model.targets import find_targets
from lora_ga_cli.report.console import number, out, say, size, step
from lora_ga_cli.stages.estimate import request, store_of
from lora_ga_cli.stages.inputs import Inputs, prepare_inputs
from lora_ga_cli.training.checkpoints import is_whole, step_of
from lora_ga_cli.training.run_folder import RunFolder, find_run

STAGES = ("estimate-grad", "init", "train", "eval")


def plan(config: Config, last: str) -> None:
    """Prints the resolved configuration, the stages up to ``last`` and their state, and a forecast.

    Loads no weights.
    """
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    out.print(Syntax(text.rstrip(), "yaml", background_color="default") if out.is_terminal else text, soft_wrap=True)
    inputs = prepare_inputs(config)
    run = find_run(config)
    table = Table("stage", "state", box=None, header_style="bold", pad_edge=False)
    for stage in STAGES[: STAGES.index(last) + 1]:
        table.add_row(stage, _state(stage, inputs, run))
    out.print(table)
    say()
    _forecast(inputs)


def _state(stage: str, inputs: Inputs, run: RunFolder) -> str:
    config = inputs.config
    if stage == "estimate-grad":
        if config.method.start != "gradient":
            return f"not needed by method {config.method.name}"
        wanted = request(inputs)
        cached = store_of(inputs).find(wanted.key, 2 * config.rank)
        if cached is not None:
            return f"cached: {wanted.key}, serves ranks up to {cached.capacity // 2}"
        return f"to do: {len(wanted.rows)} rows, {len(wanted.targets)} layers, then cached as {wanted.key}"
    if stage == "init":
        return "stored in the run" if run.start_file.exists() else "to do"
    if stage == "train":
        if run.finished:
            return f"finished: {run.path}"
        reached = max((step_of(item) for item in run.checkpoints.glob("checkpoint-*") if is_whole(item)), default=0)
        resume = f", resuming after step {reached}" if reached else ""
        return f"to do: {total_steps(config, len(inputs.train.rows))} steps in {run.path}{resume}"
    if stage == "eval":
        return (
            f"done: {run.evaluation_file}"
            if run.evaluation_file.exists()
            else f"to do: {', '.join(config.eval.metrics)}"
        )
    raise ValueError(stage)


def total_steps(config: Config, rows: int) -> int:
    """Optimizer steps of the whole run."""
    options = config.trainer
    return options.max_steps or math.ceil(math.ceil(rows / options.batch_size) * options.epochs)


def _forecast(inputs: Inputs) -> None:
    config = inputs.config
    longest = max(inputs.train.rows["length"])
    task, checkpointing = config.model.task, config.trainer.gradient_checkpointing
    base = inputs.empty_model()
    weights = weight_bytes(base)
    total = sum(parameter.numel() for parameter in base.parameters())
    if config.method.start == "gradient":
        targets = find_targets(base, config.target_modules)
        sums = 0 if config.gradient.offload else 4 * sum(math.prod(target.shape) for target in targets.values())
        for parameter in base.parameters():
            parameter.requires_grad_(False)
        for target in targets.values():
            target.weight.requires_grad_(True)
        rows = min(config.gradient.micro_batch_size, config.gradient.samples)
        kept = activation_bytes(base, rows, longest, task=task, checkpointing=checkpointing)
        _say_memory("estimation", Memory(weights, sums, kept), "sums of gradients")
    model = build_empty(inputs.empty_model(), config)
    kept = activation_bytes(model, config.trainer.micro_batch_size, longest, task=task, checkpointing=checkpointing)
    _say_memory("training", Memory(weight_bytes(model), state_bytes(model), kept), "gradients and moments")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if config.method.start == "gradient" and config.shift == "adapter":
        trained -= sum(item.numel() for name, item in model.named_parameters() if ".lora_" in name) // 2
    step("forecast", f"{number(trained)} of {number(total)} parameters train ({trained / total:.2%})")
    if torch.cuda.is_available():
        step("forecast", f"this GPU has {size(torch.cuda.get_device_properties(0).total_memory)}")


def _say_memory(what: str, memory: Memory, states: str) -> None:
    step(
        "forecast",
        f"{what}: about {size(memory.total)} at its peak (weights {size(memory.weights)}, {states} "
        f"{size(memory.states)}, activations {size(memory.activations)})",
    )
