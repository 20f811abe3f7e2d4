"""Training weights of the model itself: all of them, its last blocks, or its biases."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from lora_ga_cli.config.schema import MethodConfig
from lora_ga_cli.errors import TargetError
from lora_ga_cli.model.blocks import blocks
from lora_ga_cli.model.targets import new_modules


def unfreeze(model: nn.Module, method: MethodConfig) -> None:
    """Lets the configured weights train, and freezes the others; a new classifier head always trains.

    Raises:
        TargetError: the model has no such weights.
    """
    model.requires_grad_(False)
    for parameter in CHOICES[method.train](model, method):
        parameter.requires_grad_(True)
    for name in new_modules(model):
        model.get_submodule(name).requires_grad_(True)


def _all(model: nn.Module, method: MethodConfig) -> Iterable[nn.Parameter]:
    return model.parameters()


def _top_layers(model: nn.Module, method: MethodConfig) -> Iterable[nn.Parameter]:
    """LoRA's FT-Top2 with two."""
    found = blocks(model)
    if method.top_layers > len(found):
        raise TargetError(f"method.top_layers={method.top_layers}, and {type(model).__name__} has {len(found)} blocks")
    return [parameter for block in list(found)[-method.top_layers :] for parameter in block.parameters()]


def _biases(model: nn.Module, method: MethodConfig) -> Iterable[nn.Parameter]:
    """BitFit (arXiv 2106.10199); the biases of normalizations are among them."""
    found = [parameter for name, parameter in model.named_parameters() if name.rsplit(".", 1)[-1] == "bias"]
    if not found:
        raise TargetError(
            f"method.train=biases: {type(model).__name__} has no bias (Llama's family has none); GPT-2, OPT and BERT do"
        )
    return found


CHOICES: dict[str, Callable[[nn.Module, MethodConfig], Iterable[nn.Parameter]]] = {
    "all": _all,
    "top_layers": _top_layers,
    "biases": _biases,
}
