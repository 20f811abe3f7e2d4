"""The experts of a mixture: layers whose weights are one parameter of three dimensions, which is no `nn.Linear`."""

from __future__ import annotations

from torch import nn


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
