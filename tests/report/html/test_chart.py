"""Charts keep the shape of what was logged, and their axes have round numbers."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest

from lora_ga_cli.report.html.chart import ALL_POINTS, Chart, Line, labels, thinned, ticks


def test_few_points_are_all_kept() -> None:
    points = [(1.0, 3.0), (2.0, 2.0)]
    assert thinned(points, 2) == points


@pytest.mark.parametrize("count", [41, 999, 10_000])
def test_of_many_points_both_ends_and_every_peak_are_kept(count: int) -> None:
    points = [(float(step), math.sin(step / count)) for step in range(count)]
    points[count // 3] = (points[count // 3][0], 50.0)
    points[count // 2] = (points[count // 2][0], -50.0)
    kept = thinned(points, 40)
    assert len(kept) <= 40
    assert kept == sorted(set(kept))
    assert {points[0], points[-1], points[count // 3], points[count // 2]} <= set(kept)


def test_a_report_of_many_runs_keeps_fewer_points_of_each() -> None:
    points = [(float(step), 1.0 / step) for step in range(1, 3001)]
    chart = Chart("loss", "Loss", [Line(run, "training", points) for run in range(100)])
    assert sum(len(line.points) for line in chart.drawn) <= ALL_POINTS
    assert chart.left_out == 100 * 3000 - sum(len(line.points) for line in chart.drawn)


@pytest.mark.parametrize(
    ("low", "high"), [(0.2, 2.7), (1, 60), (0, 1e-3), (-4.0, 9.0), (1e-9, 3e-9), (5, 5.1), (0, 1e8)]
)
def test_ticks_are_round_few_and_around_the_values(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 9
    steps = {float(f"{after - before:.6g}") for before, after in pairwise(found)}
    assert len(steps) == 1
    assert re.fullmatch(r"[125]e[+-]\d+", f"{steps.pop():.0e}")


def test_ticks_of_few_steps_are_whole_steps() -> None:
    assert ticks(1, 4, count=8, least=1) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.0, 0.5, 1.0], ["0.0", "0.5", "1.0"]),
        ([0.0, 1000.0, 2000.0], ["0", "1,000", "2,000"]),
        ([0.0, 0.0005, 0.001], ["0.0000", "0.0005", "0.0010"]),
        ([0.0, 1e-5, 2e-5], ["0", "1e-05", "2e-05"]),
    ],
)
def test_labels_have_as_many_digits_as_they_need(values: list[float], shown: list[str]) -> None:
    assert labels(values) == shown


def test_the_drawn_line_is_where_its_values_are() -> None:
    chart = Chart("loss", "Loss", [Line(0, "training", [(0, 1.0), (10, 3.0), (20, 2.0)])])
    ((classes, path, dots),) = chart.svg.paths
    places = [tuple(map(float, place.split())) for place in path.removeprefix("M").split("L")]
    scale = {float(text): y for y, text in chart.svg.y_ticks}
    assert classes == "color-0 weak"
    assert dots == []
    assert [y for _, y in places] == [scale[1.0], scale[3.0], scale[2.0]]
    assert [x for x, _ in places] == [chart.svg.left, (chart.svg.left + chart.svg.right) / 2, chart.svg.right]


@pytest.mark.parametrize("points", [[(5, 2.0)], [(1, 0.0), (2, 0.0)]], ids=["one point", "all the same"])
def test_lines_without_extent_are_drawn(points: list[tuple[float, float]]) -> None:
    chart = Chart("loss", "Loss", [Line(0, "training", points)])
    assert "nan" not in str(list(chart.svg.paths))


def test_a_scale_is_logarithmic_only_where_all_values_are_positive() -> None:
    assert Chart("a", "A", [Line(0, "", [(1, 0.5)])], logarithmic=True).data["logarithmic"]
    assert not Chart("a", "A", [Line(0, "", [(1, 0.0)])], logarithmic=True).data["logarithmic"]
