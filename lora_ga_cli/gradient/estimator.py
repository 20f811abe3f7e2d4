"""The interface that estimators of the gradient share, and what they may say of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn

from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.model.targets import Target


class Estimator(Protocol):
    """Watches backward passes and condenses what it saw into factors, one layer at a time.

    `estimate_gradients` drives it: inside `watch`, for each pass over the rows, `begin_pass`; for each micro-batch
    `begin`, a backward pass of the mean loss, `end`, `share`; then `end_pass`. At last `factors`, once.

    Several processes may estimate together, each from rows of its own: all of them make the same calls, and get the
    same factors.
    """

    name: str
    """What ``gradient.estimator`` calls it; part of an artifact's key."""
    passes: int
    """How often it wants to see the rows."""

    def watch(self, model: nn.Module, targets: Mapping[str, Target], capacity: int) -> AbstractContextManager[None]:
        """Installs hooks and flags; removes them on leaving, whatever happens.

        Args:
            capacity: singular vectors wanted per target.
        """
        ...

    def begin_pass(self, number: int) -> None:
        """Announces a pass over all rows, from 1."""
        ...

    def begin(self, index: int, weight: float) -> None:
        """Announces micro-batch ``index``, whose mean gradient counts ``weight`` times (its number of items)."""
        ...

    def end(self) -> None:
        """Closes the micro-batch in this process."""
        ...

    def share(self) -> None:
        """Takes in what all processes found in this round of micro-batches; each process calls it once a round."""
        ...

    def end_pass(self) -> None:
        """Closes the pass.

        Raises:
            GradientError: a layer's gradient is not finite; names the layer and the micro-batch.
        """
        ...

    def factors(self, total: float) -> Iterator[tuple[str, Factors]]:
        """Yields the factors of the gradient's mean over ``total`` items, freeing each layer as it goes.

        Raises:
            GradientError: a layer received no gradient, or one that is zero.
        """
        ...


def refuse_bad(names: Sequence[str], micro_batch: int) -> None:
    """Stops at layers whose gradient is not finite."""
    if names:
        raise GradientError(f"the gradient of {_some(names)} is not finite in micro-batch {micro_batch}")


def refuse_silent(names: Sequence[str], why: str) -> None:
    """Stops at layers that no gradient reached."""
    if names:
        raise GradientError(f"no gradient reached {_some(names)}: {why}; or leave it out of target_modules")


def refuse_empty(names: Sequence[str]) -> None:
    """Stops at layers whose gradient is zero."""
    if names:
        raise GradientError(
            f"the gradient of {_some(names)} is zero on all sampled rows, so it has no direction to start from; "
            "take more rows (gradient.samples) or leave it out of target_modules"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more layers" if len(names) > 3 else "")
