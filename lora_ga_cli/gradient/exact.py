"""The exact estimator: the full gradient of every target, accumulated in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lora_ga_cli.errors import GradientError
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

    def __init__(self, offload: bool = False):
        self.offload = offload
        self._targets: Mapping[str, Target] = {}
        self._sums: dict[str, Tensor] = {}
        self._finite: dict[str, Tensor] = {}
        self._index = 0
        self._weight = 1.0

    @contextlib.contextmanager
    def watch(self, targets: Mapping[str, Target]) -> Iterator[None]:
        self._targets, self._sums = targets, {}
        hooks = []
        try:
            for target in targets.values():
                target.weight.requires_grad_(True)
                hooks.append(target.weight.register_post_accumulate_grad_hook(self._take(target)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

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
        if not self._finite:
            return
        # one transfer for all layers; asking each layer in its hook would stall the device every time
        flags = torch.stack([flag.to(next(iter(self._finite.values())).device) for flag in self._finite.values()])
        bad = [name for name, finite in zip(self._finite, flags.tolist(), strict=True) if not finite]
        if bad:
            others = f" and of {len(bad) - 1} more layers" if len(bad) > 1 else ""
            raise GradientError(f"the gradient of {bad[0]}{others} is not finite in micro-batch {self._index}")

    def factors(self, total: float, capacity: int) -> Iterator[tuple[str, Factors]]:
        missing = [name for name in self._targets if name not in self._sums]
        if missing:
            raise GradientError(
                f"no gradient reached {_some(missing)}: the loss does not depend on it; leave it out of target_modules"
            )
        zero = [name for name in self._targets if not bool(self._sums[name].any())]
        if zero:
            raise GradientError(
                f"the gradient of {_some(zero)} is zero on all sampled rows, so it has no direction to start from; "
                "take more rows (gradient.samples) or leave it out of target_modules"
            )
        for name in self._targets:
            yield name, truncated_svd(self._sums.pop(name) / total, capacity)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
