"""LoRA-RITE (arXiv 2410.20625): adaptive steps that do not depend on how the product is divided into A and B.

The algorithm was read in the authors' PyTorch code, and is not verified against the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lora_ga_cli.lora.layers import LoraPair
from lora_ga_cli.optimizers.around_adamw import Group
from lora_ga_cli.optimizers.base import OptimizerOptions
from lora_ga_cli.optimizers.grams import Gram, decompose, grams
from lora_ga_cli.optimizers.pairs import ForPairs, PairOptimizer, Side, sides, trained_of
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


def bases_of(others: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """An orthonormal basis of each factor, and what turns gradients into unmagnified ones.

    ``X = U R`` with ``R = (XᵀX)^½``. The authors take a QR decomposition; the optimizer's steps do not depend on which
    orthonormal basis it is, and this one needs decompositions of (rank, rank) matrices only.

    Args:
        others: stacks of X, the other factor (layers, d_other, rank). Where it has no full rank, neither has U, and the
            inverse is a pseudo-inverse. For a zero X both are zero.

    Returns:
        U (layers, d_other, rank) and R⁻¹ (layers, rank, rank), which is symmetric.
    """
    inverses = [of.power(-0.5).to(x.dtype) for of, x in zip(grams(others), others, strict=True)]
    return [(x @ inverse, inverse) for x, inverse in zip(others, inverses, strict=True)]


def rotate(moments: Moments, rotation: Tensor) -> Moments:
    """The moments in a new basis: ``V ← P V Pᵀ``, ``M ← M Pᵀ``.

    Args:
        rotation: P = Uᵀ U_old (layers, rank, rank).
    """
    return Moments(moments.first @ rotation.mT, rotation @ moments.second @ rotation.mT, moments.escape)


def lost(old: Sequence[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
    """What second moments lost when their basis turned (layers, 1, 1): the smaller one of the largest fall of an
    eigenvalue and the fall of the trace, where they fell.

    Args:
        old: stacks of V (layers, rank, rank) in the old basis.
        new: the same in the new one.
    """
    found = decompose([*old, *new])
    masses = []
    for before, after, like in zip(found[: len(old)], found[len(old) :], new, strict=True):
        falls = before.values - after.values
        mass = torch.minimum(falls.amax(-1, keepdim=True), falls.sum(-1, keepdim=True)).clamp(min=0)
        masses.append(mass.unsqueeze(-1).to(like.dtype))
    return masses


def inverse_roots(moments: Sequence[Moments], eps: float) -> list[Tensor]:
    """``1/(√(V + ρI) + ε)`` (layers, rank, rank). Eigenvalues below the rounding of V count as its rounding."""
    roots = []
    for one, found in zip(moments, decompose([one.second for one in moments]), strict=True):
        floor = torch.finfo(one.second.dtype).eps * found.values.amax(-1, keepdim=True)
        sizes = (torch.maximum(found.values, floor) + one.escape.squeeze(-1)).sqrt() + eps
        roots.append(Gram(sizes, found.vectors).power(-1).to(one.second.dtype))
    return roots


def corrected_decay(decay: float, step: Tensor) -> Tensor:
    """``β(1 - βᵗ⁻¹)/(1 - βᵗ)``, with which a running mean is unbiased from step t = 1 on."""
    return decay * (1 - decay ** (step - 1)) / (1 - decay**step)


def add(moments: Moments, unmagnified: Tensor, decay: Tensor) -> Moments:
    """The moments with another gradient in the second one: ``V ← β2 V + (1-β2) ḡᵀḡ/d``, ``ρ ← β2 ρ``.

    Args:
        moments: in the basis of this step.
        unmagnified: ḡ (layers, d, rank).
        decay: β2 with its correction (layers, 1, 1).
    """
    squared = unmagnified.mT @ unmagnified / unmagnified.shape[-2]
    second = decay * moments.second + (1 - decay) * squared
    return Moments(moments.first, second, decay * moments.escape)


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
        bases = bases_of([side.other for side in all_sides])
        gradients = [side.gradient @ inverse for side, (_, inverse) in zip(all_sides, bases, strict=True)]
        gradients = clipped([skipped(item, group["skip"]) for item in gradients], group["clip"])
        moments = self._carried(all_sides, [basis for basis, _ in bases], escape=group["escape"])
        steps = [self.count_step(side.parameters) for side in all_sides]
        decays1, decays2 = (
            [corrected_decay(beta, step).to(item) for step, item in zip(steps, gradients, strict=True)]
            for beta in group["betas"]
        )
        moments = [add(*item) for item in zip(moments, gradients, decays2, strict=True)]
        roots, rate = inverse_roots(moments, group["eps"]), float(group["lr"])
        for index, (side, (basis, inverse)) in enumerate(zip(all_sides, bases, strict=True)):
            decay, now = decays1[index], moments[index]
            first = decay * now.first + (1 - decay) * (gradients[index] @ roots[index])
            self.write(side.parameters, exp_avg=first, second=now.second, escape=now.escape, basis=basis)
            side.move(-rate * (first @ inverse), keep=1 - rate * group["weight_decay"])

    def _carried(self, all_sides: Sequence[Side], bases: Sequence[Tensor], *, escape: bool) -> list[Moments]:
        """The moments of the last step in the bases of this one."""
        old = [self._moments(side, basis) for side, basis in zip(all_sides, bases, strict=True)]
        moments = [
            rotate(item, basis.mT @ self.read(side.parameters, "basis", basis))
            for side, basis, item in zip(all_sides, bases, old, strict=True)
        ]
        if not escape:
            return moments
        masses = lost([item.second for item in old], [item.second for item in moments])
        return [replace(item, escape=item.escape + mass) for item, mass in zip(moments, masses, strict=True)]

    def _moments(self, side: Side, basis: Tensor) -> Moments:
        """What was kept in the last step, in its basis."""
        layers, _, rank = basis.shape
        return Moments(
            self.read(side.parameters, "exp_avg", side.gradient),
            self.read(side.parameters, "second", basis.new_empty(layers, rank, rank)),
            self.read(side.parameters, "escape", basis.new_empty(layers, 1, 1)),
        )


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
