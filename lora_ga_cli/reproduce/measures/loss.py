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
    """``training_loss`` and, if there are rows to validate on, ``validation_loss``, per label in nats.

    And what the training cost: ``trained_parameters``, ``optimizer_state_bytes``, ``peak_memory_bytes`` (none on a
    CPU), ``seconds_per_step`` (none for fewer than 3 steps) and ``adapter_rank``, the rank (or width) of what is saved,
    which a complete model does not have.
    """

    trains = True

    def compute(self, config: Config) -> dict[str, Any]:
        from lora_ga_cli.stages.train import train
        from lora_ga_cli.training.cost import COST_NAMES

        run = train(config)
        losses = {name: run.manifest[name] for name in ("training_loss", "validation_loss")}
        values = {name: loss for name, loss in losses.items() if loss is not None}
        costs = {name: run.manifest.get(name) for name in (*COST_NAMES, "adapter_rank")}
        return values | costs | {"run": str(run.path)}

    def forecast(self, inputs: Inputs, pace: Pace) -> Cost:
        return training_cost(inputs, pace)
