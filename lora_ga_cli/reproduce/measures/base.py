"""The interface of a measure, and the forecasts that measures share.

Modules of this package import torch and the stages inside functions: `loraga reproduce` imports all of them to check a
table's file, and must list tables without a delay.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config
    from lora_ga_cli.model.forecast import Pace
    from lora_ga_cli.stages.inputs import Inputs


@dataclass(frozen=True)
class Cost:
    """What one cell needs.

    Args:
        memory: peak, in bytes.
        seconds: time on one device.
    """

    memory: float
    seconds: float


class Measure(ABC):
    """What is computed for each cell of a column.

    A new measure is a class in one file, registered with ``@MEASURES.register("name")`` (`lora_ga_cli.registry`).
    Cells that share work are measured one after another by the same instance, which may keep what they share.
    """

    trains: ClassVar[bool]
    """Whether a model is trained. If so, `compute` returns the run's folder as ``run``."""
    uses_eval: ClassVar[bool] = False
    """Whether the ``eval`` options change the values."""

    @abstractmethod
    def compute(self, config: Config) -> dict[str, Any]:
        """The values of a cell by name; a column's ``value`` chooses one of them.

        Raises:
            UserError: a stage failed.
        """

    @abstractmethod
    def forecast(self, inputs: Inputs, pace: Pace) -> Cost:
        """Memory and time of a cell, computed without loading weights."""

    def check(self, config: Config) -> None:  # noqa: B027 - most measures need nothing
        """Checks, before any cell is made, that everything `compute` needs is available.

        Raises:
            UserError: something is missing.
        """

    def shared_work(self, config: Config) -> str | None:
        """A name for the work that a cell shares with others; cells with the same name are made together.

        None: the cell shares nothing.
        """
        if not self.trains:
            return None
        from lora_ga_cli.training.run_folder import find_run

        return str(find_run(config).path)


def training_cost(inputs: Inputs, pace: Pace) -> Cost:
    """The cost of a training, and of the gradient estimation before it if the method needs one."""
    from lora_ga_cli.methods.base import method_of
    from lora_ga_cli.stages.forecast import training_forecast
    from lora_ga_cli.training.arguments import total_steps

    config = inputs.config
    before = estimation_cost(inputs, pace) if method_of(config).needs_gradient else Cost(0, 0)
    memory, step_seconds, _ = training_forecast(inputs, pace)
    seconds = step_seconds * total_steps(config, len(inputs.train.rows))
    return Cost(max(before.memory, memory.total), before.seconds + seconds)


def estimation_cost(inputs: Inputs, pace: Pace) -> Cost:
    """The cost of estimating a gradient."""
    from lora_ga_cli.stages.forecast import estimation_forecast

    memory, seconds = estimation_forecast(inputs, pace)
    return Cost(memory.total, seconds)
