"""The measure ``loss``: the losses of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_ga_cli.registry import MEASURES
from lora_ga_cli.reproduce.measures.base import Cost, Measure, training_cost

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config
    from lora_ga_cli.model.forecast import Pace
    from lora_ga_cli.stages.inputs import Inputs


@MEASURES.register("loss")
class Loss(Measure):
    """``training_loss`` and, if there are rows to validate on, ``validation_loss``, per label in nats."""

    trains = True

    def compute(self, config: Config) -> dict[str, Any]:
        from lora_ga_cli.stages.train import train

        run = train(config)
        losses = {name: run.manifest[name] for name in ("training_loss", "validation_loss")}
        return {name: loss for name, loss in losses.items() if loss is not None} | {"run": str(run.path)}

    def forecast(self, inputs: Inputs, pace: Pace) -> Cost:
        return training_cost(inputs, pace)
