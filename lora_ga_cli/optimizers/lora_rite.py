"""LoRA-RITE (arXiv 2410.20625): adaptive steps that do not depend on how the product is divided into A and B.

The algorithm was read in the authors' PyTorch code, and is not verified against the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lora_ga_cli.lora.layers import LoraPair
from lora_ga_cli.optimizers.base import OptimizerOptions
from lora_ga_cli.optimizers.grams import Gram, gram, of_symmetric
from lora_ga_cli.optimizers.pairs import ForPairs, Group, PairOptimizer, Side, sides, trained_of
from lora_ga_cli.registry import OPTIMIZERS


class LoraRiteOptions(OptimizerOptions):
    """Options of LoRA-RITE. Both betas are those of ``trainer``."""

    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest L2 norm of the unmagnified gradients of all layers together; larger ones are scaled down. 0 turns it
    off."""
    skip: Annotated[float, Field(ge=0)] = 1.0
    """A factor whose unmagnified gradient has a root mean square above this counts as without a gradient in that step.
    0 turns it off."""
    escape: bool = True
    """Add to the second moment what it lost when its basis turned. The paper has it; the authors' code leaves it off by
    default."""
    eps: Annotated[float, Field(ge=0)] = 1e-6
    """What is added to the square roots of the second moment's eigenvalues before they divide."""


@dataclass(frozen=True)
class Moments:
    """What is kept of one factor of each layer, in the coordinates of an orthonormal basis of the other factor.

    Args:
        first: mean of the preconditioned gradients (layers, d, rank).
        second: mean of the squared unmagnified gradients (layers, rank, rank).
        escape: what the second moment lost when its basis turned (layers, 1, 1).
    """

    first: Tensor
    second: Tensor
    escape: Tensor


