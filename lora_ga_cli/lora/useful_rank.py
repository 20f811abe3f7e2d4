"""How much of an adapter's rank the weights can use: a matrix (d_out, d_in) has at most rank min(d_out, d_in)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lora_ga_cli.lora.experts import experts_of
from lora_ga_cli.lora.layers import ADAPTER, lora_layers, target_of


@dataclass(frozen=True)
class TrainedProduct:
    """The products of two factors that change one weight, or the weights of a module's experts.

    Args:
        rank: of each product.
        shape: (d_out, d_in) of each weight.
        parameters: how many of the factors' numbers train.
    """

    rank: int
    shape: tuple[int, int]
    parameters: int

    @property
    def largest(self) -> int:
        """The largest rank that a product of this shape can have."""
        return min(self.shape)

    @property
    def unused(self) -> int:
        """How many trained numbers are there only because ``rank`` is larger than ``largest``."""
        return self.parameters * max(self.rank - self.largest, 0) // self.rank


def products(model: nn.Module) -> dict[str, TrainedProduct]:
    """What the LoRA layers of a model add, by the name of their target; the model may have no weights."""
    found = {}
    for name, layer in lora_layers(model).items():
        factors: list[Any] = [layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]]
        weights: list[Tensor] = [item if isinstance(item, Tensor) else item.weight for item in factors]
        rank = weights[0].shape[0] // max(experts_of(layer), 1)
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        found[name] = TrainedProduct(rank, target_of(name, layer).shape, trained)
    return found
