"""Line charts: their data for the script, and the same chart as SVG for readers without JavaScript and for paper.

The script is ``static/charts.js``. It draws every chart of a section's ``data["charts"]`` into the figure that the
macro ``chart`` of ``templates/chart.html`` has made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

SCRIPTS = ("uPlot.iife.min.js", "charts.js")
STYLES = ("uPlot.min.css", "charts.css")
"""The files in ``static/`` that a section with charts needs."""
WIDTH, HEIGHT = 760.0, 300.0
"""Of the SVG, in its own units."""
LEFT, RIGHT, TOP, BOTTOM = 62.0, 20.0, 10.0, 44.0
"""Margins around the area of the lines, in units of the SVG."""
MAX_POINTS = 1000
"""Points of a line that are kept."""
ALL_POINTS = 8_000
"""Points of all lines of a chart that are kept, so that a report of many runs stays small."""
FEWEST_POINTS = 40
"""Points of a line that are kept in any case."""
COLORS = 7
"""Colors of lines in ``static/charts.css``; after them come the same ones, dashed."""
STEPS = (1.0, 2.0, 5.0, 10.0)
"""Steps between ticks, times a power of ten."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        run: the number of the run that it belongs to, which decides its color.
        name: what it shows of the run, such as ``training``.
        points: (x, y), in the order of x.
        strong: drawn thick, with a dot at every point.
    """

    run: int
    name: str
    points: Points
    strong: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart over the steps of training.

    Args:
        key: tells it from all other charts of the page.
        title: what its lines show, with the unit.
        logarithmic: whether a reader may choose a logarithmic scale.
        height: of the drawn chart in pixels.
    """

    key: str
    title: str
    lines: Sequence[Line]
    logarithmic: bool = False
    height: int = 300
    x_title: str = "optimizer step"
    drawn: Sequence[Line] = field(init=False)

    def __post_init__(self) -> None:
        limit = max(FEWEST_POINTS, min(MAX_POINTS, ALL_POINTS // max(len(self.lines), 1)))
        drawn = [Line(line.run, line.name, thinned(finite(line.points), limit), line.strong) for line in self.lines]
        object.__setattr__(self, "drawn", [line for line in drawn if line.points])

    @property
    def left_out(self) -> int:
        """How many finite points are not drawn."""
        return sum(len(finite(line.points)) for line in self.lines) - sum(len(line.points) for line in self.drawn)

    @property
    def data(self) -> dict[str, Any]:
        """Plain data for the script. Numbers have five significant digits."""
        return {
            "key": self.key,
            "title": self.title,
            "xTitle": self.x_title,
            "height": self.height,
            "logarithmic": self.logarithmic and all(y > 0 for line in self.drawn for _, y in line.points),
            "lines": [
                {
                    "run": line.run,
                    "name": line.name,
                    "strong": line.strong,
                    "x": [x for x, _ in line.points],
                    "y": [float(f"{y:.5g}") for _, y in line.points],
                }
                for line in self.drawn
            ],
        }

    @property
    def svg(self) -> Svg:
        """The chart as SVG."""
        return Svg(self)


class Svg:
    """The geometry of a chart, in units of an SVG of `WIDTH` × `HEIGHT`."""

    width, height = WIDTH, HEIGHT
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM

    def __init__(self, chart: Chart):
        xs = [x for line in chart.drawn for x, _ in line.points]
        ys = [y for line in chart.drawn for _, y in line.points]
        self._chart = chart
        self._x_range = _widened(min(xs), max(xs))
        y_ticks = ticks(*_widened(min(ys), max(ys)))
        self._y_range = min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])
        self.y_ticks = [(self._y(value), shown) for value, shown in zip(y_ticks, labels(y_ticks), strict=True)]
        x_ticks = [
            value
            for value in ticks(*self._x_range, count=8, least=1.0)
            if self._x_range[0] <= value <= self._x_range[1]
        ]
        self.x_ticks = [(self._x(value), shown) for value, shown in zip(x_ticks, labels(x_ticks), strict=True)]

    @property
    def paths(self) -> Iterator[tuple[str, str, list[tuple[float, float]]]]:
        """For each line its classes, its path, and the places of its dots."""
        for line in self._chart.drawn:
            places = [(self._x(x), self._y(y)) for x, y in line.points]
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            dots = [(round(x, 1), round(y, 1)) for x, y in places] if line.strong or len(places) == 1 else []
            yield f"{color_class(line.run)} {'strong' if line.strong else 'weak'}", path, dots

    def _x(self, value: float) -> float:
        low, high = self._x_range
        return round(self.left + (value - low) / (high - low) * (self.right - self.left), 1)

    def _y(self, value: float) -> float:
        low, high = self._y_range
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 1)


def color_class(run: int) -> str:
    """The classes that give the lines of a run their color, and dashes where the colors are used up."""
    return f"color-{run % COLORS}" + (" dashed" if run // COLORS % 2 else "")


def finite(points: Points) -> list[tuple[float, float]]:
    """The points without those that are no numbers."""
    return [(x, y) for x, y in points if isinstance(y, int | float) and math.isfinite(y)]


def thinned(points: Points, limit: int) -> list[tuple[float, float]]:
    """At most ``limit`` points: of each of equally long parts, the lowest and the highest one, so that peaks stay.

    The first and the last point stay too.
    """
    if len(points) <= limit:
        return list(points)
    inner, parts = points[1:-1], (limit - 2) // 2
    borders = [round(number * len(inner) / parts) for number in range(parts + 1)]
    kept = {0, len(points) - 1}
    for begin, end in pairwise(borders):
        indices = range(begin + 1, end + 1)
        kept |= {min(indices, key=lambda index: points[index][1]), max(indices, key=lambda index: points[index][1])}
    return [points[index] for index in sorted(kept)]


def ticks(low: float, high: float, count: int = 5, least: float = 0.0) -> list[float]:
    """About ``count`` round numbers whose range contains both ends.

    Args:
        least: the smallest distance between two of them.
    """
    raw = max((high - low) / count, least)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in STEPS if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def labels(values: Sequence[float]) -> list[str]:
    """Numbers of an axis as text, all with the same number of digits after the point."""
    largest = max((abs(value) for value in values), default=0.0)
    if largest and not 1e-3 <= largest < 1e6:
        return [f"{value:.3g}" for value in values]
    digits = max((len(f"{value:.6f}".rstrip("0").partition(".")[2]) for value in values), default=0)
    return [f"{value:,.{digits}f}" for value in values]


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty."""
    margin = 0.0 if high > low else max(abs(low) * 0.1, 1e-6)
    return low - margin, high + margin
