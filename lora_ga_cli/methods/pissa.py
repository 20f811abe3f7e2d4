"""PiSSA's start, by PEFT's own layer."""

from __future__ import annotations

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn

from lora_ga_cli.lora.offset import ADAPTER, weight_of


def principal_factors(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """``A0 = sqrt(S/s)·Vᵀ``, ``B0 = U·sqrt(S/s)`` of the weight's leading singular triplets (arXiv 2404.02948, eq. 2).

    Args:
        weight: (d_out, d_in); it is not changed.
        scaling: the s that the adapter's product is multiplied by.

    Returns:
        A0 (rank, d_in) and B0 (d_out, rank), float32 on the CPU; ``s·B0·A0`` is the best approximation of that rank.
    """
    d_out, d_in = weight.shape
    with torch.device("meta"):
        linear = nn.Linear(d_in, d_out, bias=False)
    linear.weight = nn.Parameter(weight.detach().float().clone(), requires_grad=False)
    config = LoraConfig(r=rank, lora_alpha=scaling * rank, init_lora_weights="pissa")  # type: ignore[arg-type]
    layer = Linear(linear, ADAPTER, config, r=rank, lora_alpha=config.lora_alpha)
    a0, b0 = (weight_of(pair).detach().float().cpu().contiguous() for pair in (layer.lora_A, layer.lora_B))
    return a0, b0
