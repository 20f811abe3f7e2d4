"""Predicted and expected classes, and measures of their agreement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Classes:
    """The predicted class of every row, and the right one.

    Args:
        predicted: class numbers from 0.
        expected: the right class numbers, one for each row.
        count: the number of classes, including those that do not occur.
    """

    predicted: Sequence[int]
    expected: Sequence[int]
    count: int

    def accuracy(self) -> float:
        """The share of rows whose class is right."""
        return sum(one == other for one, other in zip(self.predicted, self.expected, strict=True)) / len(self.expected)

    def matthews_correlation(self) -> float:
        """Matthews' correlation coefficient, or its form for more than two classes (Gorodkin 2004).

        From -1 to 1; 0 where it is not defined, for example if every row is predicted as the same class.
        """
        from sklearn.metrics import matthews_corrcoef

        if len({*self.predicted, *self.expected}) < 2:
            return 0.0  # scikit-learn returns this too, with a warning
        return float(matthews_corrcoef(self.expected, self.predicted))

    def f1(self) -> float:
        """F1 of class 1 of two classes; 0 if it neither occurs nor is predicted."""
        from sklearn.metrics import f1_score

        assert self.count == 2
        return float(f1_score(self.expected, self.predicted, labels=[1], average="macro", zero_division=0.0))

    def measures(self) -> dict[str, Callable[[], float]]:
        """The measures that are defined for this number of classes, by name."""
        measures = {"accuracy": self.accuracy, "matthews_correlation": self.matthews_correlation}
        return {**measures, "f1": self.f1} if self.count == 2 else measures

    def verdicts(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """A verdict on every row, with class names if there are any, else with class numbers."""
        pairs = zip(self.predicted, self.expected, strict=True)
        return [
            {
                "predicted": one if names is None else names[one],
                "expected": other if names is None else names[other],
                "correct": one == other,
            }
            for one, other in pairs
        ]
