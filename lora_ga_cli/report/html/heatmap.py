"""Heatmaps of values by layer, as plain data for a template that draws them.

A cell has one of `LEVELS` levels, whose colors are in ``static/heatmap.css``, for light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lora_ga_cli.report.html.layers import Grid, grids

LEVELS = 16
MAX_LOG_RATIO = 30.0
"""If the largest value is more than this many times the smallest one, the scale of colors is logarithmic."""
CELL_HEIGHT = 22
LETTER = 6.1
"""Width of a letter of a label, in pixels."""
WIDTHS = ((12, 28), (24, 18), (36, 14), (48, 11), (64, 8), (96, 6))
"""Width of a cell in pixels, by the largest number of blocks for which it is taken."""
LEAST_WIDTH = 4
WITH_TEXT = 28
"""The narrowest cell that has room for its value."""
NARROW, MEDIUM, WHOLE = 310, 496, 1020
"""Pixels of a third, of a half, and of all of a wide page."""
BETWEEN = 28
"""Pixels between runs that stand beside each other."""
SHRUNK = 1.06
"""How much wider than its place a heatmap may be, which is then drawn that much smaller."""
MOST_RUNS, MOST_LAYERS = 4, 600
"""Runs that are shown beside each other, and layers of all of them."""
Values = Mapping[str, float | None]
"""A value by full name of the layer; None where it was not computed."""


@dataclass(frozen=True)
class Scale:
    """How values become levels of color.

    Args:
        share: whether the values are shares, which are shown as percentages.
        log: whether equal ratios, in place of equal differences, are equally far apart.
    """

    low: float
    high: float
    share: bool = False
    log: bool = False

    def level(self, value: float) -> int:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        if self.log:
            value = math.log(max(value, self.low))
        part = (value - low) / (high - low) if high > low else 0.5
        return min(max(int(part * LEVELS), 0), LEVELS - 1)

    def text(self, value: float) -> str:
        """A value with all digits that are shown of it."""
        return f"{value:.1%}" if self.share else f"{value:.3g}"

    def short(self, value: float) -> str:
        """A value that has room in a cell."""
        if self.share:
            return "100" if value >= 0.9995 else f"{100 * value:.1f}"
        if value and not 0.01 <= abs(value) < 1000:
            return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
        return f"{value:.{2 if abs(value) < 1 else 1 if abs(value) < 100 else 0}f}"


@dataclass(frozen=True)
class Cell:
    """A rectangle.

    Args:
        level: None for a value that was not computed.
        text: inside of it; empty where there is no room.
        note: layer and value in words.
    """

    x: int
    y: int
    level: int | None
    text: str
    note: str


@dataclass(frozen=True)
class Heatmap:
    """One grid of cells, with its labels. Positions and sizes are in pixels.

    Args:
        id: for a script that changes its values; empty if none does.
    """

    id: str
    title: str
    width: int
    height: int
    left: int
    cell: tuple[int, int]
    cells: Sequence[Cell]
    kinds: Sequence[tuple[int, str]]
    blocks: Sequence[tuple[int, str]]


@dataclass(frozen=True)
class Column:
    """The heatmaps of one run."""

    name: str
    maps: Sequence[Heatmap]


@dataclass(frozen=True)
class Figure:
    """One measure of several runs, in the same colors.

    Args:
        id: names it in the page.
        unit: of its values, for the legend.
    """

    id: str
    title: str
    about: str
    unit: str
    scale: Scale
    columns: Sequence[Column]

    @property
    def levels(self) -> range:
        return range(LEVELS)

    @property
    def room(self) -> str:
        """The room that it needs in the page: ``narrow``, ``medium`` or ``wide``."""
        widths = [max((map.width for map in column.maps), default=0) for column in self.columns]
        beside = sum(widths) + BETWEEN * (len(widths) - 1)
        if beside <= NARROW:
            return "narrow"
        if beside <= MEDIUM:
            return "medium"
        # one run, or several that have no room beside each other anyway
        below = len(widths) == 1 or beside > WHOLE
        return "medium" if below and max(widths) <= SHRUNK * MEDIUM else "wide"


def scale_of(values: Iterable[float | None], *, share: bool = False) -> Scale:
    """A scale that does not make small differences look large: it begins at 0, or for large shares at a multiple of a
    tenth. Positive values that are orders of magnitude apart have a logarithmic scale, between the extreme ones."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    if share and high > 0.1:
        return Scale(math.floor(10 * low) / 10, math.ceil(10 * high) / 10, share)
    log = not share and low > 0 and high > MAX_LOG_RATIO * low
    return Scale(low if log or low < 0 else 0.0, high, share, log)


