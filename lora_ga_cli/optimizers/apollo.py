"""APOLLO (arXiv 2412.05270): SGD whose step sizes come from Adam on a random projection of the gradient."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from lora_ga_cli.optimizers.around_adamw import State
from lora_ga_cli.optimizers.lowrank import ForWeights, LowRankMoments
from lora_ga_cli.registry import OPTIMIZERS

GROWTH = 1.01
"""How many times larger a change may be than the one before (the limiter of Fira, arXiv 2410.01623)."""


class Apollo(LowRankMoments):
    """Every ``interval`` steps, P (rank, short side) is drawn anew, with independent entries from N(0, 1/rank). With
    R = G Pᵀ (long side, rank) for the gradient G (long side, short side), each step is

        ``W ← W - lr · scale · diag(‖Adam(R)_i‖ / ‖R_i‖) G``,

    where R_i is row i. So P is only used to choose a step size for each row (each column, where W has more columns than
    rows). The Frobenius norm of the change grows by no more than 1 % from one step to the next.

    What is known to differ from the authors' package (none of it is verified against the paper):

    - ``scale`` multiplies directly, where the package takes its square root.
    - Norms are compared of changes as they are made, with Adam's bias correction. The package compares them without it,
      and corrects afterwards, which makes the first steps of a run smaller than its learning rate says.
    - A step without gradient does not count as the one before, since every later step would be held near zero.
    """

    def basis(self, gradient: Tensor, number: int, draw: int) -> Tensor:
        short = gradient.shape[1]
        rank = min(self.rank, short)
        digest = hashlib.sha256(f"{self.seed} {number} {draw}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return (torch.randn(rank, short, generator=generator) / rank**0.5).to(gradient.device)

    def expand(self, direction: Tensor, low: Tensor, gradient: Tensor, state: State) -> Tensor:
        sizes = low.norm(dim=1)
        factors = torch.where(sizes > 0, direction.norm(dim=1) / sizes, 0.0)
        change = factors[:, None] * gradient
        norm = change.norm()
        if "norm" in state:
            limited = torch.where(state["norm"] > 0, torch.minimum(norm, GROWTH * state["norm"]), norm)
            change = torch.where(norm > 0, limited / norm, 0.0) * change
            norm = torch.where(norm > 0, limited, state["norm"])
        state["norm"] = norm
        return change


@OPTIMIZERS.register("apollo")
class ConfiguredApollo(ForWeights):
    """The gradient, with a step size for each row from Adam on a random projection of it (APOLLO, arXiv 2412.05270)."""

    optimizer_class = Apollo
