"""Estimating the gradient of a model's loss over some batches; public, and independent of the configuration."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from lora_ga_cli import distributed
from lora_ga_cli.data.flatten import count_rows, halves
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
    target_parameters: str | Sequence[str] = (),
    capacity: int = 32,
    estimator: Estimator | None = None,
    loss_function: LossFunction | None = None,
    dropout: bool = False,
    on_batch: Callable[[int, float], None] | None = None,
    on_retry: Callable[[int], None] | None = None,
) -> GradientArtifact:
    """Estimates ``G = dL/dW`` for the targets, with L averaged over the batches' items as in training.

    An item is a token with a label (language models) or a row (classifiers), so rows with many tokens count as they do
    in training. The model is left as it was: parameters, flags, gradients, modes, hooks. When memory runs out, the
    batches are halved and the estimation starts again.

    Under torch.distributed every process passes batches of its own rows and receives the same factors.

    Args:
        model: returns ``.loss`` for a batch; in float32, bfloat16 or float16, or quantized (for the sketch).
        batches: micro-batches: mappings of tensors with ``labels``, on any device.
        target_modules: see `find_targets`.
        target_parameters: see `find_targets`. Experts have a gradient each, and those that no token was routed to have
            none.
        capacity: singular vectors to keep per layer; serves every rank up to half of it.
        estimator: a `SketchEstimator` by default.
        loss_function: the micro-batch's mean loss, if it is not ``model(**batch).loss``.
        dropout: leave the model's dropout on.
        on_batch: called with the number of micro-batches done, over all passes, and the last one's loss.
        on_retry: called when memory ran out, with the number of rows that a micro-batch has from now on.

    Raises:
        TargetError: see `find_targets`.
        GradientError: no batch, no label, a loss or gradient that is not finite, a layer without gradient (but an
            expert that no token was routed to is only listed, in ``info["unreached"]``).
    """
    estimator = estimator or SketchEstimator()
    targets = find_targets(model, target_modules, target_parameters)
    estimation = _Estimation(model, targets, estimator, loss_function or model_loss, on_batch or (lambda *_: None))
    batches = list(batches)  # a second pass reads them again
    while True:
        try:
            with prepare_model(model, dropout):
                factors = estimation.run(batches, capacity)
            break
        except _OutOfMemory as error:
            smaller = [half for batch in batches for half in halves(batch)]
            max_rows = max(map(count_rows, smaller), default=0)
            if distributed.sum_number(float(len(smaller) - len(batches)), estimation.device) == 0:
                raise error.cause from None
        batches, estimation.halved = smaller, True
        clear_device_cache(garbage_collection=True)
        if on_retry is not None:
            on_retry(max_rows)
    info = {
        "estimator": estimator.name,
        "passes": estimator.passes,
        "micro_batches": estimation.micro_batches,
        "items": estimation.items,
        "loss": estimation.loss_sum / estimation.items,
        "target_modules": shortest_names(model, {name: item for name, item in targets.items() if item.is_module}),
        "dtype": str(getattr(model, "dtype", next(model.parameters()).dtype)).removeprefix("torch."),
    }
    layers = [layer.name for target in targets.values() for layer in target.layers]
    info["unreached"] = [name for name in layers if name not in factors]
    return GradientArtifact(factors=factors, capacity=capacity, info=info)


class _OutOfMemory(Exception):
    """Memory ran out in this process or in another one."""

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
        float16 = any(parameter.dtype == torch.float16 for parameter in model.parameters())
        self.loss_scale = FLOAT16_LOSS_SCALE if float16 else 1.0
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
        """One forward and backward pass.

        A process that has no micro-batch left repeats its last one with weight 0, since the others may need it to take
        part (in gathering a sharded base).
        """
        failure: Exception | None = None
        items, loss = 0, 0.0
        if batches:
            counts = index < len(batches)
            try:
                items, loss = self._backward(batches[min(index, len(batches) - 1)], index + 1, counts)
                self.estimator.end_micro_batch()
                if distributed.connected() == 1:
                    self.estimator.combine_processes()
            except (RuntimeError, GradientError) as error:
                failure = error
        # raised in every process, or the others would wait for this one forever
        if failed := round(distributed.sum_number(float(failure is not None), self.device)):
            if failure is None:
                failure = GradientError(
                    f"{failed} of {distributed.connected()} processes failed in micro-batch {index + 1}"
                )
            out_of_memory = isinstance(failure, RuntimeError) and should_reduce_batch_size(failure)
            if distributed.sum_number(float(out_of_memory), self.device):
                raise _OutOfMemory(failure.with_traceback(None))  # the frames hold the tensors that fill the memory
            raise failure
        if distributed.connected() > 1:
            self.estimator.combine_processes()
        self.items += items
        self.loss_sum += loss

    def _backward(self, batch: Batch, index: int, counts: bool) -> tuple[int, float]:
        """Runs a micro-batch forward and backward.

        Args:
            index: counted from 1.
            counts: whether it adds to the gradient; if not, it runs with weight 0 for the other processes.

        Returns:
            Its number of items and their summed loss; zeros if it does not count.
        """
        batch = {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        items = count_items(self.model, batch)
        if items == 0 and self.halved:  # the other half has them
            if distributed.connected() == 1:
                return 0, 0.0
            batch, counts = batch | {"labels": batch["labels"].clamp(min=0)}, False  # a mean over no items is NaN
        elif items == 0:
            raise GradientError(f"micro-batch {index} has no label to learn from: every one is masked")
        self.estimator.begin_micro_batch(index, items / self.loss_scale if counts else 0.0)
        loss = self.loss_function(self.model, batch)
        (loss * self.loss_scale).backward()
        value = float(loss.detach())  # after the backward pass, because it waits for the device
        if not math.isfinite(value):
            raise GradientError(f"the loss of micro-batch {index} is {value}: look at its rows with --preview")
        return (items, value * items) if counts else (0, 0.0)


@contextlib.contextmanager
def prepare_model(model: nn.Module, dropout: bool) -> Iterator[None]:
    """Freezes all parameters, removes their gradients, and sets the modes; undoes all of it on leaving.

    With dropout off the model is in evaluation mode, except that transformers only checkpoints activations in
    layers in training mode. Those layers, but not the modules in them, are set to training mode, and the dropout that
    they apply themselves is set to 0.
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
        hooks.callback(_make_embeddings_need_gradients(model))
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


def _make_embeddings_need_gradients(model: nn.Module) -> Callable[[], None]:
    """Makes the outputs of embeddings need a gradient if checkpoints are reentrant.

    A reentrant checkpoint passes a gradient on only if one of its inputs needs one.

    Returns:
        A function that undoes this.
    """
    hooks = contextlib.ExitStack()
    if True in checkpoint_kinds(model):
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                handle = module.register_forward_hook(lambda _, __, output: output.requires_grad_(True))
                hooks.callback(handle.remove)
    return hooks.close
