"""What the estimation and the training of a run will take: memory and time, and how many tokens fit into a pass."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from lora_ga_cli import distributed
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import ModelError
from lora_ga_cli.gradient.estimators.sketch import queue_bytes, sketch_bytes
from lora_ga_cli.lora.adapter_dtype import set_adapter_dtype
from lora_ga_cli.methods.base import links_of, method_of
from lora_ga_cli.model.activations import activation_bytes, mask_bytes
from lora_ga_cli.model.blocks import count_blocks
from lora_ga_cli.model.forecast import Memory, Pace, Work, forward_work, weight_bytes
from lora_ga_cli.model.quantization import bits_per_weight
from lora_ga_cli.model.speed import Speed
from lora_ga_cli.model.targets import Target
from lora_ga_cli.model.unsupported import Unsupported
from lora_ga_cli.optimizers.base import optimizer_of
from lora_ga_cli.report.console import number, size, step
from lora_ga_cli.stages.estimate import capacity_for, rows_at_a_time, sample
from lora_ga_cli.stages.inputs import Inputs
from lora_ga_cli.stages.speed import expected_speed
from lora_ga_cli.training.passes import Limits, divide, in_order

SKETCH_CALLS = 1.4
"""Operators of an estimation by sketch, over those of the passes through the model."""
DEFAULT_TOKENS = 8192
"""Tokens of a pass where neither ``trainer.max_tokens`` nor ``trainer.micro_batch_size`` is given: enough that a GPU
computes for about as long as the CPU takes to start its work, for models of a billion parameters. Passes are halved
when memory runs out."""
USED_SHARE = 0.9
"""Share of the free memory that ``max_tokens=auto`` fills. PyTorch leaves gaps between its tensors, and a forecast is
not exact."""


def estimation_forecast(inputs: Inputs, pace: Pace) -> tuple[Memory, float]:
    """Peak memory of the estimation, which its largest pass needs, and its seconds."""
    config, options = inputs.config, inputs.config.gradient
    base, task, checkpointing = inputs.empty_model(), config.model.task, config.trainer.gradient_checkpointing
    targets = method_of(config).targets(base)
    weights = _base_bytes(base, targets, config)
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    for target in targets.values():
        target.weight.requires_grad_(True)  # the estimators need the activations that a gradient would need
    speed = expected_speed(config, inputs.device)
    samples = min(options.samples, len(inputs.train.rows))
    limits = Limits(rows_at_a_time(options, samples), options.max_tokens, padded=not speed.flatten)
    lengths = [row["length"] for row in sample(inputs)]
    shapes_of_passes = [limits.shape(rows, lengths) for rows in in_order(range(samples), lengths, limits)]
    rows, tokens = max(shapes_of_passes, key=lambda shape: shape[0] * shape[1])
    every = config.trainer.gradient_checkpointing_every if checkpointing else 0
    kept = activation_bytes(base, rows, tokens, task=task, checkpoint_every=every, speed=speed)
    shapes = [layer.shape for target in targets.values() for layer in target.layers]
    element = next(base.parameters()).element_size()
    # the gradient of one parameter of experts at a time, and a copy of it in float32
    kept += (element + 4) * max((item.weight.numel() for item in targets.values() if not item.is_module), default=0)
    if options.estimator == "sketch":
        limit = queue_bytes(inputs.device, checkpointed=checkpointing)
        capacity = capacity_for(method_of(config).largest_rank, options.capacity)
        states, waiting = sketch_bytes(shapes, capacity, rows * tokens, element, limit=limit)
        if checkpointing:
            kept += waiting
    else:
        states = 0 if options.offload else 4 * sum(math.prod(shape) for shape in shapes)
    work = _pass_work(base, shapes_of_passes, lengths, task)
    batches = math.ceil(len(shapes_of_passes) / distributed.count())
    passes = (2 if options.estimator == "sketch" else 3) + checkpointing
    calls = work.calls * (SKETCH_CALLS if options.estimator == "sketch" else 1)
    seconds = options.passes * batches * pace.seconds(Work(work.flops, round(calls)), passes)
    return Memory(weights, states, kept), seconds


@dataclass(frozen=True)
class Training:
    """The model of a training on the meta device, and what it needs whatever the size of its passes.

    Args:
        weights: bytes of base and adapter.
        states: bytes of gradients and of the optimizer's state.
        speed: what will probably be on.
    """

    config: Config
    model: nn.Module
    weights: int
    states: int
    speed: Speed

    @property
    def checkpoint_every(self) -> int:
        """Every which block is computed again in the backward pass; 0 for none."""
        options = self.config.trainer
        return options.gradient_checkpointing_every if options.gradient_checkpointing else 0

    def memory(self, rows: int, tokens: int) -> Memory:
        """The peak with passes of these rows and columns."""
        kept = activation_bytes(
            self.model,
            rows,
            tokens,
            task=self.config.model.task,
            checkpoint_every=self.checkpoint_every,
            offload=self.config.trainer.gradient_checkpointing_offload,
            speed=self.speed,
        )
        return Memory(self.weights, self.states, kept)


def empty_training(inputs: Inputs) -> Training:
    """What a run would train; in a chain, the link with the most parameters."""
    config, method = inputs.config, method_of(inputs.config)
    base = inputs.empty_model()
    weights = _base_bytes(base, method.targets(base), config) - weight_bytes(base)
    model = method.attach_empty(base, method.largest_link(base, links_of(method, inputs.total_steps)))
    speed = expected_speed(config, inputs.device)
    with contextlib.suppress(Unsupported):
        set_adapter_dtype(model, speed.adapter_dtype)
    states = optimizer_of(config).state_bytes(model) + method.extra_state_bytes(model)
    return Training(config, model, weights + weight_bytes(model), states, speed)


def training_forecast(inputs: Inputs, pace: Pace) -> tuple[Memory, float, nn.Module]:
    """Peak memory of training, seconds of an optimizer step, and the empty model as it trains."""
    training = empty_training(inputs)
    limits = pass_limits(inputs, flatten=training.speed.flatten, training=training)
    shapes, steps = _pass_shapes(inputs, limits)
    memory = training.memory(*_largest(shapes))
    work = _pass_work(training.model, shapes, inputs.order.lengths, inputs.config.model.task)
    every = training.checkpoint_every
    passes = (3 if method_of(inputs.config).trains_all_weights else 2) + (1 / every if every else 0)
    return memory, len(shapes) / steps * pace.seconds(work, passes), training.model


def training_memory(inputs: Inputs, limits: Limits | None = None) -> Memory:
    """Peak memory of training, which its largest pass needs.

    Args:
        limits: what fits into a pass, if that is known already.

    Raises:
        Unsupported: the model does not run without weights.
    """
    training = empty_training(inputs)
    limits = limits or pass_limits(inputs, flatten=training.speed.flatten, training=training)
    shapes, _ = _pass_shapes(inputs, limits)
    return training.memory(*_largest(shapes))


def pass_limits(inputs: Inputs, *, flatten: bool, training: Training | None = None) -> Limits:
    """What fits into one forward and backward pass of training.

    Args:
        flatten: whether rows are flattened.
        training: of `empty_training`, if it is there already.
    """
    options = inputs.config.trainer
    tokens = options.max_tokens
    if tokens == "auto":
        fitting = _tokens_that_fit(inputs, training or empty_training(inputs), flatten=flatten, loaded=training is None)
        tokens = -distributed.max_number(-fitting, inputs.device)  # the least of all processes, which divide alike
    elif tokens is None and options.micro_batch_size is None:
        tokens = DEFAULT_TOKENS
    return Limits(options.micro_batch_size, tokens, padded=not flatten)


def _tokens_that_fit(inputs: Inputs, training: Training, *, flatten: bool, loaded: bool) -> int:
    """The most tokens of a pass that the free memory holds by the forecast, and no more than a step has.

    Memory is taken to grow with the tokens as a straight line, but for a mask of tokens times tokens.

    Args:
        loaded: whether the weights are in memory already.
    """
    lengths = inputs.order.lengths
    longest = max(lengths)
    rows = 1 if flatten else 4
    unmasked = replace(training, speed=replace(training.speed, block_mask=False))
    try:
        small, large = (unmasked.memory(rows, columns).activations for columns in (longest, 2 * longest))
    except Unsupported as reason:
        raise ModelError(f"trainer.max_tokens=auto does not work here: {reason}; give a number of tokens") from None
    by_token = max(1.0, (large - small) / (rows * longest))
    by_pair = mask_bytes(1, training.model) if training.speed.block_mask else 0
    available = _free_bytes(inputs.device, training.weights if loaded else 0)
    free = available * USED_SHARE - training.weights - training.states
    room = max(0.0, free - small + by_token * rows * longest)
    # the positive root of by_pair · tokens² + by_token · tokens = room
    fitting = math.floor(2 * room / (by_token + math.sqrt(by_token**2 + 4 * by_pair * room)))
    needed = max(sum(lengths[row] for row in step) for step in inputs.order.steps(0, inputs.order.steps_per_epoch))
    tokens = max(longest, min(fitting // 64 * 64, needed))
    step("speed", f"passes of at most {number(tokens)} tokens: {size(round(free))} are free for them")
    return tokens


def _free_bytes(device: torch.device, weights: int) -> int:
    """Bytes that this process may use on a device, with those that it uses already.

    Args:
        weights: bytes of the weights that are loaded.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available + weights


