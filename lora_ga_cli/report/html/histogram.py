"""Histograms of lengths, as plain data for a template that draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_BARS = 40
WIDTH, HEIGHT = 440, 130
LEFT, BOTTOM, TOP = 44, 34, 8
"""Room for labels around the bars, in pixels."""


@dataclass(frozen=True)
class Bar:
    """Rows of some lengths, at its place in pixels."""

    x: float
    y: float
    width: float
    height: float
    note: str


@dataclass(frozen=True)
class Histogram:
    """Bars with the labels of both axes, each with its place in pixels."""

    bars: Sequence[Bar]
    lengths: Sequence[tuple[float, str]]
    counts: Sequence[tuple[float, str]]
    unit: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    floor: int = HEIGHT - BOTTOM


def histogram(lengths: Sequence[int], unit: str) -> Histogram:
    """How many rows have which length; each bar stands for as many lengths as any other, a whole number."""
    values = np.asarray(lengths)
    low, high = int(values.min()), int(values.max())
    step = _round(-(-(high - low + 1) // MOST_BARS))
    edges = np.arange(low // step * step, high + step + 1, step)
    counts, _ = np.histogram(values, edges)
    if counts[-1] == 0:
        counts, edges = counts[:-1], edges[:-1]
    width = (WIDTH - LEFT - 8) / len(counts)
    room = HEIGHT - BOTTOM - TOP
    most = int(counts.max())
    bars = []
    for number, count in enumerate(counts.tolist()):
        first, last = int(edges[number]), int(edges[number + 1]) - 1
        tall = room * count / most
        where = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        note = f"{where} {unit}: {count:,} rows"
        if count:
            bars.append(
                Bar(
                    round(LEFT + number * width, 1),
                    round(TOP + room - tall, 1),
                    round(max(width - 1, 0.5), 1),
                    round(max(tall, 1), 1),
                    note,
                )
            )
    every = -(-len(counts) // 8)
    places = [(LEFT + number * width, f"{int(edges[number]):,}") for number in range(0, len(counts), every)]
    return Histogram(bars, places, [(TOP + 4, f"{most:,}"), (TOP + room, "0")], unit)


def _round(step: int) -> int:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= step:
                return factor * power
        power *= 10
