"""What the training loss at the end of a run is the mean of, in the words of the screen, the card and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STEPS = "training_loss_steps"
"""The manifest's entry: over how many optimizer steps the training loss at the end is the mean."""


def steps_of(points: Sequence[Mapping[str, Any]]) -> int | None:
    """Over how many steps the last logged training loss is the mean: those since a loss was logged before.

    Args:
        points: what a run logged; ``step`` counts from 1.

    Returns:
        None if no training loss was logged.
    """
    steps = [point["step"] for point in points if point.get("loss") is not None]
    return None if not steps else steps[-1] - max((step for step in steps if step < steps[-1]), default=0)


def mean_of(steps: int | None) -> str:
    """What the training loss at the end is the mean of, in brackets after a space; empty if it is not known.

    Args:
        steps: as `steps_of` returns them.
    """
    return {None: "", 1: " (of the last step)"}.get(steps, f" (mean of the last {steps} steps)")
