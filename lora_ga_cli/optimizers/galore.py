"""GaLore (arXiv 2403.03507): Adam in the leading singular subspace of the gradient."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lora_ga_cli.optimizers.around_adamw import State
from lora_ga_cli.optimizers.lowrank import ForWeights, LowRankMoments, LowRankOptions
from lora_ga_cli.registry import OPTIMIZERS


class GaLore(LowRankMoments):
    """Every ``interval`` steps, P (rank, short side) becomes the leading singular vectors of the gradient G (long side,
    short side) of that step. Each step is ``W ← W - lr · scale · Adam(G Pᵀ) P``.

    The moments are kept as they are when P changes, as in the authors' code. So the steps after it depend on the signs
    of the singular vectors, which a decomposition leaves open; here the largest entry of each is positive.
    """

    def basis(self, gradient: Tensor, number: int, draw: int) -> Tensor:
        exact = gradient if gradient.dtype == torch.float64 else gradient.float()
        vectors = torch.linalg.svd(exact, full_matrices=False).Vh[: self.rank]
        largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
        return vectors * torch.where(largest < 0, -1.0, 1.0)

    def expand(self, direction: Tensor, low: Tensor, gradient: Tensor, state: State) -> Tensor:
        return direction @ state["basis"]


@OPTIMIZERS.register("galore")
class ConfiguredGaLore(ForWeights):
    """Adam on the gradient's projection onto its leading singular vectors (GaLore, arXiv 2403.03507)."""

    optimizer_class = GaLore

    class Options(LowRankOptions):
        """GaLore's defaults are those of transformers; for the GLUE tasks, the authors' README has rank 4, interval 500
        and scale 4."""

        scale: Annotated[float, Field(gt=0)] = 0.25
        """The steps of linear layers are multiplied by this number."""
