"""The interface that all estimators of the gradient share, and the errors about layers that they raise.

An estimator is one file in `lora_ga_cli.gradient.estimators`, with a class that registers itself:

    @ESTIMATORS.register("sketch")
    class SketchEstimator: ...
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, Self

from torch import nn

from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.model.targets import Target


class EstimatorOptions(Protocol):
    """The options of the configuration's section ``gradient`` that estimators read."""

    @property
    def passes(self) -> int: ...

    @property
    def offload(self) -> bool: ...


class Estimator(Protocol):
    """Watches backward passes and condenses what it sees into factors, one layer at a time.

    `estimate_gradients` drives it. Inside `watch`, for each pass over the rows, it calls `begin_pass`; for each
    micro-batch `begin_micro_batch`, then runs a backward pass of the mean loss, then `end_micro_batch` and
    `combine_processes`; and at the end of the pass `end_pass`. Last it calls `factors`, once.

    Several processes may estimate together, each from its own rows. All of them make the same calls and get the same
    factors.
    """

    name: str
    """Its value of ``gradient.estimator``; part of an artifact's key."""
    passes: int
    """The number of passes over the rows."""

    @classmethod
    def from_options(cls, options: EstimatorOptions) -> Self:
        """The estimator as the configuration describes it."""
        ...

    def watch(self, model: nn.Module, targets: Mapping[str, Target], capacity: int) -> AbstractContextManager[None]:
        """Installs hooks and sets flags; undoes both on leaving, whatever happens.

        Args:
            capacity: singular vectors wanted per target.
        """
        ...

    def begin_pass(self, number: int) -> None:
        """Announces a pass over all rows, counted from 1."""
        ...

    def begin_micro_batch(self, index: int, weight: float) -> None:
        """Announces a micro-batch.

        Args:
            index: counted from 1.
            weight: its number of items; its mean gradient counts so many times.
        """
        ...

    def end_micro_batch(self) -> None:
        """Closes the micro-batch in this process."""
        ...

    def combine_processes(self) -> None:
        """Adds the micro-batches of all processes; each process calls this once after each micro-batch."""
        ...

    def end_pass(self) -> None:
        """Closes the pass.

        Raises:
            GradientError: a layer's gradient is not finite; names the layer and the micro-batch.
        """
        ...

    def factors(self, total: float) -> Iterator[tuple[str, Factors]]:
        """Yields the factors of the mean gradient over ``total`` items, and frees each layer as it goes.

        Experts that no token was routed to are left out (`refuse_unreached_layers`).

        Raises:
            GradientError: another layer received no gradient, or one that is zero.
        """
        ...


def refuse_nonfinite_gradients(names: Sequence[str], micro_batch: int) -> None:
    """Raises an error about layers whose gradient is not finite, if there are any.

    Raises:
        GradientError
    """
    if names:
        raise GradientError(f"the gradient of {_listed(names)} is not finite in micro-batch {micro_batch}")


def refuse_unreached_layers(unreached: Collection[str], targets: Collection[str], why: str) -> None:
    """Raises an error about layers that no gradient reached, if there are any but experts.

    An expert is not called where no token is routed to it. It is recognized by its name: ``….3.….7.…`` is one of a list
    inside a block, and another one of the same list was reached.

    Args:
        targets: the names of all layers.

    Raises:
        GradientError
    """
    lists = {_any_expert(name) for name in set(targets) - set(unreached)} - {None}
    if names := [name for name in targets if name in unreached and _any_expert(name) not in lists]:
        raise GradientError(f"no gradient reached {_listed(names)}: {why}; or leave it out of target_modules")


def _any_expert(name: str) -> str | None:
    """The name without the last of its numbers; None if it has fewer than two."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join([*parts[: numbers[-1]], *parts[numbers[-1] + 1 :]]) if len(numbers) > 1 else None


def refuse_zero_gradients(names: Sequence[str]) -> None:
    """Raises an error about layers whose gradient is zero, if there are any.

    Raises:
        GradientError
    """
    if names:
        raise GradientError(
            f"the gradient of {_listed(names)} is zero on all sampled rows, so there is no direction to initialize "
            "from; take more rows (gradient.samples) or leave it out of target_modules"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more layers" if len(names) > 3 else "")
