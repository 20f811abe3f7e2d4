"""Gates on the ranks of a LoRA layer (SoRA, arXiv 2311.11696): the layer adds ``s·B (g ⊙ A x)``.

A is (rank, d_in), B (d_out, rank), and the gate g (rank,). A gate that is zero takes its rank out of the product, so a
layer with gates equals a plain LoRA whose B is ``B diag(g)`` without the columns of zeros (`folded`).
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn

from lora_ga_cli.lora.layers import ADAPTER, as_float32_on_cpu, lora_layers, weight_of

GATE = "rank_gate"
"""Name of the parameter on a LoRA layer. (PEFT would save a name with ``lora_`` in it as a part of the adapter.)"""
NOT_MERGED = "save the adapter, which folds its gates into B, and merge what was saved"


def soft_threshold(values: Tensor, threshold: float) -> Tensor:
    """``sign(g) · max(|g| - t, 0)``: the minimizer of ``½(x - g)² + t·|x|`` over x, which is the proximal step of an
    L1 penalty. Values within the threshold become exactly zero.

    Args:
        threshold: t, at least 0.
    """
    return values.sign() * (values.abs() - threshold).clamp(min=0)


def folded(a: Tensor, b: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Factors without gates that have the same product, with a rank for each gate that is not zero.

    Args:
        a: A (rank, d_in).
        b: B (d_out, rank).
        gate: g (rank,).

    Returns:
        A (k, d_in) and B (d_out, k), with g inside B. If all gates are zero, k is 1 and B is zero, since PEFT loads no
        layer of rank 0.
    """
    kept = gate != 0
    if not kept.any():
        return a[:1].contiguous(), torch.zeros_like(b[:, :1])
    return a[kept].contiguous(), (b[:, kept] * gate[kept]).contiguous()


class Gated(LoraVariant):
    """What a LoRA layer with gates computes. PEFT calls it where it would compute its own product.

    (PEFT marks that interface as private; there is no public one, and the supported versions of PEFT are pinned.)
    """

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **_: Any) -> None:
        """PEFT asks for it when it makes a layer's adapter anew."""
        raise ValueError("an adapter with gates cannot be replaced: wrap the base model again")

    @staticmethod
    def forward(module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """``result`` (…, d_out) with ``s·B (g ⊙ A x)`` for ``x`` (…, d_in)."""
        hidden = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        gate: Any = getattr(module, GATE)
        added: Tensor = module.lora_B[active_adapter](hidden * gate.to(hidden.dtype))
        return result + added * module.scaling[active_adapter]

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        raise ValueError(NOT_MERGED)

    @staticmethod
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        raise ValueError(NOT_MERGED)


def add_gates(model: PeftModel) -> None:
    """Puts a trainable gate for each rank on every LoRA layer, in place; gates are drawn from N(0, 1)."""
    layers: Any = lora_layers(model)
    for layer in layers.values():
        weight = weight_of(layer.lora_A)
        layer.register_parameter(GATE, nn.Parameter(torch.randn(weight.shape[0]).to(weight.device)))
        layer.lora_variant[ADAPTER] = Gated()


def gates(model: nn.Module) -> dict[str, nn.Parameter]:
    """The gates of every layer, each (rank,), by the name of the layer in the base model."""
    assert isinstance(model, PeftModel)
    return {name: getattr(layer, GATE) for name, layer in lora_layers(model).items()}


def folded_factors(model: PeftModel) -> dict[str, tuple[Tensor, Tensor]]:
    """What `folded` gives for every layer, float32 on the CPU, by the name of the layer in the base model."""
    factors = {}
    for name, layer in lora_layers(model).items():
        parts = (weight_of(layer.lora_A), weight_of(layer.lora_B), getattr(layer, GATE))
        a, b, gate = (as_float32_on_cpu(item) for item in parts)
        factors[name] = folded(a, b, gate)
    return factors
