"""Spectra of layers as small charts, one for each kind of layer, as plain data for a template that draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_ga_cli.report.html.heatmap import LEVELS
from lora_ga_cli.report.html.layers import grids

WIDTH, HEIGHT = 156, 118
LEFT, RIGHT, TOP, BOTTOM = 32, 4, 22, 18
"""Room for labels, in pixels."""
FIRST_LEVEL = 4
"""The palest color of a line, which still stands out from the page."""
MOST_LINES = 40
"""Lines of a chart. Of more blocks, some are drawn, evenly spaced."""
MOST_POINTS = 14
"""Points of a line: all of the first ones, and some of the others."""
LEAST = 1e-8
"""The smallest value that is drawn."""


@dataclass(frozen=True)
class Line:
    """The spectrum of a layer: corners of a line in pixels, and the layer in words."""

    points: str
    level: int
    note: str


@dataclass(frozen=True)
class Spectrum:
    """The chart of a kind of layer."""

    title: str
    lines: Sequence[Line]
    ranks: Sequence[tuple[int, str]]
    values: Sequence[tuple[int, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    floor: int = HEIGHT - BOTTOM


def spectra(shares: Mapping[str, Sequence[float]]) -> list[Spectrum]:
    """Charts on one logarithmic scale, in which the color of a line says how deep its block is.

    Args:
        shares: by layer, values that go down, such as ``σ_i² / ‖G‖²``.
    """
    known = [value for values in shares.values() for value in values if value > LEAST]
    if not known:
        return []
    top, bottom = math.ceil(math.log10(max(known))), math.floor(math.log10(min(known)))
    bottom = min(bottom, top - 1)
    longest = max(len(values) for values in shares.values())
    charts = []
    for grid in grids(shares):
        for kind in grid.kinds:
            blocks = [block for block in grid.blocks if (kind, block) in grid.cells]
            every = -(-len(blocks) // MOST_LINES)
            lines = [
                Line(
                    _points(shares[grid.cells[kind, block][0]], longest, top, bottom),
                    FIRST_LEVEL + (LEVELS - 1 - FIRST_LEVEL) * number // max(len(blocks) - 1, 1),
                    kind if block is None else f"{kind}, block {block}",
                )
                for number, block in enumerate(blocks)
                if number % every == 0
            ]
            title = f"{grid.title}: {kind}" if grid.title else kind
            charts.append(Spectrum(title, lines, _ranks(longest), _values(top, bottom)))
    return charts


def _points(values: Sequence[float], longest: int, top: int, bottom: int) -> str:
    chosen = sorted({round((len(values) - 1) * (part / MOST_POINTS) ** 2) for part in range(MOST_POINTS + 1)})
    return " ".join(
        f"{_x(number + 1, longest):.0f},{_y(values[number], top, bottom):.0f}" for number in chosen if values
    )


def _x(number: int, longest: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (number - 1) / max(longest - 1, 1)


def _y(value: float, top: int, bottom: int) -> float:
    room = HEIGHT - TOP - BOTTOM
    exponent = math.log10(max(value, 10.0**bottom))
    return TOP + room * (top - exponent) / (top - bottom)


def _ranks(longest: int) -> list[tuple[int, str]]:
    marks = [1, *(part for part in (longest // 2, longest) if part > 1)]
    return [(round(_x(mark, longest)), str(mark)) for mark in marks]


def _values(top: int, bottom: int) -> list[tuple[int, str]]:
    every = -(-(top - bottom) // 3)
    return [
        (round(_y(10.0**exponent, top, bottom)), "1" if exponent == 0 else f"1e{exponent}")
        for exponent in range(top, bottom - 1, -every)
    ]
