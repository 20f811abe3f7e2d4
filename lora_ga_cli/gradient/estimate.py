"""Estimating the gradient of a model's loss over some batches: public, and free of data sets and commands."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from lora_ga_cli import distributed
from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.capture import checkpoint_kinds
from lora_ga_cli.gradient.estimator import Estimator
from lora_ga_cli.gradient.estimators.sketch import SketchEstimator
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.model.losses import Batch, count_items, model_loss
from lora_ga_cli.model.targets import ALL_LINEAR, Target, find_targets, shortest_names

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
    on_retry: Callable[[int], None] | None = None,
) -> GradientArtifact:
    """Estimates ``G = dL/dW`` for the targets, with L averaged over the batches' items as in training.

    An item is a token with a label (language models) or a row (classifiers), so rows with many tokens count as they do
    in training. The model comes back as it was: parameters, flags, gradients, modes, hooks. Where memory runs out, the
    batches are halved and the estimation starts again.

    Under torch.distributed every process gives batches of its own rows and receives the same factors.

    Args:
        model: returns ``.loss`` for a batch; in float32, bfloat16 or float16, or quantized (with the sketch).
        batches: micro-batches: mappings of tensors with ``labels``, on any device.
        target_modules: see `find_targets`.
        capacity: singular vectors to keep per layer; serves every rank up to half of it.
        estimator: `SketchEstimator` unless given.
        loss_function: the micro-batch's mean loss, if it is not ``model(**batch).loss``.
        dropout: leave dropout on.
        on_batch: called with the number of micro-batches done, over all passes, and the last one's loss.
        on_retry: called with the rows that a micro-batch has from now on, when memory ran out.

    Raises:
        TargetError: see `find_targets`.
        GradientError: no batch, no label, a loss or gradient that is not finite, a layer without gradient.
    """
    estimator = estimator or SketchEstimator()
    targets = find_targets(model, target_modules)
    estimation = _Estimation(model, targets, estimator, loss_function or model_loss, on_batch or (lambda *_: None))
    batches = list(batches)  # read once more by a second pass, or in halves
    while True:
        try:
            with prepared(model, dropout):
                factors = estimation.run(batches, capacity)
            break
        except _OutOfMemory as error:
            halves = [half for batch in batches for half in _halves(batch)]
            most = max((len(batch["labels"]) for batch in halves), default=0)
            if distributed.sum_number(float(len(halves) - len(batches)), estimation.device) == 0:
                raise error.cause from None
        batches, estimation.halved = halves, True
        clear_device_cache(garbage_collection=True)
        if on_retry is not None:
            on_retry(most)
    info = {
        "estimator": estimator.name,
        "passes": estimator.passes,
        "micro_batches": estimation.micro_batches,
        "items": estimation.items,
        "loss": estimation.loss_sum / estimation.items,
        "target_modules": shortest_names(model, targets),
        "dtype": str(getattr(model, "dtype", next(model.parameters()).dtype)).removeprefix("torch."),
    }
    return GradientArtifact(factors=factors, capacity=capacity, info=info)


class _OutOfMemory(Exception):
    """Memory ran out in this process or another."""

    def __init__(self, cause: Exception):
        self.cause = cause


class _Estimation:
    """The loop over passes and micro-batches."""

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, Target],
        estimator: Estimator,
        loss_function: LossFunction,
        on_batch: Callable[[int, float], None],
    ):
        self.model, self.targets, self.estimator = model, targets, estimator
        self.loss_function, self.on_batch = loss_function, on_batch
        self.device = next(iter(targets.values())).weight.device
        half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
        self.loss_scale = FLOAT16_LOSS_SCALE if half else 1.0
        self.items, self.loss_sum, self.micro_batches = 0, 0.0, 0
        self.halved = False

    def run(self, batches: Sequence[Batch], capacity: int) -> dict[str, Factors]:
        rounds = distributed.max_number(len(batches), self.device)
        if rounds == 0:
            raise GradientError("there is no batch to estimate the gradient from")
        with self.estimator.watch(self.model, self.targets, capacity):
            for number in range(1, self.estimator.passes + 1):
                self.items, self.loss_sum = 0, 0.0
                self.estimator.begin_pass(number)
                for index in range(rounds):
                    self._micro_batch(batches, index)
                    self.on_batch((number - 1) * rounds + index + 1, self.loss_sum / max(self.items, 1))
                self.estimator.end_pass()
            self.items = round(distributed.sum_number(self.items, self.device))
            self.loss_sum = distributed.sum_number(self.loss_sum, self.device)
            self.micro_batches = round(distributed.sum_number(len(batches), self.device))
            return dict(self.estimator.factors(float(self.items)))

    def _micro_batch(self, batches: Sequence[Batch], index: int) -> None:
        """One forward and backward pass. A process that has none left repeats its last one without weight, since
        the others may need it to take part (in gathering a sharded base)."""
        failure: Exception | None = None
        items, loss = 0, 0.0
        if batches:
            own = index < len(batches)
            try:
                items, loss = self._backward(batches[min(index, len(batches) - 1)], index + 1, own)
                self.estimator.end_micro_batch()
                if distributed.connected() == 1:
                    self.estimator.combine_processes()
            except (RuntimeError, GradientError) as error:
                failure = error
        # raised everywhere, or the others would wait for this process for ever
        if failed := round(distributed.sum_number(float(failure is not None), self.device)):
            if failure is None:
                failure = GradientError(
                    f"{failed} of {distributed.connected()} processes failed in micro-batch {index + 1}"
                )
            memory = isinstance(failure, RuntimeError) and should_reduce_batch_size(failure)
            if distributed.sum_number(float(memory), self.device):
                raise _OutOfMemory(failure.with_traceback(None))  # whose frames hold what fills the memory
            raise failure
        if distributed.connected() > 1:
            self.estimator.combine_processes()
        self.items += items
        self.loss_sum += loss

    def _backward(self, batch: Batch, index: int, own: bool) -> tuple[int, float]:
        """Items and summed loss of a micro-batch; nothing of one that only keeps the other processes company."""
        batch = {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        items = count_items(self.model, batch)
        if items == 0 and self.halved:  # the other half has them
            if distributed.connected() == 1:
                return 0, 0.0
            batch, own = batch | {"labels": batch["labels"].clamp(min=0)}, False  # a mean of no items is no number
        elif items == 0:
            raise GradientError(f"micro-batch {index} has no label to learn from: every one is masked")
        self.estimator.begin_micro_batch(index, items / self.loss_scale if own else 0.0)
        loss = self.loss_function(self.model, batch)
        (loss * self.loss_scale).backward()
        value = float(loss.detach())  # only now: it waits for the device
        if not math.isfinite(value):
            raise GradientError(f"the loss of micro-batch {index} is {value}: look at its rows with --preview")
        return (items, value * items) if own else (0, 0.0)


def _halves(batch: Batch) -> list[Batch]:
    """A batch's rows in two batches; a batch of one row as it is."""
    rows = len(batch["labels"])
    if rows < 2:
        return [batch]
    parts = (slice(rows // 2), slice(rows // 2, None))
    return [
        {
            key: value[part] if isinstance(value, Tensor) and value.dim() and len(value) == rows else value
            for key, value in batch.items()
        }
        for part in parts
    ]


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
    hooks = contextlib.ExitStack()
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
        hooks.callback(_reach_reentrant_checkpoints(model))
        config = getattr(model, "config", None)
        if getattr(config, "use_cache", False):
            attributes.append((config, "use_cache", True))
            config.use_cache = False  # type: ignore[union-attr]
        yield
    finally:
        hooks.close()
        for owner, name, value in attributes:
            setattr(owner, name, value)
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


def _reach_reentrant_checkpoints(model: nn.Module) -> Callable[[], None]:
    """Makes the embeddings need a gradient where checkpoints are reentrant: those pass on none else.

    Returns:
        What undoes it.
    """
    hooks = contextlib.ExitStack()
    if True in checkpoint_kinds(model):
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                handle = module.register_forward_hook(lambda _, __, output: output.requires_grad_(True))
                hooks.callback(handle.remove)
    return hooks.close
