"""The best learning rate of each row: a grid that widens until the best is inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def next_rates(known: Mapping[float, float], grid: Sequence[float], most: int) -> list[float]:
    """The rates to try next; none when the best lies between two others, or enough were tried.

    Args:
        known: the loss of every rate tried so far; one that failed has an infinite loss.
        grid: what to begin with, ascending, evenly spaced in its logarithm.
        most: rates to try at most.
    """
    missing = [rate for rate in grid if rate not in known]
    if missing:
        return missing[: most - len(known)]
    if len(known) >= most:
        return []
    step = grid[1] / grid[0]
    rates = sorted(known)
    best = best_rate(known)
    if best == rates[0]:
        return [float(f"{best / step:.3g}")]
    if best == rates[-1]:
        return [float(f"{best * step:.3g}")]
    return []


def best_rate(known: Mapping[float, float]) -> float:
    """The rate of least loss; of equal ones, the smaller."""
    return min(sorted(known), key=lambda rate: known[rate])


def at_an_edge(known: Mapping[float, float]) -> bool:
    """Whether the best rate is the least or largest that was tried."""
    return best_rate(known) in (min(known), max(known))
