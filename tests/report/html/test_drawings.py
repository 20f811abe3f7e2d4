"""Histograms and spectra: their places are those of the numbers that they stand for."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from lora_ga_cli.report.html.histogram import MOST_BARS, TOP, histogram
from lora_ga_cli.report.html.spectra import LEFT, MOST_LINES, RIGHT, WIDTH, spectra


def bars(lengths: list[int]) -> list[tuple[int, int, int]]:
    """The first and the last length of each bar, and its rows."""
    found = []
    for bar in histogram(lengths, "tokens").bars:
        first, last, count = re.fullmatch(r"([\d,]+)(?: to ([\d,]+))? tokens: ([\d,]+) rows", bar.note).groups()  # type: ignore[union-attr]
        numbers = [int((text or first).replace(",", "")) for text in (first, last, count)]
        found.append((numbers[0], numbers[1], numbers[2]))
    return found


@pytest.mark.parametrize("largest", [1, 7, 39, 95, 2048, 131_072])
def test_every_row_is_in_the_bar_of_its_length(largest: int) -> None:
    lengths = np.random.default_rng(0).integers(1, largest + 1, 500)
    found = bars(lengths.tolist())
    assert [count for _, _, count in found] == [((lengths >= a) & (lengths <= b)).sum() for a, b, _ in found]
    assert sum(count for _, _, count in found) == 500
    assert len(found) <= MOST_BARS + 1
    assert len({last - first for first, last, _ in found}) == 1


def test_heights_are_numbers_of_rows() -> None:
    drawn = histogram([3] * 4 + [5] * 2, "tokens")
    heights = [bar.height for bar in drawn.bars]
    assert heights == [drawn.floor - TOP, (drawn.floor - TOP) / 2]
    assert all(bar.y + bar.height == pytest.approx(drawn.floor) for bar in drawn.bars)


def corners(points: str) -> list[tuple[int, int]]:
    return [tuple(map(int, point.split(","))) for point in points.split()]  # type: ignore[misc]


def test_a_spectrum_that_falls_by_equal_ratios_is_a_straight_line() -> None:
    (chart,) = spectra({"model.layers.0.q_proj": [10.0**-number for number in range(5)]})
    (line,) = chart.lines
    points = corners(line.points)
    slopes = {(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in itertools.pairwise(points)}
    assert max(slopes) - min(slopes) < 0.05
    assert (points[0][0], points[-1][0]) == (LEFT, WIDTH - RIGHT)
    assert [label for _, label in chart.values] == ["1", "1e-2", "1e-4"]


def test_each_kind_has_a_chart_with_a_line_for_each_block() -> None:
    names = [f"model.layers.{block}.{kind}" for block in range(3) for kind in ("q_proj", "v_proj")]
    charts = spectra({name: [0.5, 0.1] for name in names})
    assert [chart.title for chart in charts] == ["q_proj", "v_proj"]
    assert [line.note for line in charts[0].lines] == ["q_proj, block 0", "q_proj, block 1", "q_proj, block 2"]
    assert [line.level for line in charts[0].lines] == [4, 9, 15]


def test_of_many_blocks_some_are_drawn() -> None:
    (chart,) = spectra({f"model.layers.{block}.q_proj": [0.5, 0.1] for block in range(100)})
    assert len(chart.lines) <= MOST_LINES


def test_a_gradient_of_zero_has_no_spectrum() -> None:
    assert spectra({"model.layers.0.q_proj": [0.0, 0.0]}) == []
