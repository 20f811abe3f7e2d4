"""``--dry-run``: what a command would do, what is done already, and the memory and time that it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import yaml
from rich.syntax import Syntax
from rich.table import Table
from torch import nn

from lora_ga_cli import distributed
from lora_ga_cli.config.schema import Config
from lora_ga_cli.evaluation.tasks.base import task_of
from lora_ga_cli.gradient.estimators.sketch import queue_bytes, sketch_bytes
from lora_ga_cli.lora.layers import trained_parameters
from lora_ga_cli.methods.base import Link, links_of, method_of
from lora_ga_cli.model.blocks import count_blocks
from lora_ga_cli.model.forecast import (
    Memory,
    Pace,
    Work,
    activation_bytes,
    forward_work,
    measure_pace,
    weight_bytes,
)
from lora_ga_cli.model.quantization import bits_per_weight
from lora_ga_cli.model.targets import Target, find_targets
from lora_ga_cli.optimizers.base import optimizer_of
from lora_ga_cli.report.console import duration, number, out, say, size, step
from lora_ga_cli.stages.estimate import capacity_for, request, rows_at_a_time, store_of
from lora_ga_cli.stages.inputs import Inputs, prepare_inputs
from lora_ga_cli.stages.speed import pass_limits
from lora_ga_cli.training.checkpoints import is_complete, step_of
from lora_ga_cli.training.passes import Limits, divide
from lora_ga_cli.training.run_folder import LinkFolder, RunFolder, find_run

SKETCH_CALLS = 1.4
"""Operators of an estimation by sketch, over those of the passes through the model."""
STAGES = ("estimate-grad", "init", "train", "eval")


def forecast(config: Config, last: str) -> None:
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
        if not method_of(config).needs_gradient:
            return f"not needed by method {config.method.name}"
        wanted = request(inputs)
        cached = store_of(inputs).find(wanted.key, wanted.min_capacity)
        if cached is not None:
            return f"cached: {wanted.key}, serves ranks up to {cached.capacity // 2}"
        return f"to do: {len(wanted.rows)} rows, {len(wanted.targets)} layers, then cached as {wanted.key}"
    if stage == "init":
        return "stored in the run" if _folders(inputs, run)[0].init_file.exists() else "to do"
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


def _forecast(inputs: Inputs) -> None:
    config, steps = inputs.config, inputs.total_steps
    pace = measure_pace(inputs.device, getattr(torch, config.model.dtype))
    if method_of(config).needs_gradient:
        _say("estimation", *estimation_forecast(inputs, pace), "sums of gradients")
    memory, step_seconds, model = training_forecast(inputs, pace)
    _say("training", memory, step_seconds * steps, "gradients and optimizer")
    trained, total = trained_parameters(model), sum(item.numel() for item in model.parameters())
    step("forecast", f"{number(trained)} of {number(total)} parameters train ({trained / total:.2%})")
    if torch.cuda.is_available():
        step("forecast", f"this GPU has {size(torch.cuda.get_device_properties(0).total_memory)}")


def estimation_forecast(inputs: Inputs, pace: Pace) -> tuple[Memory, float]:
    """Peak memory of the estimation, and its seconds; rows are taken to be as long as the longest for memory, and of
    mean length for time."""
    config, options = inputs.config, inputs.config.gradient
    base, task, checkpointing = inputs.empty_model(), config.model.task, config.trainer.gradient_checkpointing
    targets = find_targets(base, config.target_modules)
    weights = _base_bytes(base, targets, config)
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    for target in targets.values():
        target.weight.requires_grad_(True)  # the estimators need the activations that a gradient would need
    longest, mean = _lengths(inputs)
    samples = min(options.samples, len(inputs.train.rows))
    rows = rows_at_a_time(options, samples)
    kept = activation_bytes(base, rows, longest, task=task, checkpointing=checkpointing)
    shapes = [target.shape for target in targets.values()]
    if options.estimator == "sketch":
        element = next(base.parameters()).element_size()
        limit = queue_bytes(inputs.device, checkpointed=checkpointing)
        capacity = capacity_for(method_of(config).largest_rank, options.capacity)
        states, waiting = sketch_bytes(shapes, capacity, rows * longest, element, limit=limit)
        if checkpointing:
            kept += waiting
    else:
        states = 0 if options.offload else 4 * sum(math.prod(shape) for shape in shapes)
    work = forward_work(base, rows, mean, task=task)
    batches = math.ceil(samples / rows / distributed.count())
    passes = (2 if options.estimator == "sketch" else 3) + checkpointing
    calls = work.calls * (SKETCH_CALLS if options.estimator == "sketch" else 1)
    seconds = options.passes * batches * pace.seconds(Work(work.flops, round(calls)), passes)
    return Memory(weights, states, kept), seconds


def training_forecast(inputs: Inputs, pace: Pace) -> tuple[Memory, float, nn.Module]:
    """Peak memory of training, seconds of an optimizer step, and the empty model as it trains.

    In a chain, they are those of the link that trains the most parameters.
    """
    config, options = inputs.config, inputs.config.trainer
    base = inputs.empty_model()
    targets = find_targets(base, config.target_modules)
    weights = _base_bytes(base, targets, config) - weight_bytes(base)
    method = method_of(config)
    model = method.attach_empty(base, method.largest_link(base, _links(inputs)))
    task, checkpointing = config.model.task, options.gradient_checkpointing
    shapes, steps = pass_shapes(inputs, pass_limits(config, flatten=False))
    rows, tokens = max(shapes, key=lambda shape: shape[0] * shape[1])
    kept = activation_bytes(model, rows, tokens, task=task, checkpointing=checkpointing)
    states = optimizer_of(config).state_bytes(model) + method.extra_state_bytes(model)
    memory = Memory(weights + weight_bytes(model), states, kept)
    computed = sum(rows * tokens for rows, tokens in shapes) / len(shapes)
    work = forward_work(model, 1, math.ceil(computed), task=task)
    passes = (3 if method.trains_all_weights else 2) + checkpointing
    return memory, len(shapes) / steps * pace.seconds(work, passes), model


LOOKED_AT = 200
"""Steps whose passes a forecast looks at, besides that of the longest row."""


def pass_shapes(inputs: Inputs, limits: Limits) -> tuple[list[tuple[int, int]], int]:
    """Rows and columns of this process's batches in some steps of the first epoch, and how many steps these are."""
    order, processes = inputs.order, distributed.count()
    steps = order.epoch(0)
    longest = max(range(len(order.lengths)), key=order.lengths.__getitem__)
    chosen = [rows for number, rows in enumerate(steps) if number < LOOKED_AT or longest in rows]
    shares = [divide(rows, order.lengths, limits, processes)[0] for rows in chosen]
    return [limits.shape(rows, order.lengths) for share in shares for rows in share], len(chosen)


def _base_bytes(base: nn.Module, targets: Mapping[str, Target], config: Config) -> int:
    """Bytes of the base's weights in one process; a quantized or sharded one needs complete layers for a while."""
    bits = bits_per_weight(config.model)
    if config.model.shard:
        return weight_bytes(base) // distributed.count() + 2 * weight_bytes(base) // count_blocks(base)
    if bits is None:
        return weight_bytes(base)
    largest = max(math.prod(target.shape) for target in targets.values()) * next(base.parameters()).element_size()
    return weight_bytes(base, [target.weight for target in targets.values()], bits) + largest


def _lengths(inputs: Inputs) -> tuple[int, int]:
    """The longest training row, and the mean one, in tokens."""
    lengths = inputs.train.rows["length"]
    return max(lengths), math.ceil(sum(lengths) / len(lengths))


def _say(what: str, memory: Memory, seconds: float, states: str) -> None:
    length = f"{seconds:.0f} s" if seconds < 60 else duration(seconds)
    parts = f"weights {size(memory.weights)}, {states} {size(memory.states)}, activations {size(memory.activations)}"
    step("forecast", f"{what}: about {length}, peak memory {size(memory.total)} ({parts})")
