"""A picture of how much of the gradient each rank follows, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_ga_cli.report import figures

COLUMNS = 4
"""Panels beside each other at most."""
PANEL_WIDTH = 2.7
ROW_HEIGHT = 0.17
"""Of a layer, in inches."""
SHORTEST_PANEL = 1.2


def energy_heatmaps(
    kinds: Mapping[str, Mapping[str, Mapping[str, float]]], ranks: Sequence[int], file: Path, title: str
) -> None:
    """Draws one panel for each kind of layers: a line for each block, a column for each rank.

    Args:
        kinds: shares from 0 to 1 by rank, of each layer by the name of its block, of each kind.
        ranks: the columns.
        file: the PNG file to write.
    """
    across = min(COLUMNS, len(kinds))
    down = math.ceil(len(kinds) / across)
    lines = max(map(len, kinds.values()))
    height = down * (max(SHORTEST_PANEL, ROW_HEIGHT * lines) + 0.7) + 0.6
    figure = figures._figure((max(7.5, PANEL_WIDTH * across + 1.4), height))
    panels = figure.subplots(down, across, squeeze=False)
    image = None
    for number, axes in enumerate(panels.flat):
        if number >= len(kinds):
            axes.axis("off")
            continue
        kind, layers = list(kinds.items())[number]
        values = [[shares[str(rank)] for rank in ranks] for shares in layers.values()]
        image = axes.imshow(values, aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        axes.set_title(kind, fontsize=9, parse_math=False)
        axes.set_xticks(range(len(ranks)), [str(rank) for rank in ranks], fontsize=7)
        every = max(1, math.ceil(len(layers) / 16))
        shown = range(0, len(layers), every)
        axes.set_yticks(shown, [_block(list(layers)[index]) for index in shown], fontsize=7)
        axes.tick_params(length=2)
    if image is not None:
        bar = figure.colorbar(image, ax=panels, shrink=0.8, pad=0.01)
        bar.set_label("share of the layer's squared gradient", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    figure.supxlabel("rank of the adapter", fontsize=9)
    figure.supylabel("block", fontsize=9)
    figures._save(figure, file, title)


def _block(name: str) -> str:
    """The number of a block, with what stands before it if it is none of ``layers``, ``layer`` or ``h`` alone."""
    parts = name.split(".")
    before = [part for part in parts[:-1] if part in ("encoder", "decoder")]
    return " ".join([*before[:1], parts[-1]]) if name else ""
