"""An optimizer in one file: ``loraga train --code toy_optimizer.py trainer.optimizer=sign_momentum``.

It moves every entry of A and B by the learning rate, in the direction of the sign of a mean of their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from lora_ga_cli.lora.layers import LoraPair
from lora_ga_cli.optimizers.around_adamw import Group
from lora_ga_cli.optimizers.base import OptimizerOptions
from lora_ga_cli.optimizers.pairs import ForPairs, PairOptimizer, sides
from lora_ga_cli.registry import OPTIMIZERS


class SignMomentum(PairOptimizer):
    """Signs of the mean gradient of each factor."""

    def step_pairs(self, pairs: Sequence[LoraPair], group: Group) -> None:
        for side in sides(pairs):
            mean = self.read(side.parameters, "mean", side.gradient).lerp(side.gradient, 1 - group["decay"])
            self.count_step(side.parameters)
            self.write(side.parameters, mean=mean)
            side.move(-float(group["lr"]) * mean.sign())


class SignOptions(OptimizerOptions):
    """Options of the momentum."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the mean of the gradients."""


@OPTIMIZERS.register("sign_momentum")
class ConfiguredSignMomentum(ForPairs):
    """Signs of a mean of the gradients of A and B."""

    Options = SignOptions
    optimizer_class = SignMomentum
