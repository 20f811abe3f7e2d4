"""The measure ``coverage``: how much of the gradient LoRA-GA's first step can follow."""

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
    """The share of ‖G‖² that the first ``2 · rank`` singular vectors hold: ``mean`` and ``minimum`` over layers."""

    trains = False

    def compute(self, config: Config) -> dict[str, Any]:
        from lora_ga_cli.stages.estimate import estimate
        from lora_ga_cli.stages.inputs import prepare_inputs

        shares = list(estimate(prepare_inputs(config)).energy(config.rank).values())
        return {"mean": statistics.mean(shares), "minimum": min(shares)}

    def forecast(self, inputs: Inputs, pace: Pace) -> Cost:
        return estimation_cost(inputs, pace)
