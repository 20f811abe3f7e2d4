"""LoRA-Pro (arXiv 2407.18242): the steps of A and B whose effect on the weight is nearest to full fine-tuning's.

The closed forms are derived and tested here (``tests/optimizers/test_lora_pro.py``); the order of the steps was read in
the authors' code. Neither is verified against the paper.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lora_ga_cli.lora.layers import LoraPair
from lora_ga_cli.optimizers.around_adamw import Group, adam_direction
from lora_ga_cli.optimizers.base import OptimizerOptions
from lora_ga_cli.optimizers.grams import Gram, grams, sylvester
from lora_ga_cli.optimizers.pairs import ForPairs, PairOptimizer, scalings, stack
from lora_ga_cli.registry import OPTIMIZERS


class LoraProOptions(OptimizerOptions):
    """Options of LoRA-Pro."""

    variant: Literal["adamw", "sgd"] = "adamw"
    """``adamw`` keeps AdamW's two moments of every complete weight, as full fine-tuning does. ``sgd`` keeps nothing and
    follows the gradient itself."""
    damping: Annotated[float, Field(ge=0)] = 1e-6
    """What is added to the eigenvalues of AAᵀ and BᵀB before their inverse is taken, relative to their mean."""


@dataclass(frozen=True)
class Factors:
    """The factors of layers of one shape.

    Args:
        a: A (layers, rank, d_in).
        b: B (layers, d_out, rank).
        scaling: s (layers, 1, 1).
        damping: as in `Gram.power`.
        of_a: AAᵀ, decomposed.
        of_b: BᵀB, decomposed.
    """

    a: Tensor
    b: Tensor
    scaling: Tensor
    damping: float
    of_a: Gram
    of_b: Gram

    def minimizers(self, grad_a: Tensor, grad_b: Tensor) -> tuple[Tensor, Tensor]:
        """Directions h_A (layers, rank, d_in), h_B (layers, d_out, rank) with the least ``‖s·(B h_A + h_B A) - G‖``.

            h_A = s⁻² (BᵀB)⁻¹ g_A,    h_B = s⁻² (I - P_B) g_B (AAᵀ)⁻¹,    P_B = B (BᵀB)⁻¹ Bᵀ,

        for a gradient G of the weight, of which only ``g_A = s·BᵀG`` and ``g_B = s·G Aᵀ`` are needed. With them,
        ``s·(B h_A + h_B A) = G - (I - P_B) G (I - P_A)``. While B is zero, h_A is zero.
        """
        inverse_b = self.of_b.power(-1, self.damping).to(grad_b.dtype)
        inverse_a = self.of_a.power(-1, self.damping).to(grad_a.dtype)
        outside = grad_b - self.b @ (inverse_b @ (self.b.mT @ grad_b))
        return inverse_b @ grad_a / self.scaling**2, outside @ inverse_a / self.scaling**2

    def nearest(self, grad_a: Tensor, grad_b: Tensor) -> tuple[Tensor, Tensor]:
        """Of all minimizers, ``(h_A + X A, h_B - B X)`` with any X (rank, rank), the one nearest to (g_A, g_B).

        Its X solves ``BᵀB X + X AAᵀ = -h_A Aᵀ``.
        """
        h_a, h_b = self.minimizers(grad_a, grad_b)
        x = sylvester(self.of_b, self.of_a, -(h_a @ self.a.mT)).to(h_a.dtype)
        return h_a + x @ self.a, h_b - self.b @ x


def factors_of(shapes: Sequence[Sequence[LoraPair]], damping: float) -> list[Factors]:
    """The factors of layers that are divided by shape, with their Gram matrices decomposed."""
    of_a = [stack(pair.a for pair in pairs) for pairs in shapes]
    of_b = [stack(pair.b for pair in pairs) for pairs in shapes]
    found = grams([*(a.mT for a in of_a), *of_b])
    return [
        Factors(a, b, scalings(pairs, a), damping, found[index], found[len(shapes) + index])
        for index, (a, b, pairs) in enumerate(zip(of_a, of_b, shapes, strict=True))
    ]


class LoraPro(PairOptimizer):
    """Steps A and B so that the weight follows AdamW (or SGD) on the complete weight as nearly as rank r allows.

    ``sgd``: A ← A - γ h_A, B ← B - γ h_B, with the directions of `Factors.nearest`.

    ``adamw``: the gradient that the factors' gradients determine, ``g̃ = s·(B h_A + h_B A)`` with the directions of
    `Factors.minimizers`, enters AdamW's moments m and v (d_out, d_in). AdamW's direction u has the gradients ``s·Bᵀu``
    and ``s·u Aᵀ``, whose `Factors.nearest` are the directions of A and B.

    Every layer has its own s and rank (the authors' code has one s for all, as a constant).
    """

    def step_pairs(self, pairs: Sequence[LoraPair], group: Group) -> None:
        together: defaultdict[Any, list[LoraPair]] = defaultdict(list)
        for pair in pairs:
            together[pair.delta_a.shape, pair.delta_b.shape, pair.delta_a.dtype, pair.delta_a.device].append(pair)
        for of_shape, factors in zip(
            together.values(), factors_of(list(together.values()), group["damping"]), strict=True
        ):
            self._step_shape(of_shape, factors, group)

    def _step_shape(self, pairs: Sequence[LoraPair], factors: Factors, group: Group) -> None:
        grads = stack(pair.delta_a.grad for pair in pairs), stack(pair.delta_b.grad for pair in pairs)
        if group["variant"] == "adamw":
            grads = self._through_weights(pairs, factors, *grads, group)
        directions = factors.nearest(*grads)
        rate = float(group["lr"])
        for parameters, direction in zip(
            ([pair.delta_a for pair in pairs], [pair.delta_b for pair in pairs]), directions, strict=True
        ):
            for parameter, of_layer in zip(parameters, direction.unbind(), strict=True):
                parameter.mul_(1 - rate * group["weight_decay"]).sub_(of_layer, alpha=rate)

    def _through_weights(
        self, pairs: Sequence[LoraPair], factors: Factors, grad_a: Tensor, grad_b: Tensor, group: Group
    ) -> tuple[Tensor, Tensor]:
        """The factors' gradients if the weight's gradient is AdamW's direction, whose moments (d_out, d_in) are
        kept beside B."""
        h_a, h_b = factors.minimizers(grad_a, grad_b)
        of_u_a, of_u_b = [], []
        for pair, a, b, s, for_a, for_b in zip(
            pairs, factors.a, factors.b, factors.scaling, h_a, h_b, strict=True
        ):  # a layer at a time: only one matrix of a weight's size beside the moments
            gradient = torch.addmm(b @ for_a, for_b, a).mul_(s)
            self.count_step([pair.delta_b])
            u = adam_direction(gradient, self.state[pair.delta_b], group["betas"], group["eps"])
            of_u_a.append(s * (b.mT @ u))
            of_u_b.append(s * (u @ a.mT))
        return torch.stack(of_u_a), torch.stack(of_u_b)


@OPTIMIZERS.register("lora_pro")
class ConfiguredLoraPro(ForPairs):
    """LoRA-Pro (arXiv 2407.18242): the steps of A and B whose effect on the weight is nearest to full fine-tuning's.
    Its AdamW variant needs the optimizer memory of full fine-tuning."""

    Options = LoraProOptions
    optimizer_class = LoraPro
    frozen_factors = ("none",)

    def state_numbers(self, pair: LoraPair) -> int:
        (_, d_in), (d_out, _) = pair.delta_a.shape, pair.delta_b.shape
        return 2 * d_out * d_in if self.options.variant == "adamw" else 0
