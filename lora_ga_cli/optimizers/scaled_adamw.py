"""Scaled AdamW, which is Riemannian preconditioned LoRA (arXiv 2402.02347).

The formulas are those of PEFT's ``create_riemannian_optimizer``, and are not verified against the paper. That function
finds the factors by the names of parameters. It would precondition with the wrong matrices where A - A0 and B - B0
train instead of A and B, as with LoRA-GA; here the factors themselves are used.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from lora_ga_cli.optimizers.around_adamw import Group
from lora_ga_cli.optimizers.base import OptimizerOptions
from lora_ga_cli.optimizers.grams import Gram
from lora_ga_cli.optimizers.pairs import ForPairs, Side
from lora_ga_cli.optimizers.preconditioned import PreconditionedAdamW
from lora_ga_cli.registry import OPTIMIZERS


class ScaledAdamWOptions(OptimizerOptions):
    """Options of scaled AdamW."""

    damping: Annotated[float, Field(gt=0)] = 1e-2
    """What is added to the diagonals of AAᵀ and BᵀB before their inverse is taken."""


class ScaledAdamW(PreconditionedAdamW):
    """AdamW with the gradients ``(BᵀB + δI)⁻¹ g_A`` and ``g_B (AAᵀ + δI)⁻¹``."""

    def precondition(self, side: Side, of_other: Gram, group: Group) -> Tensor:
        inverse = of_other.shifted(group["damping"]).power(-1)
        return side.gradient @ inverse.to(side.gradient.dtype)


@OPTIMIZERS.register("scaled_adamw")
class ConfiguredScaledAdamW(ForPairs):
    """Scaled AdamW (Riemannian preconditioned LoRA, arXiv 2402.02347): AdamW, after the gradient of each factor was
    multiplied by the inverse Gram matrix of the other one."""

    Options = ScaledAdamWOptions
    optimizer_class = ScaledAdamW
