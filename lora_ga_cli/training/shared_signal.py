"""Whether a signal stops a training: the same answer in every process, though only some may have received it."""

from __future__ import annotations

from torch import Tensor

from lora_ga_cli.interruption import name_of, requested
from lora_ga_cli.report.console import warn


class SharedSignal:
    """The signals of all processes that train together.

    Args:
        processes: how many train together. One alone needs no agreement.
    """

    def __init__(self, processes: int):
        self._processes = processes
        self._announced = False
        self.count: Tensor | None = None
        """How many processes had a signal when the step began, a scalar on the device; None with one process."""
        self.agreed = False
        """Whether all processes know of a signal that one of them has."""

    @property
    def stops(self) -> bool:
        """Whether training stops after this step."""
        return self.agreed if self._processes > 1 else requested() is not None

    def announce(self) -> None:
        """Says once that a signal has come, and what follows."""
        signal = requested()
        if signal is not None and not self._announced:
            self._announced = True
            again = "; Ctrl-C again stops at once, without it" if name_of(signal) == "Ctrl-C" else ""
            warn(f"{name_of(signal)}: training stops after this step, and a checkpoint is written{again}")
