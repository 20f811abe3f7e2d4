"""Pictures, for what people would rather look at than read."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ga_cli.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lora_ga_cli.gradient.artifact import GradientArtifact

Points = Sequence[Mapping[str, Any]]
Measured = Mapping[str, tuple[float, float | None]]
"""Mean and standard deviation by row."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart by color-blind readers too."""
LINES = ("-", "--", ":")
"""Styles that tell runs of one color apart."""
WIDE = (7.5, 4.5)
LETTERS = 10
"""Of a title, in an inch."""
FEW = 3
"""Runs whose legend fits inside the picture."""


def loss_curves(runs: Mapping[str, Points], file: Path, title: str) -> None:
    """Draws training loss (thin) and validation loss (thick, dotted at evaluations) of some runs over their steps.

    Args:
        runs: logged points by the run's label.
        file: PNG to write.
    """
    figure = _figure(WIDE)
    axes = figure.add_subplot()
    for index, (label, points) in enumerate(runs.items()):
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": LINES[index // len(COLOURS) % len(LINES)],
        }
        train = [(point["step"], point["loss"]) for point in points if "loss" in point]
        held_out = [(point["step"], point["eval_loss"]) for point in points if "eval_loss" in point]
        if train:
            axes.plot(*zip(*train, strict=True), **style, linewidth=1.2, alpha=0.55, label=label)
        if held_out:
            name = "_" if train else label
            axes.plot(*zip(*held_out, strict=True), **style, linewidth=2.2, marker="o", markersize=4, label=name)
    axes.set(xlabel="optimizer step", ylabel="loss per label (nats)")
    _bare(axes)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if len(runs) > FEW else {}
        legend = axes.legend(frameon=False, fontsize=9, title="thin: training\nthick: validation", **beside)
        legend.get_title().set_fontsize(8)
        for line in legend.get_lines():
            line.set(linewidth=2.2, alpha=1)
        for text in legend.get_texts():
            text.set_parse_math(False)
    _save(figure, file, title)


def coverage(artifact: GradientArtifact, file: Path, title: str) -> None:
    """Draws the share of the gradient's energy that a first step of each rank can follow: mean and least over layers.

    Args:
        file: PNG to write.
    """
    from matplotlib.ticker import MaxNLocator

    ranks = range(1, artifact.max_rank + 1)
    shares = [list(artifact.energy(rank).values()) for rank in ranks]
    figure = _figure(WIDE)
    axes = figure.add_subplot()
    least, mean = [min(values) for values in shares], [sum(values) / len(values) for values in shares]
    most = [max(values) for values in shares]
    axes.fill_between(ranks, least, most, color=COLOURS[0], alpha=0.12, linewidth=0, label="all layers")
    axes.plot(ranks, mean, color=COLOURS[0], linewidth=2.2, marker="o", markersize=3.5, label="mean over layers")
    axes.plot(ranks, least, color=COLOURS[1], linewidth=1.4, marker="o", markersize=3, label="least covered layer")
    axes.set(xlabel="rank of the adapter (its start follows 2 × rank directions)", ylabel="share of gradient energy")
    axes.set(ylim=(0, 1.02), xlim=(min(ranks) - 0.2, max(ranks) + 0.2))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _bare(axes)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    _save(figure, file, title)


def dots(measured: Mapping[str, Measured], paper: Mapping[str, Mapping[str, float]], file: Path, title: str) -> None:
    """Draws a panel a column, and in it a dot a row with its standard deviation, and the paper's value as a diamond.

    Args:
        measured: by column.
        paper: the paper's means by column and row.
        file: PNG to write.
    """
    shown = {column: cells for column, cells in measured.items() if cells}
    rows = list(dict.fromkeys(row for cells in shown.values() for row in cells))
    places = {row: len(rows) - 1 - index for index, row in enumerate(rows)}
    count = max(len(shown), 1)
    figure = _figure((2.2 + 2.6 * count, 1.3 + 0.3 * max(len(rows), 2)))
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for axes, (column, cells) in zip(panels, shown.items(), strict=False):
        theirs = {row: value for row, value in paper.get(column, {}).items() if row in places}
        _panel(axes, cells, theirs, places)
        axes.set_title(column, fontsize=10, parse_math=False)
    panels[0].set_yticks([places[row] for row in rows], rows)
    legend = {label: mark for axes in panels for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if len(legend) > 1:
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=2, frameon=False)
    _save(figure, file, title)


def _panel(axes: Axes, cells: Measured, theirs: Mapping[str, float], places: Mapping[str, int]) -> None:
    """One column's dots, at the rows' places."""
    axes.errorbar(
        [mean for mean, _ in cells.values()],
        [places[row] for row in cells],
        xerr=[spread or 0 for _, spread in cells.values()],
        fmt="o",
        color=COLOURS[0],
        capsize=3,
        label="measured, ± one standard deviation",
    )
    if theirs:
        heights = [places[row] for row in theirs]
        axes.plot(list(theirs.values()), heights, "D", color=COLOURS[1], markersize=5, label="paper")
    edges = [mean + sign * (spread or 0) for mean, spread in cells.values() for sign in (-1, 1)]
    edges += list(theirs.values())
    margin = 0.1 * (max(edges) - min(edges) or 1)
    axes.set_xlim(min(edges) - margin, max(edges) + margin)
    axes.grid(axis="x", alpha=0.25)
    _bare(axes)


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=130, layout="constrained")


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, file: Path, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    wrapped = textwrap.wrap(title, int(LETTERS * figure.get_figwidth()))
    figure.suptitle("\n".join(wrapped), fontsize=11, parse_math=False)
    with atomic_file(file) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
