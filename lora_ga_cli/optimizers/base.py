"""What an optimizer is: a class that holds everything about it, in one file. ``trainer.optimizer`` chooses it by name.

Learning rate, betas, epsilon, weight decay and the clipping of gradients are options of ``trainer``, the same for every
optimizer, and so is the schedule; what only one optimizer has is in its ``Options``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from lora_ga_cli.config.schema import Config, Section
from lora_ga_cli.model.forecast import state_bytes
from lora_ga_cli.registry import METHODS, OPTIMIZERS


class OptimizerOptions(Section):
    """Options of an optimizer: what ``trainer.optimizer_options`` may contain."""


class ConfiguredOptimizer:
    """An optimizer for one configuration.

    Args:
        config: whose ``trainer.optimizer_options`` are of the class `Options`.
    """

    Options: ClassVar[type[OptimizerOptions]] = OptimizerOptions
    transformers_name: ClassVar[str] = "adamw_torch_fused"
    """transformers' name of the optimizer that the Trainer makes, and that `build` returns or replaces."""

    steps_pairs: ClassVar[bool] = False
    """Whether it looks at the A and the B of a linear layer together."""
    carries_state: ClassVar[bool] = True
    """Whether its state is tensors of each parameter, with which the next link of a chain can begin."""

    def __init__(self, config: Config):
        self.config = config
        self.options: Any = self.Options.model_validate(config.trainer.optimizer_options)

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        """Describes options of a configuration that do not go together with this optimizer, one line each."""
        yield from ()

    def arguments(self) -> dict[str, Any]:
        """Arguments of transformers' TrainingArguments that choose what the Trainer makes."""
        return {"optim": self.transformers_name}

    def build(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        """The Trainer's optimizer, or another one in its place.

        Args:
            optimizer: as transformers made it, with the groups of parameters of the Trainer and of the method.
        """
        return optimizer

    def state_bytes(self, model: nn.Module) -> int:
        """Memory of the gradients and of what the optimizer keeps: AdamW's two moments."""
        return state_bytes(model)


def optimizer_of(config: Config) -> ConfiguredOptimizer:
    """The configured optimizer."""
    optimizer: type[ConfiguredOptimizer] = OPTIMIZERS[config.trainer.optimizer]
    return optimizer(config)


def needs_pairs(config: Config) -> Iterator[str]:
    """The message for a method that does not train LoRA's factors, which this optimizer is made for."""
    if not METHODS[config.method.type].trains_pairs:
        yield (
            f"trainer.optimizer={config.trainer.optimizer} trains LoRA's factors A and B, and method "
            f"{config.method.name} (method.type={config.method.type}) has none: use trainer.optimizer=adamw"
        )
