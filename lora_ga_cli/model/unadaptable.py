"""Linear layers that no adapter of PEFT can be put on, although they are linear: which ones, and why.

They are found by what the model's code and PEFT do, not from a list of model families.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

MODEL_CODE = ("transformers.models.", "transformers_modules.")
"""Python packages of the classes that make up one model family; the second one has code from a model's repository."""


def unadaptable(model: nn.Module) -> dict[str, str]:
    """The linear layers that cannot be adapted, by full name, with the reason.

    Args:
        model: before it has an adapter, with or without weights.
    """
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        found.update(_unread_in_mixer(name, module))
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        if _has_other_output(module):
            found[name] = f"{type(module).__name__} returns more than the product with its weight"
    return found


def _has_other_output(module: nn.Module) -> bool:
    """Whether a subclass of `nn.Linear` in a model's own code returns something else than (…, d_out)."""
    kind = type(module)
    if not isinstance(module, nn.Linear) or kind.forward is nn.Linear.forward:
        return False
    if not kind.__module__.startswith(MODEL_CODE):
        return False  # a quantized layer
    weights = {name: torch.empty_like(weight, device="meta") for name, weight in module.named_parameters()}
    try:
        output: Any = functional_call(module, weights, (torch.empty(1, module.in_features, device="meta"),))
    except (RuntimeError, ValueError, IndexError, TypeError):
        return True
    return not (isinstance(output, Tensor) and output.shape == (1, module.out_features))


def _unread_in_mixer(name: str, mixer: nn.Module) -> Iterator[tuple[str, str]]:
    """The layers of a Mamba block whose weight its code hands to a kernel, without calling the layer.

    What an adapter adds would be left out there. Whether the kernels are used depends on the machine.
    """
    if not hasattr(mixer, "ssm_state_size"):
        return
    read = set(re.findall(r"self\.(\w+)\.weight\b", inspect.getsource(type(mixer))))
    for child, module in mixer.named_children():
        if child in read and isinstance(module, nn.Linear):
            yield (
                f"{name}.{child}",
                "Mamba's kernels read its weight without calling it, and would ignore an adapter",
            )
