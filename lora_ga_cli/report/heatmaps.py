"""Pictures of matrices: similarities of subspaces, and measures by block and kind of layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_ga_cli.report import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = "viridis"
"""A colormap whose lightness grows evenly, so that it is read without colors too."""
MOST_NUMBERS = 70
"""Cells up to which the values are written into them."""
CELL, NUMBERED_CELL = 0.14, 0.42
"""Inches of a cell without and with its value."""
LEAST_SIDE, LARGEST_SIDE = 1.9, 6.5
"""Inches of a matrix."""
MOST_TICKS = 16
"""Rows or columns up to which each is labelled."""


@dataclass(frozen=True)
class Heatmap:
    """One matrix of a picture.

    Args:
        values: rows of values; None leaves a cell empty.
        rows: a label for each row, from the top.
        columns: a label for each column.
        axes: what rows and columns are.
        limits: the values of the darkest and the lightest color; None takes those of the values.
        form: how a value is written.
    """

    title: str
    values: Sequence[Sequence[float | None]]
    rows: Sequence[str]
    columns: Sequence[str]
    axes: tuple[str, str] = ("", "")
    limits: tuple[float, float] | None = None
    form: str = ".2g"


def heatmaps(grid: Sequence[Sequence[Heatmap]], file: Path, title: str) -> None:
    """Draws matrices in rows.

    Args:
        grid: rows of the picture, from the top.
        file: the PNG file to write.
    """
    across = max(len(row) for row in grid)
    wide = max(_length(item, len(item.columns)) for row in grid for item in row)
    high = max(_length(item, len(item.rows)) for row in grid for item in row)
    labels = max(len(text) for row in grid for item in row for text in item.rows)
    figure = figures._figure((across * (1.1 + wide + 0.07 * labels), 0.6 + len(grid) * (0.9 + high)))
    panels = figure.subplots(len(grid), across, squeeze=False)
    for line, row in zip(panels, grid, strict=True):
        for axes, item in zip(line, [*row, *[None] * (across - len(row))], strict=True):
            if item is None:
                axes.set_axis_off()
            else:
                _draw(axes, item)
    figures._save(figure, file, title)


def _length(item: Heatmap, count: int) -> float:
    """Inches of a side with so many cells."""
    return min(max((NUMBERED_CELL if _numbered(item) else CELL) * count, LEAST_SIDE), LARGEST_SIDE)


def _numbered(item: Heatmap) -> bool:
    return sum(len(row) for row in item.values) <= MOST_NUMBERS


def _draw(axes: Axes, item: Heatmap) -> None:
    shown = [[float("nan") if value is None else value for value in row] for row in item.values]
    low, high = item.limits if item.limits is not None else (None, None)
    image = axes.imshow(shown, cmap=COLORS, aspect="auto", vmin=low, vmax=high, interpolation="nearest")
    axes.set_title(item.title, fontsize=9, parse_math=False)
    for set_ticks, names in ((axes.set_yticks, item.rows), (axes.set_xticks, item.columns)):
        every = max(1, -(-len(names) // MOST_TICKS))
        set_ticks(range(0, len(names), every), list(names[::every]), fontsize=7, parse_math=False)
    if max((len(text) for text in item.columns), default=0) > 4:
        axes.tick_params(axis="x", labelrotation=90)
    axes.set_ylabel(item.axes[0], fontsize=8)
    axes.set_xlabel(item.axes[1], fontsize=8)
    axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02).ax.tick_params(labelsize=7)
    if not _numbered(item):
        return
    bottom, top = image.get_clim()
    for y, row in enumerate(item.values):
        for x, value in enumerate(row):
            if value is not None:
                light = value > (bottom + top) / 2
                color = "black" if light else "white"
                axes.text(x, y, format(value, item.form), ha="center", va="center", fontsize=6, color=color)
