"""The interface that estimators of the gradient share, and what they may say of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.model.targets import Target


class Estimator(Protocol):
    """Watches backward passes and condenses what it saw into factors, one layer at a time.

    `estimate_gradients` drives it: inside `watch`, for each micro-batch, `begin`, a backward pass of the mean loss,
    `end`; then `factors` once.
    """

    name: str
    """What ``gradient.estimator`` calls it; part of an artifact's key."""

    def watch(self, targets: Mapping[str, Target]) -> AbstractContextManager[None]:
        """Installs hooks and flags; removes them on leaving, whatever happens."""
        ...

    def begin(self, index: int, weight: float) -> None:
        """Announces micro-batch ``index``, whose mean gradient counts ``weight`` times (its number of items)."""
        ...

    def end(self) -> None:
        """Closes the micro-batch.

        Raises:
            GradientError: a layer's gradient is not finite; names the layer and the micro-batch.
        """
        ...

    def factors(self, total: float, capacity: int) -> Iterator[tuple[str, Factors]]:
        """Yields the factors of the gradient's mean over ``total`` items, freeing each layer as it goes.

        Raises:
            GradientError: a layer received no gradient, or one that is zero.
        """
        ...
