"""What makes the passes of a model faster or smaller, and is the same up to rounding: what was chosen for a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

ATTRIBUTE = "loraga_speed"


@dataclass(frozen=True)
class Speed:
    """The choice for one model.

    Args:
        flatten: whether it takes rows one after another, without padding.
        block_mask: whether it needs a mask for that, of as many entries as the square of a pass's tokens.
        chunked_loss: whether its loss is computed a few tokens at a time, without all logits.
        liger: whether norms and gates are those of Liger Kernel.
        adapter_dtype: the type in which adapters compute their products.
        chosen: what is on, for people.
        refused: what would have been on, with the reason why it is not, for people.
    """

    flatten: bool = False
    block_mask: bool = False
    chunked_loss: bool = False
    liger: bool = False
    adapter_dtype: torch.dtype = torch.float32
    chosen: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """One line for people; empty if nothing was to be chosen."""
        return "; ".join(filter(None, [", ".join(self.chosen), *self.refused]))


def speed_of(model: nn.Module) -> Speed:
    """The choice that was made for a model when it was loaded; nothing is on if there was none."""
    chosen: Any = getattr(model, ATTRIBUTE, None)
    return chosen if isinstance(chosen, Speed) else Speed()


def remember_speed(model: nn.Module, speed: Speed) -> None:
    """Keeps the choice with the model, also under what is wrapped around it."""
    setattr(model, ATTRIBUTE, speed)
