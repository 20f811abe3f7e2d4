"""A measure of tables in one file: how long a training took. A column of a table's file names it:

seconds: {measure: training_time, value: seconds, format: number}
"""

from __future__ import annotations

from typing import Any

from lora_ga_cli.registry import MEASURES
from lora_ga_cli.reproduce.measures.base import Cost, Measure, training_cost


@MEASURES.register("training_time")
class TrainingTime(Measure):
    """``seconds`` of the training."""

    trains = True

    def compute(self, config: Any) -> dict[str, Any]:
        from lora_ga_cli.stages.train import train

        run = train(config)
        return {"seconds": run.manifest["training_seconds"], "run": str(run.path)}

    def forecast(self, inputs: Any, pace: Any) -> Cost:
        return training_cost(inputs, pace)
