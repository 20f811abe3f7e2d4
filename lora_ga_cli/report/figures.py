"""Pictures: loss curves, coverage of the gradient, and the values of a table."""

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
Convergences = dict[str, tuple[Sequence[float], Sequence[float] | None]]
"""Measured and predicted errors by label."""
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which color-blind readers can distinguish too."""
LINE_STYLES = ("-", "--", ":")
"""Styles that distinguish runs of the same color."""
MARKERS = ("o", "s", "^", "D")
"""Signs that distinguish lines of the same color where a dashed line has a meaning."""
LEAST_ERROR, LARGEST_ERROR = 1e-16, 1e2
"""Errors relative to the first between which they are drawn."""
SIZE = (7.5, 4.5)
"""Width and height of a picture in inches."""
LETTERS_PER_INCH = 10
"""How many letters of a title fit into an inch."""
MAX_RUNS_WITH_LEGEND_INSIDE = 3
"""With more runs than this, the legend is placed beside the axes."""


def loss_curves(runs: Mapping[str, Points], file: Path, title: str) -> None:
    """Draws the training loss (thin) and the validation loss (thick, with a dot at every evaluation) of runs.

    Args:
        runs: the logged points of each run, by the run's label.
        file: the PNG file to write.
    """
    figure = _figure(SIZE)
    axes = figure.add_subplot()
    for index, (label, points) in enumerate(runs.items()):
        style: dict[str, Any] = {
            "color": COLORS[index % len(COLORS)],
            "linestyle": LINE_STYLES[index // len(COLORS) % len(LINE_STYLES)],
        }
        train = [(point["step"], point["loss"]) for point in points if "loss" in point]
        held_out = [(point["step"], point["eval_loss"]) for point in points if "eval_loss" in point]
        if train:
            axes.plot(*zip(*train, strict=True), **style, linewidth=1.2, alpha=0.55, label=label)
        if held_out:
            name = "_" if train else label
            axes.plot(*zip(*held_out, strict=True), **style, linewidth=2.2, marker="o", markersize=4, label=name)
    axes.set(xlabel="optimizer step", ylabel="loss per label (nats)")
    _hide_frame(axes)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        is_crowded = len(runs) > MAX_RUNS_WITH_LEGEND_INSIDE
        position: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if is_crowded else {}
        legend = axes.legend(frameon=False, fontsize=9, title="thin: training\nthick: validation", **position)
        legend.get_title().set_fontsize(8)
        for line in legend.get_lines():
            line.set(linewidth=2.2, alpha=1)
        for text in legend.get_texts():
            text.set_parse_math(False)
    _save(figure, file, title)


def coverage(artifact: GradientArtifact, file: Path, title: str) -> None:
    """Draws the share of ‖G‖² that a first step of each rank can follow: mean and minimum over layers.

    Args:
        file: the PNG file to write.
    """
    from matplotlib.ticker import MaxNLocator

    ranks = range(1, artifact.max_rank + 1)
    shares = [list(artifact.energy(rank).values()) for rank in ranks]
    figure = _figure(SIZE)
    axes = figure.add_subplot()
    mean = [sum(values) / len(values) for values in shares]
    lowest, highest = [min(values) for values in shares], [max(values) for values in shares]
    axes.fill_between(ranks, lowest, highest, color=COLORS[0], alpha=0.12, linewidth=0, label="all layers")
    axes.plot(ranks, mean, color=COLORS[0], linewidth=2.2, marker="o", markersize=3.5, label="mean over layers")
    axes.plot(ranks, lowest, color=COLORS[1], linewidth=1.4, marker="o", markersize=3, label="minimum over layers")
    axes.set(
        xlabel="rank of the adapter (the first step follows 2 × rank directions)", ylabel="share of gradient energy"
    )
    axes.set(ylim=(0, 1.02), xlim=(min(ranks) - 0.2, max(ranks) + 0.2))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _hide_frame(axes)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    _save(figure, file, title)


def convergences(lines: Convergences, file: Path, title: str) -> None:
    """Draws errors by link on a logarithmic scale, and what theory predicts as a dashed line of the same color.

    Args:
        lines: by label, the measured errors relative to the first, and the predicted ones or None.
        file: the PNG file to write.
    """
    figure = _figure((9.5, 5.0))
    axes = figure.add_subplot()
    for index, (label, (errors, predicted)) in enumerate(lines.items()):
        color = COLORS[index % len(COLORS)]
        marker = MARKERS[index // len(COLORS) % len(MARKERS)]
        every = max(len(errors) // 8, 1)
        axes.plot(
            [max(error, LEAST_ERROR) for error in errors],
            color=color,
            linewidth=1.8,
            marker=marker,
            markersize=5,
            markevery=(index % every, every),
            label=label,
        )
        if predicted is not None:
            axes.plot([max(error, LEAST_ERROR) for error in predicted], color=color, linewidth=1.1, linestyle="--")
    axes.set(xlabel="link", ylabel="error, relative to the first", yscale="log")
    axes.set_ylim(top=min(2 * max(max(errors) for errors, _ in lines.values()), LARGEST_ERROR))
    _hide_frame(axes)
    axes.grid(alpha=0.25)
    headline = "solid: measured\ndashed: predicted"
    legend = axes.legend(frameon=False, fontsize=9, title=headline, loc="center left", bbox_to_anchor=(1.0, 0.5))
    legend.get_title().set_fontsize(8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    _save(figure, file, title)


def dots(measured: Mapping[str, Measured], paper: Mapping[str, Mapping[str, float]], file: Path, title: str) -> None:
    """Draws one panel for each column of a table: a dot with its standard deviation for each row, and the paper's value
    as a diamond.

    Args:
        measured: the measured values by column.
        paper: the paper's means by column and row.
        file: the PNG file to write.
    """
    shown = {column: cells for column, cells in measured.items() if cells}
    rows = list(dict.fromkeys(row for cells in shown.values() for row in cells))
    heights = {row: len(rows) - 1 - index for index, row in enumerate(rows)}
    count = max(len(shown), 1)
    figure = _figure((2.2 + 2.6 * count, 1.3 + 0.3 * max(len(rows), 2)))
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for axes, (column, cells) in zip(panels, shown.items(), strict=False):
        in_paper = {row: value for row, value in paper.get(column, {}).items() if row in heights}
        _panel(axes, cells, in_paper, heights)
        axes.set_title(column, fontsize=10, parse_math=False)
    panels[0].set_yticks([heights[row] for row in rows], rows)
    legend = {label: mark for axes in panels for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if len(legend) > 1:
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=2, frameon=False)
    _save(figure, file, title)


def _panel(axes: Axes, cells: Measured, in_paper: Mapping[str, float], heights: Mapping[str, int]) -> None:
    """Draws one column, each row at its height."""
    axes.errorbar(
        [mean for mean, _ in cells.values()],
        [heights[row] for row in cells],
        xerr=[spread or 0 for _, spread in cells.values()],
        fmt="o",
        color=COLORS[0],
        capsize=3,
        label="measured, ± one standard deviation",
    )
    if in_paper:
        axes.plot(
            list(in_paper.values()),
            [heights[row] for row in in_paper],
            "D",
            color=COLORS[1],
            markersize=5,
            label="paper",
        )
    edges = [mean + sign * (spread or 0) for mean, spread in cells.values() for sign in (-1, 1)]
    edges += list(in_paper.values())
    margin = 0.1 * (max(edges) - min(edges) or 1)
    axes.set_xlim(min(edges) - margin, max(edges) + margin)
    axes.grid(axis="x", alpha=0.25)
    _hide_frame(axes)


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=130, layout="constrained")


def _hide_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, file: Path, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    wrapped = textwrap.wrap(title, int(LETTERS_PER_INCH * figure.get_figwidth()))
    figure.suptitle("\n".join(wrapped), fontsize=11, parse_math=False)
    with atomic_file(file) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