def _pass_work(model: nn.Module, shapes: Sequence[tuple[int, int]], lengths: Sequence[int], task: str) -> Work:
    """The work of a forward pass of mean size. Attention is counted within a row of mean length.

    Args:
        shapes: rows and columns of batches.
        lengths: of the rows, in tokens.
    """
    length = math.ceil(sum(lengths) / len(lengths))
    of_row = forward_work(model, 1, length, task=task)
    tokens = sum(rows * columns for rows, columns in shapes) / len(shapes)
    return Work(of_row.flops * tokens / length, of_row.calls)


LOOKED_AT = 200
"""Steps whose passes a forecast looks at, besides that of the longest row."""


def _pass_shapes(inputs: Inputs, limits: Limits) -> tuple[list[tuple[int, int]], int]:
    """Rows and columns of this process's batches in some steps of the first epoch, and how many steps these are."""
    order, processes = inputs.order, distributed.count()
    steps = order.epoch(0)
    longest = max(range(len(order.lengths)), key=order.lengths.__getitem__)
    chosen = [rows for number, rows in enumerate(steps) if number < LOOKED_AT or longest in rows]
    shares = [divide(rows, order.lengths, limits, processes)[0] for rows in chosen]
    return [limits.shape(rows, order.lengths) for share in shares for rows in share], len(chosen)


def _largest(shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return max(shapes, key=lambda shape: shape[0] * shape[1])


def _base_bytes(base: PreTrainedModel, targets: Mapping[str, Target], config: Config) -> int:
    """Bytes of the base's weights in one process; a quantized or sharded one needs complete layers for a while."""
    bits = bits_per_weight(config.model, base.config)
    if config.model.shard:
        return weight_bytes(base) // distributed.count() + 2 * weight_bytes(base) // count_blocks(base)
    if bits is None:
        return weight_bytes(base)
    largest = max(math.prod(target.shape) for target in targets.values()) * next(base.parameters()).element_size()
    return weight_bytes(base, [target.weight for target in targets.values()], bits) + largest
