"""Initial factors as PEFT's own LoRA layer computes them from a weight."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn

from lora_ga_cli.lora.layers import ADAPTER, as_float32_on_cpu, weight_of


def peft_factors(weight: Tensor, rank: int, scaling: float, how: str, **attributes: Any) -> tuple[Tensor, Tensor]:
    """The factors with which PEFT initializes a layer, ``init_lora_weights=how``.

    Args:
        weight: (d_out, d_in); it is not changed.
        scaling: the s that the adapter's product is multiplied by.
        how: PEFT's name: ``pissa``, ``olora``, ``corda``.
        attributes: what PEFT looks for on the layer itself.

    Returns:
        A0 (rank, d_in) and B0 (d_out, rank), float32 on the CPU.
    """
    d_out, d_in = weight.shape
    with torch.device("meta"):
        linear = nn.Linear(d_in, d_out, bias=False)
    linear.weight = nn.Parameter(weight.detach().float().clone(), requires_grad=False)
    for name, value in attributes.items():
        setattr(linear, name, value)
    config = LoraConfig(r=rank, lora_alpha=scaling * rank, init_lora_weights=how)  # type: ignore[arg-type]
    layer = Linear(linear, ADAPTER, config, r=rank, lora_alpha=config.lora_alpha)
    a0, b0 = (as_float32_on_cpu(weight_of(pair)) for pair in (layer.lora_A, layer.lora_B))
    return a0, b0
