"""AdamW's moments when a factor's coordinates change: what a link of a chain begins with, made from what the link
before ended with.

Let the factor A (rank, d_in) of a layer be frozen while B (d_out, rank) trains. B's gradient is ``s·G Aᵀ``, where G
(d_out, d_in) is the weight's gradient. When the next link freezes another A, the moments of B are in the coordinates of
the old one. `change_of_coordinates` is the matrix C with which they are moved (`transport`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Moments = Mapping[str, Tensor]
"""What an optimizer keeps of one parameter, by name: ``step`` (how many steps it has made), ``exp_avg``, …"""


@dataclass(frozen=True)
class Decay:
    """The decay of AdamW's first and second moment, from which its bias correction follows."""

    beta1: float
    beta2: float


def change_of_coordinates(old: Tensor, new: Tensor) -> Tensor:
    """``C = A_new A_old⁺`` (rank, rank): the rows of the old factor that are nearest to those of the new one.

    If G has only rows in the span of A_old, then ``(G A_oldᵀ) Cᵀ = G A_newᵀ`` exactly. For orthonormal factors C is
    ``A_new A_oldᵀ``, LDAdam's matrix (arXiv 2410.16103) transposed.

    Args:
        old: A of the link before, (rank, d_in); for a frozen B, its transpose.
        new: A of the link that begins, likewise.

    Returns:
        C in float64 on the CPU.
    """
    return torch.linalg.lstsq(old.double().cpu().T, new.double().cpu().T).solution.T


def transport(moments: Moments, change: Tensor, decay: Decay) -> dict[str, Tensor]:
    """Moves AdamW's moments of a factor into other coordinates, as LDAdam does (arXiv 2410.16103).

    With the moments m̂ and v̂ after bias correction, ``m̂ ← m̂ Cᵀ`` and ``v̂ ← |(v̂ - m̂∘m̂) (C∘C)ᵀ + (m̂ Cᵀ)∘(m̂ Cᵀ)|``:
    the variance of a sum is taken as if its terms were independent. The correction is then taken back. C = I leaves
    both as they are. (LDAdam does this at every step; here it happens once, when a link begins.)

    Args:
        moments: ``step``, and ``exp_avg`` and ``exp_avg_sq`` of shape (rows, rank): B's, or those of A transposed.
        change: C (rank, rank).

    Returns:
        The same entries, moved.
    """
    step = float(moments["step"])
    if step == 0:
        return dict(moments)
    first, second = 1 - decay.beta1**step, 1 - decay.beta2**step
    mean = moments["exp_avg"].double().cpu() / first
    square = moments["exp_avg_sq"].double().cpu() / second
    moved = mean @ change.T
    variance = (square - mean.square()) @ change.square().T
    like = moments["exp_avg"]
    return {
        **moments,
        "exp_avg": (moved * first).to(like),
        "exp_avg_sq": ((variance + moved.square()).abs() * second).to(like),
    }


def prune(moments: Moments, share: float) -> dict[str, Tensor]:
    """Sets the smallest magnitudes of every moment to zero, as the authors' code of ReLoRA does (arXiv 2307.05695).

    Each moment is pruned by its own magnitudes. What counts steps stays as it is.

    Args:
        share: the share of a tensor's elements that becomes zero.
    """
    return {name: item if item.dim() == 0 else _without_smallest(item, share) for name, item in moments.items()}


def _without_smallest(tensor: Tensor, share: float) -> Tensor:
    order = tensor.abs().flatten().argsort(stable=True)
    result = tensor.clone().flatten()
    result[order[: int(share * len(order))]] = 0
    return result.view_as(tensor)