def figure(
    id: str,
    title: str,
    about: str,
    runs: Mapping[str, Values],
    *,
    unit: str = "",
    scale: Scale | None = None,
    share: bool = False,
    changes: bool = False,
) -> Figure:
    """A measure of runs as heatmaps.

    Args:
        runs: values of each run; one without any has no heatmaps.
        scale: of colors; None for that of `scale_of`.
        changes: whether a script changes the values, so that each heatmap needs an id.
    """
    scale = scale or scale_of((value for values in runs.values() for value in values.values()), share=share)
    columns = []
    for run, (name, values) in enumerate(runs.items()):
        if all(value is None for value in values.values()):
            continue
        parts = enumerate(grids(values))
        maps = [heatmap(grid, values, scale, f"{id}-{run}-{number}" if changes else "") for number, grid in parts]
        columns.append(Column(name, maps))
    return Figure(id, title, about, unit, scale, columns)


def heatmap(grid: Grid, values: Values, scale: Scale, id: str = "") -> Heatmap:
    """Draws one grid."""
    count = len(grid.blocks)
    width = next((width for most, width in WIDTHS if count <= most), LEAST_WIDTH)
    left = round(LETTER * max(len(kind) for kind in grid.kinds)) + 6
    means = cell_means(grid, values)
    cells = [
        _cell(grid, kind, block, left + column * width, row * CELL_HEIGHT, means, scale, room=width >= WITH_TEXT)
        for row, kind in enumerate(grid.kinds)
        for column, block in enumerate(grid.blocks)
        if (kind, block) in grid.cells
    ]
    every = next(step for step in (1, 2, 4, 5, 8, 10, 20, 40, 100, 1000) if step * width >= 22)
    height = len(grid.kinds) * CELL_HEIGHT
    return Heatmap(
        id,
        grid.title,
        left + count * width + 2,
        height + 18,
        left,
        (width, CELL_HEIGHT),
        cells,
        [(row * CELL_HEIGHT + CELL_HEIGHT // 2, kind) for row, kind in enumerate(grid.kinds)],
        [
            (left + column * width + width // 2, str(block))
            for column, block in enumerate(grid.blocks)
            if block is not None and column % every == 0
        ],
    )


def cell_means(grid: Grid, values: Values) -> dict[tuple[str, int | None], float | None]:
    """The mean over the layers of each cell; None where no layer has a value."""
    means: dict[tuple[str, int | None], float | None] = {}
    for place, layers in grid.cells.items():
        known = [value for layer in layers if (value := values[layer]) is not None and math.isfinite(value)]
        means[place] = fmean(known) if known else None
    return means


def that_fit(runs: Mapping[str, Any], layers: Callable[[Any], int]) -> list[str]:
    """The names of the first runs whose heatmaps have room in a page; at least one.

    Args:
        layers: the number of layers of a run.
    """
    names, room = list(runs), MOST_LAYERS
    fitting: list[str] = []
    for name in names[:MOST_RUNS]:
        room -= layers(runs[name])
        if room < 0 and fitting:
            break
        fitting.append(name)
    return fitting


def values_by_rank(
    id: str,
    runs: Iterable[Mapping[str, Any]],
    ranks: Sequence[int],
    read: Callable[[Any, int], float | None],
) -> dict[str, list[list[int | None]]]:
    """What a script shows of a figure of shares that `figure` made with ``changes``, by id of the heatmap: for each
    rank the values of all cells, in their order, in thousandths.

    Args:
        runs: layers by name, of each run.
        read: the value of a layer at a rank.
    """
    found = {}
    for run, layers in enumerate(runs):
        for number, grid in enumerate(grids(layers)):
            order = [(kind, block) for kind in grid.kinds for block in grid.blocks if (kind, block) in grid.cells]
            of_ranks = []
            for rank in ranks:
                means = cell_means(grid, {name: read(layer, rank) for name, layer in layers.items()})
                of_ranks.append([None if (value := means[cell]) is None else round(1000 * value) for cell in order])
            found[f"{id}-{run}-{number}"] = of_ranks
    return found


def _cell(
    grid: Grid,
    kind: str,
    block: int | None,
    x: int,
    y: int,
    means: Mapping[tuple[str, int | None], float | None],
    scale: Scale,
    *,
    room: bool,
) -> Cell:
    value, layers = means[kind, block], grid.cells[kind, block]
    where = kind if block is None else f"{kind}, block {block}"
    where += f" (mean of {len(layers)} layers)" if len(layers) > 1 else ""
    if value is None:
        return Cell(x, y, None, "", f"{where}: not computed")
    return Cell(x, y, scale.level(value), scale.short(value) if room else "", f"{where}: {scale.text(value)}")
