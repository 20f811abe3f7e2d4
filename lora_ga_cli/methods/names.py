"""What the parameters of adapters are called, and what their shapes tell."""

from __future__ import annotations

from torch import nn

from lora_ga_cli.lora.offset import ADAPTER


def is_a(name: str) -> bool:
    """Whether a parameter is A (rank, d_in) of a layer, or AdaLoRA's Q."""
    return f".{name}".endswith((f".lora_A.{ADAPTER}.weight", f".lora_A.{ADAPTER}"))


def is_b(name: str) -> bool:
    """Whether a parameter is B (d_out, rank) of a layer, or AdaLoRA's P."""
    return f".{name}".endswith((f".lora_B.{ADAPTER}.weight", f".lora_B.{ADAPTER}"))


def ranks(model: nn.Module) -> list[int]:
    """The rank of every layer's pair of factors, with a start's half where the adapter carries it."""
    return [item.shape[0] for name, item in model.named_parameters() if is_a(name)]


def widths(model: nn.Module) -> list[int]:
    """The width of every bottleneck."""
    return [item.shape[0] for name, item in model.named_parameters() if name.endswith(".bottleneck.down.weight")]


def prefixes(model: nn.Module) -> list[int]:
    """The length of every trained prefix."""
    return [
        item.shape[0]
        for name, item in model.named_parameters()
        if item.requires_grad and ("prompt_encoder" in name or name.endswith(".prefix"))
    ]
