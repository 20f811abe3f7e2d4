"""The exact estimator: the full gradient of every target, accumulated in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from lora_ga_cli import distributed
from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.estimator import refuse_bad, refuse_empty, refuse_silent
from lora_ga_cli.gradient.factors import Factors, truncated_svd
from lora_ga_cli.model.targets import Target


class ExactEstimator:
    """Adds up ``G = Σ weight · dL/dW`` per target, as (d_out, d_in) in float32, whatever the model computes in.

    Backpropagation hands each weight's gradient over as soon as it is ready; it is added to the sum and freed at
    once, so at most one layer's temporary gradient is alive. Sums take 4 bytes per target weight.

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

    @contextlib.contextmanager
    def watch(self, model: nn.Module, targets: Mapping[str, Target], capacity: int) -> Iterator[None]:
        self._targets, self._capacity, self._sums = targets, capacity, {}
        hooks = []
        try:
            for target in targets.values():
                if target.quantized or target.sharded:
                    how = "quantized" if target.quantized else "in shards"
                    raise GradientError(f"gradient=exact needs whole weights; {target.name} is {how}: gradient=sketch")
                target.weight.requires_grad_(True)
                hooks.append(target.weight.register_post_accumulate_grad_hook(self._take(target)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def begin_pass(self, number: int) -> None:
        pass

    def _take(self, target: Target):  # type: ignore[no-untyped-def]
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

    def begin(self, index: int, weight: float) -> None:
        self._index, self._weight, self._finite = index, weight, {}

    def end(self) -> None:
        pass

    def share(self) -> None:
        # one transfer for all layers; asking each layer in its hook would stall the device every time
        device = next(iter(self._targets.values())).weight.device
        whole = [self._finite.get(name, torch.tensor(True)).to(device) for name in self._targets]
        bad = distributed.sum_tensor((~torch.stack(whole)).float()).tolist()
        refuse_bad([name for name, flag in zip(self._targets, bad, strict=True) if flag], self._index)

    def end_pass(self) -> None:
        if distributed.connected() == 1:
            return
        for target in self._targets.values():
            device = target.weight.device
            found = self._sums.get(target.name, torch.zeros(target.shape)).to(device)
            reached = distributed.sum_number(float(target.name in self._sums), device)
            if reached:
                self._sums[target.name] = distributed.sum_tensor(found).to("cpu" if self.offload else device)

    def means(self, total: float) -> Iterator[tuple[str, Tensor]]:
        """Each target's mean gradient over ``total`` items, (d_out, d_in) in float32; its sum becomes it, and is
        forgotten here.

        Raises:
            GradientError: a layer received no gradient.
        """
        self._refuse_silent()
        for name in self._targets:
            yield name, self._sums.pop(name).div_(total)

    def factors(self, total: float) -> Iterator[tuple[str, Factors]]:
        self._refuse_silent()
        refuse_empty([name for name in self._targets if not bool(self._sums[name].any())])
        for name, grad in self.means(total):
            yield name, truncated_svd(grad, self._capacity)

    def _refuse_silent(self) -> None:
        refuse_silent([name for name in self._targets if name not in self._sums], "the loss does not depend on it")
