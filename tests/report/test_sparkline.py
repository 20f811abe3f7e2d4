"""A series of numbers as one line of text."""

from __future__ import annotations

import math

import pytest

from lora_ga_cli.report.sparkline import LEVELS, loss_curve, sparkline


@pytest.mark.parametrize(
    ("values", "width", "text"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, LEVELS),
        ([7, 0], 8, "█▁"),
        ([3, 3, 3], 8, "▁▁▁"),
        ([0, 0, 7, 7], 2, "▁█"),
        ([8, 6, 0, 1, 3], 2, "█▁"),
        ([1, math.nan, 2], 8, "▁×█"),
        ([math.inf, math.inf], 8, "××"),
        ([1, 2], 0, ""),
        ([], 8, ""),
    ],
    ids=str,
)
def test_heights_lie_between_the_smallest_and_the_largest_value(values: list[float], width: int, text: str) -> None:
    assert sparkline(values, width) == text


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100, 1001])
def test_it_is_as_long_as_the_series_and_at_most_as_wide_as_asked(count: int) -> None:
    assert len(sparkline([float(number) for number in range(count)], 8)) == min(count, 8)


def test_a_loss_that_halves_again_and_again_falls_on_a_line() -> None:
    assert loss_curve([2.0**-step for step in range(8)], 8) == LEVELS[::-1]


def test_a_loss_without_logarithm_is_shown_too() -> None:
    assert loss_curve([7.0, 0.0], 8) == "█▁"
