"""The exact estimator: the full gradient of every target, accumulated in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from lora_ga_cli import distributed
from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.estimator import (
    EstimatorOptions,
    refuse_nonfinite_gradients,
    refuse_unreached_layers,
    refuse_zero_gradients,
)
from lora_ga_cli.gradient.factors import Factors, truncated_svd
from lora_ga_cli.model.targets import Target
from lora_ga_cli.registry import ESTIMATORS


@ESTIMATORS.register("exact")
class ExactEstimator:
    """Adds up ``G = Σ weight · dL/dW`` per target, as (d_out, d_in) in float32, whatever type the model computes in; of
    E experts, as (E, d_out, d_in).

    Backpropagation hands over each weight's gradient as soon as it is ready. It is added to the sum and freed at once,
    so at most one layer's temporary gradient exists at a time. Sums take 4 bytes per target weight.

    Args:
        offload: keep the sums in CPU memory.
    """

    name = "exact"
    passes = 1

    def __init__(self, offload: bool = False):
        self.offload = offload
        self._targets: Mapping[str, Target] = {}
        self._capacity = 0
        self._sums: dict[str, Tensor] = {}
        self._finite: dict[str, Tensor] = {}
        self._index = 0
        self._weight = 1.0

    @classmethod
    def from_options(cls, options: EstimatorOptions) -> Self:
        return cls(offload=options.offload)

    @contextlib.contextmanager
    def watch(self, model: nn.Module, targets: Mapping[str, Target], capacity: int) -> Iterator[None]:
        self._targets, self._capacity, self._sums = targets, capacity, {}
        hooks = []
        try:
            for target in targets.values():
                if target.quantized or target.sharded:
                    how = "quantized" if target.quantized else "sharded"
                    raise GradientError(f"gradient=exact needs full weights; {target.name} is {how}: gradient=sketch")
                target.weight.requires_grad_(True)
                hooks.append(target.weight.register_post_accumulate_grad_hook(self._grad_hook(target)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def begin_pass(self, number: int) -> None:
        pass

    def _grad_hook(self, target: Target) -> Callable[[Tensor], None]:
        """A hook that moves the gradient of a target's weight into the target's sum."""

        def hook(weight: Tensor) -> None:
            grad, weight.grad = weight.grad, None
            if grad is None:
                return
            self._finite[target.name] = grad.isfinite().all()
            grad = target.oriented(grad)
            if target.name not in self._sums:
                device = "cpu" if self.offload else grad.device
                self._sums[target.name] = torch.zeros(grad.shape, dtype=torch.float32, device=device)
            total = self._sums[target.name]
            total.add_(grad.to(total.device, torch.float32), alpha=self._weight)

        return hook

    def begin_micro_batch(self, index: int, weight: float) -> None:
        self._index, self._weight, self._finite = index, weight, {}

    def end_micro_batch(self) -> None:
        pass

    def combine_processes(self) -> None:
        # one transfer for all layers; asking each layer in its hook would stall the device every time
        device = next(iter(self._targets.values())).weight.device
        finite = [self._finite.get(name, torch.tensor(True)).to(device) for name in self._targets]
        flags = distributed.sum_tensor((~torch.stack(finite)).float()).tolist()
        refuse_nonfinite_gradients([name for name, flag in zip(self._targets, flags, strict=True) if flag], self._index)

    def end_pass(self) -> None:
        if distributed.connected() == 1:
            return
        for target in self._targets.values():
            device = target.weight.device
            empty = torch.zeros([target.experts] * bool(target.experts) + list(target.shape))
            local_sum = self._sums.get(target.name, empty).to(device)
            reached = distributed.sum_number(float(target.name in self._sums), device)
            if reached:
                self._sums[target.name] = distributed.sum_tensor(local_sum).to("cpu" if self.offload else device)

    def means(self, total: float) -> Iterator[tuple[str, Tensor]]:
        """The mean gradient over ``total`` items of each target, or of each expert of it, (d_out, d_in) in float32.

        The sum becomes the mean in place and is then forgotten here.

        Raises:
            GradientError: a layer received no gradient (an expert that no token was routed to is left out).
        """
        for name in self._reached_layers():
            target, mean = self._targets[name], self._sums.pop(name).div_(total)
            if target.experts:
                yield from zip((layer.name for layer in target.layers), mean, strict=True)
            else:
                yield name, mean

    def factors(self, total: float) -> Iterator[tuple[str, Factors]]:
        refuse_zero_gradients([name for name in self._reached_layers() if not bool(self._sums[name].any())])
        for name, grad in self.means(total):
            if bool(grad.any()):  # it is zero for an expert that no token was routed to
                yield name, truncated_svd(grad, self._capacity)

    def _reached_layers(self) -> list[str]:
        reached = [name for name in self._targets if name in self._sums]
        unreached = [name for name in self._targets if name not in self._sums]
        refuse_unreached_layers(unreached, self._targets, "the loss does not depend on it")
        return reached
