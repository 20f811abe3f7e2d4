"""Classes found and expected, and how far they agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Classes:
    """The class found for every row, beside the right one.

    Args:
        found: numbers from 0.
        expected: as many.
        count: how many classes there are, whether they occur or not.
    """

    found: Sequence[int]
    expected: Sequence[int]
    count: int

    def accuracy(self) -> float:
        """The share of rows whose class is right."""
        return sum(one == other for one, other in zip(self.found, self.expected, strict=True)) / len(self.expected)

    def matthews_correlation(self) -> float:
        """Matthews' correlation coefficient, or its form for more than two classes (Gorodkin 2004).

        From -1 to 1, and 0 where the coefficient is not defined, as with one class found everywhere.
        """
        from sklearn.metrics import matthews_corrcoef

        if len({*self.found, *self.expected}) < 2:
            return 0.0  # as the library has it, but it warns
        return float(matthews_corrcoef(self.expected, self.found))

    def f1(self) -> float:
        """F1 of class 1 of two; 0 where it neither occurs nor is found."""
        from sklearn.metrics import f1_score

        assert self.count == 2
        return float(f1_score(self.expected, self.found, labels=[1], average="macro", zero_division=0.0))

    def measures(self) -> dict[str, Callable[[], float]]:
        """What can be computed of these classes, by name."""
        all_counts = {"accuracy": self.accuracy, "matthews_correlation": self.matthews_correlation}
        return {**all_counts, "f1": self.f1} if self.count == 2 else all_counts

    def verdicts(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """A verdict on every row, with the classes' names where there are some."""
        pairs = zip(self.found, self.expected, strict=True)
        return [
            {
                "predicted": one if names is None else names[one],
                "expected": other if names is None else names[other],
                "correct": one == other,
            }
            for one, other in pairs
        ]
