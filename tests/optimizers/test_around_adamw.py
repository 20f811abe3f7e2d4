"""What an optimizer that is not AdamW alone shares with AdamW, in float64."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import AdamW

from lora_ga_cli.optimizers.around_adamw import AroundAdamW, State, adam_direction
from tests.optimizers.layers import tensor


class SignDescent(AroundAdamW):
    """Steps the first group by the sign of its gradient, and leaves the other one to AdamW."""

    def step_groups(self) -> None:
        first, second = self.param_groups
        for parameter in first["params"]:
            parameter.sub_(parameter.grad.sign(), alpha=first["lr"])
        self.adamw([second])


def test_ten_directions_are_the_steps_of_torchs_adamw() -> None:
    weight, state = nn.Parameter(tensor(4, 3, seed=0)), State()
    optimizer = AdamW([weight], lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.0)
    for step in range(1, 11):
        before = weight.detach().clone()
        weight.grad = tensor(4, 3, seed=step)
        optimizer.step()
        state["step"] = torch.tensor(float(step))
        direction = adam_direction(weight.grad, state, (0.8, 0.95), 1e-3)
        assert torch.allclose(before - 0.1 * direction, weight, rtol=1e-13, atol=1e-15)


def test_a_group_is_left_to_adamw_and_the_closure_is_called_once() -> None:
    own, others, reference = (nn.Parameter(tensor(3, seed=1)) for _ in range(3))
    optimizer = SignDescent([{"params": [own]}, {"params": [others]}], lr=0.1)
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        for item in (own, others, reference):
            item.grad = torch.ones_like(item)
        return 7.0

    assert optimizer.step(closure) == 7.0
    AdamW([reference], lr=0.1).step()
    assert calls == [True]
    assert torch.equal(others, reference)
    assert torch.equal(own, tensor(3, seed=1) - 0.1)
    assert len(optimizer.param_groups) == 2
