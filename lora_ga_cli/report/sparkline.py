"""A series of numbers as one line of text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

LEVELS = "▁▂▃▄▅▆▇█"
NOT_FINITE = "×"


def sparkline(values: Sequence[float], width: int) -> str:
    """One character for each value, whose height is the value between the smallest and the largest one.

    A series of more than ``width`` values is divided into as many parts of nearly equal length, and each part is shown
    by its mean. A part with a value that is not finite is shown as ``×``. Where all values are equal, they are low.

    Args:
        width: the most characters; 0 gives an empty text.
    """
    count = min(width, len(values))
    bounds = [part * len(values) // count for part in range(count + 1)] if count > 0 else []
    parts = [values[first:last] for first, last in itertools.pairwise(bounds)]
    means = [math.fsum(part) / len(part) if all(map(math.isfinite, part)) else math.nan for part in parts]
    finite = [mean for mean in means if math.isfinite(mean)]
    if not finite:
        return NOT_FINITE * count
    lowest, span = min(finite), max(finite) - min(finite)
    return "".join(_character((mean - lowest) / span if span > 0 else mean - lowest) for mean in means)


def loss_curve(losses: Sequence[float], width: int) -> str:
    """A `sparkline` of the logarithms of losses, because a loss falls most at the beginning; of losses that have no
    logarithm, of themselves."""
    if any(loss <= 0 for loss in losses):
        return sparkline(losses, width)
    return sparkline([math.log(loss) for loss in losses], width)


def _character(height: float) -> str:
    return LEVELS[min(int(height * len(LEVELS)), len(LEVELS) - 1)] if math.isfinite(height) else NOT_FINITE