def basis_of(other: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of a factor, and what turns gradients into unmagnified ones.

    ``X = U R`` with ``R = (XᵀX)^½``. The authors take a QR decomposition; the optimizer's steps do not depend on which
    orthonormal basis it is, and this one needs decompositions of (rank, rank) matrices only.

    Args:
        other: X, the other factor (..., d_other, rank). Where it has no full rank, neither has U, and the inverse is a
            pseudo-inverse. For a zero X both are zero.

    Returns:
        U (..., d_other, rank) and R⁻¹ (..., rank, rank), which is symmetric.
    """
    inverse = gram(other).power(-0.5).to(other.dtype)
    return other @ inverse, inverse


def rotate(moments: Moments, rotation: Tensor) -> Moments:
    """The moments in a new basis.

    ``V ← P V Pᵀ``, ``M ← M Pᵀ``, and the escaped mass grows by what V lost: the smaller one of the largest fall of an
    eigenvalue and the fall of the trace, where they fell.

    Args:
        rotation: P = Uᵀ U_old (layers, rank, rank).
    """
    second = rotation @ moments.second @ rotation.mT
    falls = of_symmetric(moments.second).values - of_symmetric(second).values
    of_trace = falls.sum(-1, keepdim=True)
    lost = torch.minimum(falls.amax(-1, keepdim=True), of_trace).clamp(min=0).unsqueeze(-1)
    return Moments(moments.first @ rotation.mT, second, moments.escape + lost.to(moments.escape.dtype))


def inverse_root(second: Tensor, escape: Tensor, eps: float) -> Tensor:
    """``1/(√(V + ρI) + ε)`` (layers, rank, rank). Eigenvalues below the rounding of V count as its rounding."""
    found = of_symmetric(second)
    floor = torch.finfo(second.dtype).eps * found.values.amax(-1, keepdim=True)
    roots = (torch.maximum(found.values, floor) + escape.squeeze(-1)).sqrt() + eps
    return Gram(roots, found.vectors).power(-1).to(second.dtype)


def corrected_decay(decay: float, step: Tensor) -> Tensor:
    """``β(1 - βᵗ⁻¹)/(1 - βᵗ)``, with which a running mean is unbiased from step t = 1 on."""
    return decay * (1 - decay ** (step - 1)) / (1 - decay**step)


def update(
    moments: Moments, unmagnified: Tensor, decay1: Tensor, decay2: Tensor, *, escape: bool, eps: float
) -> Moments:
    """The moments after one more gradient; the new first moment is the step in the basis.

    ``V ← β2 V + (1-β2) ḡᵀḡ/d``, ``M ← β1 M + (1-β1) ḡ (V+ρI)^-½``, ``ρ ← β2 ρ``.

    Args:
        moments: in the basis of this step.
        unmagnified: ḡ (layers, d, rank).
        decay1: β1 with its correction (layers, 1, 1), and likewise ``decay2``.
        escape: whether ρ is used.
    """
    squared = unmagnified.mT @ unmagnified / unmagnified.shape[-2]
    second = decay2 * moments.second + (1 - decay2) * squared
    escaped = decay2 * moments.escape if escape else torch.zeros_like(moments.escape)
    preconditioned = unmagnified @ inverse_root(second, escaped, eps)
    return Moments(decay1 * moments.first + (1 - decay1) * preconditioned, second, escaped)


class LoraRite(PairOptimizer):
    """The steps of both factors, each in an orthonormal basis of the other one.

    For B with ``Aᵀ = U R``: the unmagnified gradient is ``ḡ = g_B R⁻¹``, the moments are carried from the last step's
    basis to U, and ``B ← (1 - γλ) B - γ M R⁻¹``; likewise A with the basis of B. The first step moves the product by
    ``-γ√d_out · polar(G U) Uᵀ``, times s. Every moment is a tensor of the state, so a run resumes exactly (the authors'
    code begins with new moments).

    The options ``clip`` and ``skip`` compare gradients with fixed numbers. With both at 0, a loss of another size
    gives the same steps.
    """

    def step_pairs(self, pairs: Sequence[LoraPair], group: Group) -> None:
        all_sides = sides(pairs)
        bases = [basis_of(side.other) for side in all_sides]
        gradients = [side.gradient @ inverse for side, (_, inverse) in zip(all_sides, bases, strict=True)]
        gradients = clipped([skipped(item, group["skip"]) for item in gradients], group["clip"])
        for side, (basis, inverse), unmagnified in zip(all_sides, bases, gradients, strict=True):
            first = self._step_side(side, basis, unmagnified, group)
            rate = float(group["lr"])
            side.move(-rate * (first @ inverse), keep=1 - rate * group["weight_decay"])

    def _step_side(self, side: Side, basis: Tensor, unmagnified: Tensor, group: Group) -> Tensor:
        """The new first moment in the basis, which is the step (layers, d, rank)."""
        layers, _, rank = basis.shape
        parameters = side.parameters
        moments = Moments(
            self.read(parameters, "exp_avg", unmagnified),
            self.read(parameters, "second", basis.new_empty(layers, rank, rank)),
            self.read(parameters, "escape", basis.new_empty(layers, 1, 1)),
        )
        moments = rotate(moments, basis.mT @ self.read(parameters, "basis", basis))
        step = self.count_step(parameters)
        decay1, decay2 = (corrected_decay(beta, step).to(basis) for beta in group["betas"])
        moments = update(moments, unmagnified, decay1, decay2, escape=group["escape"], eps=group["eps"])
        self.write(parameters, exp_avg=moments.first, second=moments.second, escape=moments.escape, basis=basis)
        return moments.first


def skipped(unmagnified: Tensor, largest: float) -> Tensor:
    """Gradients (layers, d, rank), zero in layers where their root mean square is above ``largest`` (0: everywhere
    kept)."""
    if not largest:
        return unmagnified
    means = unmagnified.square().mean((-2, -1), keepdim=True).sqrt()
    return torch.where(means > largest, 0.0, unmagnified)


def clipped(gradients: Sequence[Tensor], largest: float) -> list[Tensor]:
    """Gradients scaled down so that all together have at most the L2 norm ``largest`` (0: unchanged)."""
    if not largest or not gradients:
        return list(gradients)
    norms = [item.square().sum().sqrt().to(gradients[0].device) for item in gradients]
    factor = (largest / torch.stack(norms).norm()).clamp(max=1.0)
    return [item * factor.to(item.device) for item in gradients]


@OPTIMIZERS.register("lora_rite")
class ConfiguredLoraRite(ForPairs):
    """LoRA-RITE (arXiv 2410.20625): both factors preconditioned by (rank, rank) matrices, each in a basis of the other;
    how the product is divided into A and B does not matter."""

    Options = LoraRiteOptions
    optimizer_class = LoraRite

    def state_numbers(self, pair: LoraPair) -> int:
        both = pair.delta_a.numel() + pair.delta_b.numel()
        square = pair.delta_a.shape[0] ** 2
        return len(trained_of(pair)) * (
            both + square + 1
        )  # a moment as large as one factor, a basis as large as the other
