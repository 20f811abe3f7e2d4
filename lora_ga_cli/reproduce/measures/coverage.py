"""The measure ``coverage``: how much of the gradient the first step of an adapter can follow."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from lora_ga_cli.registry import MEASURES
from lora_ga_cli.reproduce.measures.base import Cost, Measure, estimation_cost

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config
    from lora_ga_cli.model.forecast import Pace
    from lora_ga_cli.stages.inputs import Inputs


@MEASURES.register("coverage")
class Coverage(Measure):
    """The share of ‖G‖² in the first ``vectors · rank`` singular directions: ``mean`` and ``minimum`` over layers.

    ``vectors`` is how many directions the method begins with for each rank, 2 for LoRA-GA; 1 for methods that begin
    without the gradient, whose change still is a matrix of this rank.
    """

    trains = False

    def compute(self, config: Config) -> dict[str, Any]:
        from lora_ga_cli.inspection.spectrum import energy
        from lora_ga_cli.stages.estimate import estimate
        from lora_ga_cli.stages.inputs import prepare_inputs
        from lora_ga_cli.stages.inspect.gradient import vectors_of

        artifact, vectors = estimate(prepare_inputs(config)), vectors_of(config)
        shares = [energy(factors, vectors, config.rank) for factors in artifact.factors.values()]
        return {"mean": statistics.mean(shares), "minimum": min(shares)}

    def forecast(self, inputs: Inputs, pace: Pace) -> Cost:
        return estimation_cost(inputs, pace)
