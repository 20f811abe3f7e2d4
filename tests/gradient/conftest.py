"""The bundled base and 16 of its rows, whose gradients have few directions that matter, as real ones do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from torch import Tensor, nn

from lora_ga_cli.config.compose import compose
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.lora.initialization import first_step_alignment, initial_factors
from lora_ga_cli.stages.estimate import sample
from lora_ga_cli.stages.inputs import prepare_inputs
from tests.gradient import Batch, autograd_in_float64

ROWS, RANK = 16, 8


@dataclass(frozen=True)
class Quickstart:
    """A model and rows, with their exact gradients.

    Args:
        batches: the rows, so many to a micro-batch.
        grads: (d_out, d_in) by layer, in float64.
        best: ``‖G_2r‖ / ‖G‖`` by layer, by numpy.
    """

    model: nn.Module
    batches: Callable[[int], list[Batch]]
    grads: dict[str, Tensor]
    best: dict[str, float]

    def alignments(self, artifact: GradientArtifact) -> dict[str, float]:
        """How well the first step of rank 8 follows the gradient, by layer; 1 is as well as its rank allows."""
        return {
            name: first_step_alignment(grad, *initial_factors(artifact.factors[name], RANK), best=self.best[name])
            for name, grad in self.grads.items()
        }


@pytest.fixture(scope="session")
def quickstart() -> Quickstart:
    inputs = prepare_inputs(compose(["recipe=quickstart", "device=cpu", f"gradient.samples={ROWS}"]))
    rows, model = sample(inputs), inputs.load_model()
    assert len(rows) == ROWS
    grads = autograd_in_float64(model, inputs.collator(rows))
    best = {}
    for name, grad in grads.items():
        singular = np.linalg.svd(grad.numpy(), compute_uv=False)
        best[name] = float(np.linalg.norm(singular[: 2 * RANK]) / np.linalg.norm(singular))

    def batches(size: int) -> list[Batch]:
        return [inputs.collator(rows[begin : begin + size]) for begin in range(0, ROWS, size)]

    return Quickstart(model, batches, grads, best)
