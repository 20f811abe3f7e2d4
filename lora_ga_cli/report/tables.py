"""Tables for the terminal."""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from lora_ga_cli.report.console import out, say

if TYPE_CHECKING:
    from lora_ga_cli.gradient.artifact import GradientArtifact

NAME_WIDTH = 24
"""Columns that the name of a run has at least; a longer one is continued in another line where room is short."""
MAX_LAYER_LINES = 60
"""A model with more layers than this has one line for each kind of layer, in place of one for each layer."""


def print_comparison(
    rows: Sequence[dict[str, Any]],
    *,
    lower_is_better: Collection[str] = (),
    unranked: Collection[str] = (),
    shares: Collection[str] = (),
) -> None:
    """Prints one line for each run. The best value of each metric is bold. Columns with one value for all runs are
    replaced by a line below the table.

    Args:
        rows: columns by name for each run; those with numbers are metrics.
        lower_is_better: metrics of which the lowest value is the best one, and not the highest.
        unranked: metrics without a best value.
        shares: metrics from 0 to 1, which are shown as percentages.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    metrics = [name for name in columns if isinstance(next(row[name] for row in rows if name in row), float)]
    settings = [name for name in columns if name not in metrics]
    # a base has no settings
    values = {name: {row[name] for row in rows} - {"–"} for name in settings}
    shown = [name for name in settings if name in ("run", "method") or len(values[name]) > 1]
    best = {name: None if name in unranked else _best(name, rows, name in lower_is_better) for name in metrics}
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in shown:
        is_name = name == "run"  # names of runs often differ only at their ends, which must not be cut off
        longest = max(cell_len(str(row[name])) for row in rows)
        narrowest = min(longest, NAME_WIDTH) if is_name else None
        table.add_column(escape(name), no_wrap=not is_name, overflow="fold", min_width=narrowest)
    for name in metrics:
        table.add_column(escape(name.replace("_", " ")), justify="right", no_wrap=True)
    for row in rows:
        cells = [_cell(row.get(name), best[name], name in shares) for name in metrics]
        table.add_row(*(escape(str(row[name])) for name in shown), *cells)
    out.print(table, soft_wrap=False)
    same = [f"{name} {value}" for name in settings if name not in shown for value in values[name]]
    if len(rows) > 1 and same:
        label = "all" if all("–" not in row.values() for row in rows) else "all runs"
        out.print(f"[dim]{label}: {escape(', '.join(same))}[/]")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[str] = ()) -> None:
    """Prints a table. The columns named in ``numeric`` are aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        narrow = index == 0 or column in numeric
        side: Literal["left", "right"] = "right" if column in numeric else "left"
        table.add_column(escape(column), justify=side, overflow="fold", no_wrap=narrow)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    out.print(table, soft_wrap=False)


def gradient_table(artifact: GradientArtifact, rank: int) -> None:
    """Prints how well a first step can follow the gradient: for each layer, or in large models for each kind of layer.

    Args:
        rank: the rank of the adapter, which is shown beside some others.
    """
    is_large = len(artifact.factors) > MAX_LAYER_LINES
    kinds: dict[str, list[str]] = {}
    for name in artifact.factors:
        kinds.setdefault(re.sub(r"\.\d+\.", ".*.", name) if is_large else name, []).append(name)
    ranks = sorted({rank, *(power for power in (1, 4, 16, 64) if power <= artifact.max_rank)})
    measures = [*(artifact.energy(one) for one in ranks), artifact.alignment(rank)]
    columns = ["layer", "shape", "‖G‖", *(f"r={one}" for one in ranks), "aligned"]
    rows = []
    for kind, names in kinds.items():
        shapes = {f"{d_out}×{d_in}" for d_out, d_in in (artifact.shapes[name] for name in names)}
        norms = [artifact.factors[name].norm for name in names]
        line = [kind, shapes.pop() if len(shapes) == 1 else "several", f"{statistics.mean(norms):.1e}"]
        rows.append(line + [f"{statistics.mean(measure[name] for name in names):.1%}" for measure in measures])
    rows.append(["mean", "", "", *(f"{statistics.mean(measure.values()):.1%}" for measure in measures)])
    rows.append(["minimum", "", "", *(f"{min(measure.values()):.1%}" for measure in measures)])
    print_table(columns, rows, numeric=columns[1:])
    how = "estimated with random test vectors" if artifact.info["estimator"] == "sketch" else "exact"
    say("r=N: share of ‖G‖² that the first step of an adapter of rank N can follow")
    say(f"aligned: alignment of the first step at rank {rank}, relative to the best possible one ({how})")


def _best(name: str, rows: Sequence[dict[str, Any]], lowest: bool) -> float | None:
    """The best value of a metric; None if there is only one row."""
    values = [row[name] for row in rows if name in row]
    if len(rows) < 2:
        return None
    return min(values) if lowest else max(values)


def _cell(value: float | None, best: float | None, is_share: bool) -> str:
    if value is None:
        return "–"
    text = f"{value:.1%}" if is_share else f"{value:.4f}"
    return f"[bold green]{text}[/]" if value == best else text
