"""The experts of a mixture: layers whose weights are one parameter of three dimensions, which is no `nn.Linear`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lora_ga_cli.model.quantization import count_parameters


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


def share_of(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> float:
    """The share of a model's parameters that some of its weights are, from 0 to 1."""
    return sum(weight.numel() for weight in weights.values()) / count_parameters(model)
