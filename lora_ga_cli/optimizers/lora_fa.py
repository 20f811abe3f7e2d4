"""The optimizer of LoRA-FA (arXiv 2308.03303): AdamW on B, with the gradient that is best for the weight while A is
frozen.

The formula is that of PEFT's ``create_lorafa_optimizer``, and is not verified against the paper. PEFT computes the
product in bfloat16 wherever bfloat16 exists, for float32 runs too, and keeps its moments under names, so that they stay
on the CPU when a run on a GPU is resumed; that is why loraga has its own.
"""

from __future__ import annotations

from torch import Tensor

from lora_ga_cli.optimizers.around_adamw import Group
from lora_ga_cli.optimizers.grams import Gram
from lora_ga_cli.optimizers.pairs import ForPairs, Side
from lora_ga_cli.optimizers.preconditioned import PreconditionedAdamW
from lora_ga_cli.registry import OPTIMIZERS


class LoraFa(PreconditionedAdamW):
    """AdamW with the gradient ``s⁻² g_B (AAᵀ)⁻¹``.

    It is the direction h of B with the least ``‖s·h A - G‖``: plain gradient descent along it moves the weight by the
    projection ``-γ G P_A`` of full fine-tuning's step on the rows of A.
    """

    def precondition(self, side: Side, of_other: Gram, group: Group) -> Tensor:
        inverse = of_other.power(-1).to(side.gradient.dtype)
        return side.gradient @ inverse / side.scaling**2


@OPTIMIZERS.register("lora_fa")
class ConfiguredLoraFa(ForPairs):
    """LoRA-FA (arXiv 2308.03303): A is frozen, and B gets the gradient that is best for the weight, then AdamW."""

    optimizer_class = LoraFa
    frozen_factors = ("A",)
