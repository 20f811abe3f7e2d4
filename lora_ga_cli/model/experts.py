"""The experts of a mixture: layers whose weights are one parameter of three dimensions, which is no `nn.Linear`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS


def expert_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of all experts, by the parameter's full name, in the model's order.

    transformers keeps the weights of a module's experts in one parameter: (experts, d_out, d_in), or
    (experts, d_in, d_out). The module says how many experts it has, which tells such a parameter from others of three
    dimensions, such as the kernel of a convolution.
    """
    found = {}
    for name, module in model.named_modules():
        count = getattr(module, "num_experts", None)
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and parameter.shape[0] == count:
                found[f"{name}.{parameter_name}"] = parameter
    return found


@contextlib.contextmanager
def shapes_of_experts(model: nn.Module) -> Iterator[None]:
    """Has the experts of a model on the meta device compute shapes inside the ``with`` block.

    How many tokens each expert gets depends on values, which such a model does not have. So one expert gets all: there
    are as many products, and of the same sizes in sum.
    """
    before = []
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(module, "_apply_gate") and getattr(config, "_experts_implementation", None) is not None:
            before.append((config, config._experts_implementation))  # type: ignore[union-attr]
            config._experts_implementation = SHAPES  # type: ignore[union-attr]
    try:
        yield
    finally:
        for config, implementation in reversed(before):
            config._experts_implementation = implementation  # type: ignore[union-attr]


SHAPES = "loraga_shapes"
"""Name of `_one_expert` among transformers' implementations of experts."""


def _one_expert(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What a module of experts computes if every token chooses the first expert, as often as it may choose.

    Args:
        hidden_states: (tokens, hidden).
        top_k_index: (tokens, k), the experts that each token chooses.
        top_k_weights: (tokens, k).
    """

    def product(x: Tensor, name: str) -> Tensor:
        weight = getattr(experts, name)[0]
        result = x @ (weight if experts.is_transposed else weight.T)
        return result + getattr(experts, f"{name}_bias")[0] if experts.has_bias else result

    x = hidden_states.repeat_interleave(top_k_index.shape[-1], dim=0)  # (tokens·k, hidden)
    activation, first = (experts._apply_gate, "gate_up_proj") if experts.has_gate else (experts.act_fn, "up_proj")
    result = product(activation(product(x, first)), "down_proj") * top_k_weights.reshape(-1, 1)
    summed: Tensor = result.unflatten(0, tuple(top_k_index.shape)).sum(1)
    return summed.to(hidden_states.dtype)


ALL_EXPERTS_FUNCTIONS.register(SHAPES, _one_expert)
