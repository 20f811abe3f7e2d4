"""An optimizer that steps some groups of parameters by itself, and leaves the others to torch's AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

Group = dict[str, Any]
"""A group of parameters: ``lr`` (which the schedule changes at every step), ``betas``, ``eps``, ``weight_decay``, …"""
State = dict[str, Tensor]


class AroundAdamW(AdamW):
    """AdamW with a step of its own. A subclass defines it in `step_groups`, and calls `adamw` for the other groups."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One optimizer step of all parameters.

        Args:
            closure: computes the loss and its gradients before the step.

        Returns:
            The loss, if there is a closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.step_groups()
        return loss

    def step_groups(self) -> None:
        """Moves all parameters that have a gradient, in place."""
        raise NotImplementedError

    def adamw(self, groups: list[Group]) -> None:
        """AdamW's step of some of the groups."""
        all_groups = self.param_groups
        try:
            self.param_groups = groups
            if groups:
                super().step()
        finally:
            self.param_groups = all_groups


def adam_direction(gradient: Tensor, state: State, betas: tuple[float, float], eps: float) -> Tensor:
    """Adam's ``m̂ / (√v̂ + ε)``. It renews ``exp_avg`` and ``exp_avg_sq`` of the state in place, which are zero before
    the first step, and makes one other tensor of their size, which it returns.

    Args:
        state: has the number of this step, from 1, as ``step``.
    """
    beta1, beta2 = betas
    step = float(state["step"])
    for name in ("exp_avg", "exp_avg_sq"):
        if name not in state:
            state[name] = torch.zeros_like(gradient)
    state["exp_avg"].lerp_(gradient, 1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    size = state["exp_avg_sq"].sqrt().div_(math.sqrt(1 - beta2**step)).add_(eps)
    return torch.div(state["exp_avg"], size, out=size).div_(1 - beta1**step)
