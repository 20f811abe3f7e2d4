"""AdamW on gradients of LoRA's factors that (rank, rank) matrices were multiplied with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lora_ga_cli.lora.layers import LoraPair
from lora_ga_cli.optimizers.pairs import Group, PairOptimizer, Side, sides


class PreconditionedAdamW(PairOptimizer):
    """Replaces the gradients of the factors, then steps AdamW. A subclass defines the gradients."""

    def step_pairs(self, pairs: Sequence[LoraPair], group: Group) -> None:
        for side in sides(pairs):
            gradients = self.precondition(side, group)
            for parameter, gradient in zip(side.parameters, gradients.unbind(), strict=True):
                assert parameter.grad is not None
                parameter.grad.copy_(gradient.mT if side.is_a else gradient)
        self.adamw([group])

    def precondition(self, side: Side, group: Group) -> Tensor:
        """The gradients (layers, d, rank) that AdamW gets."""
        raise NotImplementedError
