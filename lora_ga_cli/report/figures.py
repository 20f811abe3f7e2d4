"""Pictures, for what people would rather look at than read."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ga_cli.files import atomic_file

if TYPE_CHECKING:
    from lora_ga_cli.gradient.artifact import GradientArtifact

Points = Sequence[Mapping[str, Any]]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart by colour-blind readers too."""


def loss_curves(runs: Mapping[str, Points], file: Path, title: str) -> None:
    """Draws training loss (thin) and validation loss (thick, dotted at evaluations) of some runs over their steps.

    Args:
        runs: logged points by the run's label.
        file: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for index, (label, points) in enumerate(runs.items()):
        colour = COLOURS[index % len(COLOURS)]
        train = [(point["step"], point["loss"]) for point in points if "loss" in point]
        held_out = [(point["step"], point["eval_loss"]) for point in points if "eval_loss" in point]
        if train:
            axes.plot(*zip(*train, strict=True), color=colour, linewidth=1.2, alpha=0.55, label=f"{label}, training")
        if held_out:
            axes.plot(
                *zip(*held_out, strict=True),
                color=colour,
                linewidth=2.2,
                marker="o",
                markersize=4,
                label=f"{label}, validation",
            )
    axes.set(xlabel="optimizer step", ylabel="loss per label (nats)")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        for text in axes.legend(frameon=False, fontsize=9).get_texts():
            text.set_parse_math(False)
    with atomic_file(file) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def coverage(artifact: GradientArtifact, file: Path, title: str) -> None:
    """Draws the share of the gradient's energy that a first step of each rank can follow: mean and least over layers.

    Args:
        file: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    ranks = range(1, artifact.max_rank + 1)
    shares = [list(artifact.energy(rank).values()) for rank in ranks]
    figure = Figure(figsize=(7.5, 4.5), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    least, mean = [min(values) for values in shares], [sum(values) / len(values) for values in shares]
    most = [max(values) for values in shares]
    axes.fill_between(ranks, least, most, color=COLOURS[0], alpha=0.12, linewidth=0, label="all layers")
    axes.plot(ranks, mean, color=COLOURS[0], linewidth=2.2, marker="o", markersize=3.5, label="mean over layers")
    axes.plot(ranks, least, color=COLOURS[1], linewidth=1.4, marker="o", markersize=3, label="least covered layer")
    axes.set(xlabel="rank of the adapter (its start follows 2 × rank directions)", ylabel="share of gradient energy")
    axes.set(ylim=(0, 1.02), xlim=(min(ranks) - 0.2, max(ranks) + 0.2))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    with atomic_file(file) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def dots(
    measured: Mapping[str, Mapping[str, tuple[float, float | None]]],
    paper: Mapping[str, Mapping[str, float]],
    file: Path,
    title: str,
) -> None:
    """Draws a panel a column, and in it a dot a row with its standard deviation, and the paper's value as a diamond.

    Args:
        measured: mean and standard deviation by column and row.
        paper: the paper's means by column and row.
        file: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {column: cells for column, cells in measured.items() if cells}
    rows = list(dict.fromkeys(row for cells in shown.values() for row in cells))
    height = 1.3 + 0.3 * max(len(rows), 2)
    figure = Figure(figsize=(2.2 + 2.6 * max(len(shown), 1), height), dpi=130, layout="constrained")
    panels = figure.subplots(1, max(len(shown), 1), sharey=True, squeeze=False)[0]
    places = {row: len(rows) - 1 - index for index, row in enumerate(rows)}
    for axes, (column, cells) in zip(panels, shown.items(), strict=False):
        axes.errorbar(
            [mean for mean, _ in cells.values()],
            [places[row] for row in cells],
            xerr=[spread or 0 for _, spread in cells.values()],
            fmt="o",
            color=COLOURS[0],
            capsize=3,
            label="measured, ± one standard deviation",
        )
        theirs = {row: value for row, value in paper.get(column, {}).items() if row in places}
        if theirs:
            axes.plot(
                list(theirs.values()),
                [places[row] for row in theirs],
                "D",
                color=COLOURS[1],
                markersize=5,
                label="paper",
            )
        edges = [value for mean, spread in cells.values() for value in (mean - (spread or 0), mean + (spread or 0))]
        edges += list(theirs.values())
        margin = 0.1 * (max(edges) - min(edges) or 1)
        axes.set_xlim(min(edges) - margin, max(edges) + margin)
        axes.set_title(column, fontsize=10, parse_math=False)
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks([places[row] for row in rows], rows)
    if any(paper.values()):
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle("\n".join(textwrap.wrap(title, 60)), fontsize=11, parse_math=False)
    with atomic_file(file) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
