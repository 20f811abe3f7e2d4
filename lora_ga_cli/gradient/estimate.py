"""Estimating the gradient of a model's loss over some batches: public, and free of data sets and commands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.estimator import Estimator
from lora_ga_cli.gradient.exact import ExactEstimator
from lora_ga_cli.model.losses import Batch, count_items, model_loss
from lora_ga_cli.model.targets import ALL_LINEAR, find_targets, shortest_names

LossFunction = Callable[[nn.Module, Batch], Tensor]
FLOAT16_LOSS_SCALE = 2.0**10
"""Loss factor for float16 models, whose small gradients would round to zero; divided out in float32."""


def estimate_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    target_modules: str | Sequence[str] = ALL_LINEAR,
    capacity: int = 32,
    estimator: Estimator | None = None,
    loss_function: LossFunction | None = None,
    dropout: bool = False,
    on_batch: Callable[[int, float], None] | None = None,
) -> GradientArtifact:
    """Estimates ``G = dL/dW`` for the targets, with L averaged over the batches' items as in training.

    An item is a token with a label (language models) or a row (classifiers), so the result does not depend on how
    rows are cut into micro-batches. The model comes back as it was: parameters, flags, gradients, modes, hooks.

    Args:
        model: a float32, bfloat16 or float16 model that returns ``.loss`` for a batch.
        batches: micro-batches: mappings of tensors with ``labels``, on any device.
        target_modules: see `find_targets`.
        capacity: singular vectors to keep per layer; serves every rank up to half of it.
        estimator: `ExactEstimator` unless given.
        loss_function: the micro-batch's mean loss, if it is not ``model(**batch).loss``.
        dropout: leave dropout on.
        on_batch: called with each micro-batch's number, from 1, and its loss.

    Raises:
        TargetError: see `find_targets`.
        GradientError: no batch, no label, a loss or gradient that is not finite, a layer without gradient.
    """
    estimator = estimator or ExactEstimator()
    targets = find_targets(model, target_modules)
    compute_loss = loss_function or model_loss
    half = any(target.weight.dtype == torch.float16 for target in targets.values())
    loss_scale = FLOAT16_LOSS_SCALE if half else 1.0
    device = next(iter(targets.values())).weight.device
    total, loss_sum, count = 0, 0.0, 0
    with prepared(model, dropout), estimator.watch(targets):
        for count, batch in enumerate(batches, start=1):
            batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            items = count_items(model, batch)
            if items == 0:
                raise GradientError(f"micro-batch {count} has no label to learn from: every one is masked")
            estimator.begin(count, items / loss_scale)
            loss = compute_loss(model, batch)
            value = float(loss.detach())
            if not torch.isfinite(loss.detach()):
                raise GradientError(f"the loss of micro-batch {count} is {value}: look at its rows with --preview")
            (loss * loss_scale).backward()
            estimator.end()
            total += items
            loss_sum += value * items
            if on_batch is not None:
                on_batch(count, value)
        if count == 0:
            raise GradientError("there is no batch to estimate the gradient from")
        factors = dict(estimator.factors(float(total), capacity))
    info = {
        "estimator": estimator.name,
        "micro_batches": count,
        "items": total,
        "loss": loss_sum / total,
        "target_modules": shortest_names(model, targets),
        "dtype": str(next(iter(targets.values())).weight.dtype).removeprefix("torch."),
    }
    return GradientArtifact(factors=factors, capacity=capacity, info=info)


@contextlib.contextmanager
def prepared(model: nn.Module, dropout: bool) -> Iterator[None]:
    """Freezes all parameters, puts their gradients away, and sets the modes; undoes it all on leaving.

    With dropout off the model is in evaluation mode, except that transformers only checkpoints activations in
    layers in training mode: those layers, and not what is in them, are switched to it, with the dropout they apply
    themselves set to 0.
    """
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    attributes: list[tuple[object, str, Any]] = []
    try:
        for parameter, _, _ in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        model.train(dropout)
        for module in model.modules():
            if not dropout and getattr(module, "gradient_checkpointing", False):
                for name in [name for name in vars(module) if "dropout" in name]:
                    if isinstance(getattr(module, name), float):
                        attributes.append((module, name, getattr(module, name)))
                        setattr(module, name, 0.0)
                module.training = True
        config = getattr(model, "config", None)
        if getattr(config, "use_cache", False):
            attributes.append((config, "use_cache", True))
            config.use_cache = False  # type: ignore[union-attr]
        yield
    finally:
        for owner, name, value in attributes:
            setattr(owner, name, value)
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
