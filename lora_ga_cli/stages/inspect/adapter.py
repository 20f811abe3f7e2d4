"""What an adapter learned, layer by layer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.inspection.changes import decompose
from lora_ga_cli.inspection.kinds import block_of, by_kind, one_by_one
from lora_ga_cli.inspection.layer import OF_BASE, SHARES, measured, totals
from lora_ga_cli.lora.saved import refusal
from lora_ga_cli.report.console import say, step
from lora_ga_cli.report.drawn import drawn
from lora_ga_cli.report.heatmaps import Heatmap, heatmaps
from lora_ga_cli.report.spectrum_tables import FIGURES_ELSEWHERE
from lora_ga_cli.report.tables import print_table
from lora_ga_cli.stages.inspect.loaded import Inspected, load
from lora_ga_cli.stages.inspect.options import InspectOptions
from lora_ga_cli.stages.inspect.weights import measures_of_base
from lora_ga_cli.training.run_folder import RunFolder

CUTS_SHOWN = 4
FIGURE = "adapter.png"
ADAPTER = "the adapter"
Layers = Mapping[str, Mapping[str, Any]]


def inspect_adapter(
    run: RunFolder,
    *,
    with_base: bool,
    artifact: GradientArtifact | None = None,
    options: InspectOptions | None = None,
    kept: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """The part ``adapter`` of a run's inspection; None if what the run trained is no LoRA adapter.

    Args:
        with_base: also what is measured against the base's weights, which are loaded for it.
        artifact: the gradient that the run began with.
        options: which layers are measured against the base, and another place of it.
        kept: the same part of an earlier inspection of the same adapter and gradient, of which stays what is not
            measured now.

    Raises:
        RunError: the base is not that of the run.
        InvalidInput: no layer is selected.
    """
    if refusal(run.path):
        return None
    options = options or InspectOptions()
    inspected = load(run.path, options.base)
    options.check_selection(inspected.saved.changes, ADAPTER)
    found = part_of(inspected, artifact, kept)
    return _with_base(found, inspected, options) if with_base else found


def part_of(
    inspected: Inspected, artifact: GradientArtifact | None = None, kept: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The measures that need no weights of the base, as plain data: ``layers``, ``totals`` and ``notes``."""
    layers: dict[str, dict[str, Any]] = {}
    before: Layers = {} if kept is None else kept["layers"]
    for name, change in inspected.saved.changes.items():
        found = decompose(change)
        start, gradient = inspected.within_start(name, found), inspected.within_gradient(name, found, artifact)
        staying = OF_BASE if artifact is not None else (*OF_BASE, "within_gradient")
        layers[name] = measured(found, start, gradient) | {
            measure: before.get(name, {}).get(measure) for measure in staying
        }
    return {"layers": layers, "totals": totals(layers), "notes": inspected.saved.notes}


def _with_base(found: dict[str, Any], inspected: Inspected, options: InspectOptions) -> dict[str, Any]:
    selected = set(options.selected(inspected.saved.changes))
    measures = measures_of_base(inspected.saved, inspected.base(), selected)
    layers = {name: layer | measures.get(name, {}) for name, layer in found["layers"].items()}
    return {**found, "layers": layers, "totals": totals(layers)}


def show_adapter(folder: Path, options: InspectOptions) -> dict[str, Any]:
    """Looks into an adapter in a folder, prints what it found, and draws figures.

    Raises:
        RunError: it is no LoRA adapter, or its base is not there.
    """
    inspected = load(folder, options.base)
    options.check_selection(inspected.saved.changes, ADAPTER)
    found = part_of(inspected)
    if options.with_base:
        found = _with_base(found, inspected, options)
    shown, file = show_changes(folder, found, options, options.figures_for(inspected.name))
    return {"folder": folder, "adapter": shown, "figures": [] if file is None else [file]}


def show_changes(
    folder: Path, found: Mapping[str, Any], options: InspectOptions, figures: Path
) -> tuple[dict[str, Any], Path | None]:
    """Prints the part ``adapter`` of an inspection, and draws it.

    Returns:
        The part with the selected layers and their totals, and the file of the figure; None if it could not be written.
    """
    layers = {name: found["layers"][name] for name in options.selected(found["layers"])}
    together = totals(layers)
    ranks = sorted({layer["rank"] for layer in layers.values()})
    text = f"rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
    step("adapter", f"{folder}: {text}, {len(layers)} layers, ‖ΔW‖ {together['norm']:.3g}")
    for note in found.get("notes", ()):
        step("adapter", note)
    groups = one_by_one(list(layers)) if options.every_layer else by_kind(layers)
    _print_changes(layers, groups, together)
    if any(layer["intruders"] is not None for layer in layers.values()):
        _print_base(layers, groups, together)
    file = figures / FIGURE
    title = f"{folder.resolve().name}: what the adapter changes, by block and kind of layer"
    drawing = drawn(file, lambda: _draw(layers, file, title), FIGURES_ELSEWHERE, required=options.figures is not None)
    return {**found, "layers": layers, "totals": together}, drawing


