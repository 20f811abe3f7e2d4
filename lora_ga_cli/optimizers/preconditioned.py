"""AdamW on gradients of LoRA's factors that (rank, rank) matrices were multiplied with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lora_ga_cli.lora.layers import LoraPair
from lora_ga_cli.optimizers.around_adamw import Group
from lora_ga_cli.optimizers.grams import Gram, grams
from lora_ga_cli.optimizers.pairs import PairOptimizer, Side, sides


class PreconditionedAdamW(PairOptimizer):
    """Replaces the gradients of the factors, then steps AdamW. A subclass defines the gradients."""

    def step_pairs(self, pairs: Sequence[LoraPair], group: Group) -> None:
        all_sides = sides(pairs)
        for side, of_other in zip(all_sides, grams([side.other for side in all_sides]), strict=True):
            gradients = self.precondition(side, of_other, group)
            for parameter, gradient in zip(side.parameters, gradients.unbind(), strict=True):
                assert parameter.grad is not None
                parameter.grad.copy_(gradient.mT if side.is_a else gradient)
        self.adamw([group])

    def precondition(self, side: Side, of_other: Gram, group: Group) -> Tensor:
        """The gradients (layers, d, rank) that AdamW gets.

        Args:
            of_other: the Gram matrices of the other factor.
        """
        raise NotImplementedError
