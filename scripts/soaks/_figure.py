"""What a kind of fault has measured: one count, and whether it is what it should be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the result.

    Args:
        name: what was counted, as ``flipped bits that were used without a word``.
        value: the count or the measured value, with its unit.
        goal: what it should be, in words; empty if nothing is asked of it.
        reached: whether the value is what the goal says.
    """

    name: str
    value: str
    goal: str = ""
    reached: bool = True

    def __str__(self) -> str:
        goal = f"   goal: {self.goal}{'' if self.reached else '   NOT REACHED'}" if self.goal else ""
        return f"{self.name:<52} {self.value:>12}{goal}"


def at_most(name: str, count: int, limit: int = 0) -> Figure:
    """A count that may not be larger than a limit."""
    return Figure(name, f"{count:,}", f"{limit:,}" if limit == 0 else f"at most {limit:,}", count <= limit)


def at_least(name: str, count: int, limit: int) -> Figure:
    """A count that may not be smaller than a limit."""
    return Figure(name, f"{count:,}", f"at least {limit:,}", count >= limit)
