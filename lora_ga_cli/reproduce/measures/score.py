"""The measure ``score``: what ``loraga eval`` computes for a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_ga_cli.registry import MEASURES
from lora_ga_cli.reproduce.measures.base import Cost, Measure, training_cost

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config
    from lora_ga_cli.model.forecast import Pace
    from lora_ga_cli.stages.inputs import Inputs


@MEASURES.register("score")
class Score(Measure):
    """A metric or benchmark score, by the name that ``loraga eval`` gives it: ``accuracy``, ``pass@1``."""

    trains = True
    uses_eval = True

    def compute(self, config: Config) -> dict[str, Any]:
        from lora_ga_cli.stages.eval_targets import target_of_run
        from lora_ga_cli.stages.evaluate import evaluate
        from lora_ga_cli.stages.train import train

        run = train(config)
        return evaluate(target_of_run(run, config))["values"] | {"run": str(run.path)}

    def forecast(self, inputs: Inputs, pace: Pace) -> Cost:
        """The training alone: how long generating and judging answers takes cannot be known from shapes."""
        return training_cost(inputs, pace)

    def check(self, config: Config) -> None:
        from lora_ga_cli.stages.evaluate import check_evaluation

        check_evaluation(config)
