"""The interface of a measure, and the forecasts that measures share.

Modules of this package import torch and the stages inside functions: `loraga reproduce` imports all of them to check a
table's file, and must list tables without a delay.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ga_cli.errors import Fault

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
    needs_model: ClassVar[bool] = True
    """Whether a cell is a configuration of a training. If not, see `measures.model_free.ModelFreeMeasure`."""

    @classmethod
    def configure(cls, overrides: Sequence[str], user_dir: Path | None = None) -> Any:
        """What a cell's overrides describe, and what `compute` gets: a configuration.

        Args:
            user_dir: a folder with recipes and choices of the user.

        Raises:
            InvalidInput: everything that is wrong with the overrides.
        """
        from lora_ga_cli.config.compose import compose

        return compose([*overrides, *_flags(user_dir)], one_of_many=True)

    @classmethod
    def faults_of(cls, overrides: Sequence[str], user_dir: Path | None = None) -> list[Fault]:
        """What is wrong with overrides of all cells, before they are joined with those of a cell."""
        from lora_ga_cli.config.check import check

        return check([*overrides, *_flags(user_dir)], complete=False)[1]

    @abstractmethod
    def compute(self, config: Config) -> dict[str, Any]:
        """The values of a cell by name; a column's ``value`` chooses one of them. None: this cell has no such value.

        Raises:
            UserError: a stage failed.
        """

    @abstractmethod
    def forecast(self, inputs: Inputs, pace: Pace) -> Cost:
        """Memory and time of a cell, computed without loading weights."""

    def draw(self, rows: Mapping[str, tuple[Any, dict[str, Any]]], folder: Path, title: str) -> list[Path]:
        """Draws figures of what was computed; returns their files. Loss curves of runs are drawn without it.

        Args:
            rows: for each row of the table, what `configure` gave for its first seed, and the values.
            folder: the table's folder.
            title: the table's title.
        """
        return []

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


def _flags(user_dir: Path | None) -> list[str]:
    return [] if user_dir is None else ["--config-dir", str(user_dir)]


def training_cost(inputs: Inputs, pace: Pace) -> Cost:
    """The cost of a training, and of the gradient estimation before it if the method needs one."""
    from lora_ga_cli.methods.base import method_of
    from lora_ga_cli.stages.costs import training_forecast

    config = inputs.config
    before = estimation_cost(inputs, pace) if method_of(config).needs_gradient else Cost(0, 0)
    memory, step_seconds, _ = training_forecast(inputs, pace)
    seconds = step_seconds * inputs.total_steps
    return Cost(max(before.memory, memory.total), before.seconds + seconds)


def estimation_cost(inputs: Inputs, pace: Pace) -> Cost:
    """The cost of estimating a gradient."""
    from lora_ga_cli.stages.costs import estimation_forecast

    memory, seconds = estimation_forecast(inputs, pace)
    return Cost(memory.total, seconds)
