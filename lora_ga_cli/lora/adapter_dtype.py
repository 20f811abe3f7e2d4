"""The type in which a model's LoRA layers compute their products, beside parameters that stay in float32."""

from __future__ import annotations

import torch
from peft.tuners.lora import ParamWrapper
from torch import nn

from lora_ga_cli.lora.difference import BaseOffset, variant_of
from lora_ga_cli.lora.layers import ADAPTER, lora_layers
from lora_ga_cli.model.unsupported import Unsupported


def set_adapter_dtype(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Has all LoRA layers of a model compute their products in a type, in place.

    What trains, its gradients, and what is saved stay in the type of the parameters. Where autocast is on, its type
    comes before. The product of a parameter's adapter has the type of that parameter, to which PEFT adds it.

    Args:
        model: a PEFT model, after a method has wrapped and initialized it.
        dtype: None, or the type of the parameters, is what a model begins with, and always works.

    Raises:
        Unsupported: a layer's product is not loraga's, or it must cancel with what was subtracted from the base's
            weights. No layer was changed.
    """
    layers = {name: layer for name, layer in lora_layers(model).items() if not isinstance(layer, ParamWrapper)}
    if dtype not in (None, torch.float32):
        if not layers:
            raise Unsupported("the model has no LoRA layers, whose products have a type of their own")
        for name, layer in layers.items():
            variant = variant_of(layer, ADAPTER)
            if variant is None:
                raise Unsupported(f"the product of {name} is computed in float32, by PEFT or by this method")
            if isinstance(variant, BaseOffset):
                raise Unsupported(
                    "the product of the initial factors was subtracted from the base's weights, with which a rounded "
                    "product does not cancel (method.offset=adapter keeps it exact)"
                )
    for layer in layers.values():
        if (variant := variant_of(layer, ADAPTER)) is not None:
            variant.dtype = dtype
