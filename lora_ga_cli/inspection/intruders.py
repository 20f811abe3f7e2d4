"""Intruder dimensions (Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228).

An intruder dimension is a leading singular vector of the tuned weight ``W + ΔW`` that resembles no singular vector of
the pre-trained W: its largest absolute cosine to any of them is below a threshold.

W is decomposed completely, since any of its vectors may be the one. Of the tuned weight only the leading vectors are
computed, from the Gram matrix of W and the factors of ΔW: neither ``W + ΔW`` nor ΔW is formed, except for DoRA.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ga_cli.inspection.changes import Decomposed
from lora_ga_cli.inspection.singular import RESOLVED, SingularVectors, gram, leading

LEADING = 10
"""How many singular vectors of the tuned weight are looked at: k of the authors' code, and of PEFT's function."""
THRESHOLD = 0.5
"""ε: the cosine below which a vector is an intruder, as in PEFT's function `reduce_intruder_dimension`."""


@dataclass(frozen=True)
class Intruders:
    """What was found in one layer.

    Args:
        largest_cosines: (k,), of each leading left singular vector of the tuned weight with the singular vector of W
            that it resembles most, in the order of the singular values; 0 for a W of zeros, which has none.
        threshold: ε.
    """

    largest_cosines: Tensor
    threshold: float

    @property
    def count(self) -> int:
        """How many of them are intruders."""
        return int((self.largest_cosines < self.threshold).sum())

    @property
    def of(self) -> int:
        """How many were looked at."""
        return self.largest_cosines.numel()


def intruders(
    base: SingularVectors,
    change: Decomposed,
    magnitude: Tensor | None = None,
    count: int = LEADING,
    threshold: float = THRESHOLD,
) -> Intruders:
    """The intruder dimensions of a layer.

    Args:
        base: of W (d_out, d_in), float64.
        change: ΔW, on the same device.
        magnitude: DoRA's magnitudes m (d_out,), with which the tuned weight is ``m (W + ΔW) / ‖W + ΔW‖`` by row.
        count: how many leading vectors are looked at; at most the rank of the tuned weight, which has no others.
    """
    scales = None if magnitude is None else _scales(magnitude.to(base.matrix), _row_norms(base.matrix, change))
    count = min(count, *base.matrix.shape)
    of_tuned, squares = leading(_gram_of_tuned(base, change, scales), count, base.vectors)
    resolved = squares > RESOLVED**2 * squares[:1]
    of_tuned, squares = of_tuned[:, resolved], squares[resolved]
    if not base.of_left:  # the left vectors follow from the right ones
        of_tuned = base.matrix @ of_tuned + (change.left * change.singular) @ (change.right.T @ of_tuned)
        of_tuned = (of_tuned if scales is None else scales[:, None] * of_tuned) / squares.sqrt()
    cosines = base.cosines(of_tuned)
    largest = cosines.amax(1) if cosines.shape[1] else cosines.new_zeros(len(cosines))
    return Intruders(largest.clamp(max=1.0).cpu(), threshold)


def _scales(magnitude: Tensor, norms: Tensor) -> Tensor:
    """``m / ‖W + ΔW‖`` by row, (d_out,); 0 for a row of zeros, which stays so."""
    return torch.where(norms > 0, magnitude / norms, 0.0)


def _row_norms(weight: Tensor, change: Decomposed) -> Tensor:
    """The norms of the rows of ``W + ΔW``, (d_out,)."""
    left = change.left * change.singular
    squares = weight.square().sum(1) + 2 * (left * (weight @ change.right)).sum(1) + left.square().sum(1)
    return squares.clamp(min=0).sqrt()


def _gram_of_tuned(base: SingularVectors, change: Decomposed, scales: Tensor | None) -> Tensor:
    """``T Tᵀ`` or ``Tᵀ T`` of the tuned weight T, the one of the shorter side.

    With ``ΔW = U S Vᵀ`` it is ``(W + U S Vᵀ)(W + U S Vᵀ)ᵀ = W Wᵀ + P Uᵀ + U Pᵀ + U S² Uᵀ`` with ``P = W V S``, and the
    other one likewise.
    """
    if scales is not None and not base.of_left:
        tuned = base.matrix + (change.left * change.singular) @ change.right.T
        return gram(tuned.mul_(scales[:, None]))
    own, other, matrix = change.left, change.right, base.matrix
    if not base.of_left:
        own, other, matrix = other, own, matrix.T
    crossed = (matrix @ other) * change.singular + 0.5 * own * change.singular.square()
    found = base.gram + crossed @ own.T + own @ crossed.T
    return found if scales is None else scales[:, None] * found * scales