def _print_changes(layers: Layers, groups: Mapping[str, Sequence[str]], together: Mapping[str, Any]) -> None:
    cuts = [rank for rank in together["cut"] if int(rank) < together["largest_rank"]][-CUTS_SHOWN:]
    shares = [kind for kind in SHARES if together[kind] is not None]
    headings = {"within_start": "start", "within_gradient": "gradient"}
    columns = ["layer", "rank", "‖ΔW‖", "eff.", "stable", *(f"cut {rank}" for rank in cuts)]
    columns += [headings[kind] for kind in shares]
    rows = []
    for label, names in groups.items():
        part = totals({name: layers[name] for name in names})
        rows.append([f"{label} ({len(names)})" if len(names) > 1 else label, *_cells(part, cuts, shares)])
    if len(rows) > 1:
        rows.append(["all", *_cells(together, cuts, shares)])
    print_table(columns, rows, numeric=columns[1:])
    say("‖ΔW‖ of several layers: the root of the sum of squares; eff., stable: their mean effective and stable rank")
    say("cut r: ‖ΔW - ΔW_r‖ / ‖ΔW‖ of a cut to rank r")
    if "within_start" in shares:
        say("start: the share of ‖ΔW‖² in the row space of A0 or the column space of B0, the initial factors")
    if "within_gradient" in shares:
        say("gradient: the same for the spaces of the gradient's directions that initialized the layer")


def _cells(part: Mapping[str, Any], cuts: Sequence[str], shares: Sequence[str]) -> list[str]:
    cells = [str(part["largest_rank"]), f"{part['norm']:.3g}", f"{part['effective_rank']:.1f}"]
    cells += [f"{part['stable_rank']:.1f}", *(f"{part['cut'].get(rank, 0.0):.1%}" for rank in cuts)]
    return cells + [f"{part[kind]['either']:.1%}" if part[kind] is not None else "–" for kind in shares]


def _print_base(layers: Layers, groups: Mapping[str, Sequence[str]], together: Mapping[str, Any]) -> None:
    columns = ["layer", "‖ΔW‖/‖W‖", "along ΔW", "along W", "random", "factor", "intruders"]
    rows = []
    for label, names in groups.items():
        chosen = {name: layers[name] for name in names if layers[name]["intruders"] is not None}
        if chosen:
            rows.append([f"{label} ({len(chosen)})" if len(chosen) > 1 else label, *_base_cells(chosen)])
    measured_layers = {name: layer for name, layer in layers.items() if layer["intruders"] is not None}
    if len(rows) > 1:
        rows.append(["all", *_base_cells(measured_layers)])
    print_table(columns, rows, numeric=columns[1:])
    threshold = together["intruders"]["threshold"]
    say("along …: mean ‖Uᵀ W V‖ with the first singular vectors of ΔW, of W, and random ones, as many as ΔW has")
    say("factor: mean amplification factor ‖ΔW‖ / ‖Uᵀ W V‖ along ΔW (LoRA, table 7)")
    say(f"intruders: leading singular vectors of W + ΔW whose cosine to every one of W is below {threshold:g}")


def _base_cells(layers: Layers) -> list[str]:
    part = totals(layers)
    sides = ("along_change", "along_weight", "along_random")
    means = [statistics.mean(layer["table_7"][side] for layer in layers.values()) for side in sides]
    factors = [layer["amplification"] for layer in layers.values() if layer["amplification"] is not None]
    relative, found = part["relative_norm"], part["intruders"]
    return [
        "–" if relative is None else f"{relative:.2%}",
        *(f"{value:.3g}" for value in means),
        f"{statistics.mean(factors):.3g}" if factors else "–",
        f"{found['count']} of {found['of']}",
    ]


def _draw(layers: Layers, file: Path, title: str) -> None:
    """Norm and ranks by block and kind of layer, and how much stayed where the adapter began."""
    groups = by_kind(layers)
    blocks = sorted({block_of(name) for name in layers}, key=lambda block: -1 if block is None else block)
    relative = any(layer["relative_norm"] is not None for layer in layers.values())
    measures: dict[str, tuple[Callable[[Mapping[str, Any]], Any], str]] = {
        "effective rank": (lambda layer: layer["effective_rank"], ".1f")
    }
    if relative:
        measures["‖ΔW‖ / ‖W‖"] = (lambda layer: layer["relative_norm"], ".1%")
        measures["intruders"] = (lambda layer: layer["intruders"] and float(layer["intruders"]["count"]), ".2g")
    else:
        measures["‖ΔW‖"] = (lambda layer: layer["norm"], ".2g")
    if any(layer["within_start"] is not None for layer in layers.values()):
        measures["share in the initial spaces"] = (lambda layer: (layer["within_start"] or {}).get("either"), ".1%")
    panels = []
    for heading, (measure, form) in measures.items():
        values = [
            [_mean([measure(layers[name]) for name in names if block_of(name) == block]) for names in groups.values()]
            for block in blocks
        ]
        rows = ["–" if block is None else str(block) for block in blocks]
        panels.append(Heatmap(heading, values, rows, list(groups), ("block", ""), form=form))
    heatmaps([panels], file, title)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None
