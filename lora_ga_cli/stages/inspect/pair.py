"""Two adapters beside each other."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_ga_cli.errors import RunError
from lora_ga_cli.inspection.changes import Decomposed, cosine, decompose, principal_angles
from lora_ga_cli.inspection.kinds import by_kind, one_by_one
from lora_ga_cli.inspection.subspaces import expected_by_chance, random_basis, similarities
from lora_ga_cli.lora.initialization import layer_seed
from lora_ga_cli.lora.links import LowRank
from lora_ga_cli.report.console import say, step, warn
from lora_ga_cli.report.drawn import drawn
from lora_ga_cli.report.heatmaps import Heatmap, heatmaps
from lora_ga_cli.report.spectrum_tables import FIGURES_ELSEWHERE
from lora_ga_cli.report.tables import print_table
from lora_ga_cli.stages.inspect.loaded import Inspected, load
from lora_ga_cli.stages.inspect.options import InspectOptions
from lora_ga_cli.training.run_folder import RunFolder
from lora_ga_cli.training.run_names import names_told_apart

FIGURE = "similarity.png"
SIDES = ("right", "left")
"""Right singular vectors, of A, are directions of inputs; left ones, of B, directions of outputs."""
HEADINGS = {"right": "A (inputs)", "left": "B (outputs)", "random": "A of the first, and random"}


def show_pair(first: Path, second: Path, options: InspectOptions) -> dict[str, Any]:
    """Compares two adapters, prints what it found, and draws the similarities of their subspaces.

    Returns:
        The same as plain data: ``layers``, ``kinds`` with the similarities φ(i, j) averaged over layers, ``totals``.

    Raises:
        RunError: one is no LoRA adapter, or they are not for the same layers.
        InvalidInput: no layer is selected.
    """
    one, other = (load(folder, options.base) for folder in (first, second))
    names = _common(one, other, options)
    layers, matrices = {}, {}
    for name in names:
        layers[name], matrices[name] = _compared(name, one, other, factors=options.factors)
    groups = by_kind(names)
    kinds = {kind: _averaged([matrices[name] for name in members]) for kind, members in groups.items()}
    together = _totals(layers)
    _say(one, other, names)
    _print(layers, one_by_one(names) if options.every_layer else groups, options)
    run = first if RunFolder(first).manifest_file.exists() else None
    file = options.figures_for(f"{one.name}-{other.name}", run, other.name) / FIGURE
    counts = {kind: len(members) for kind, members in groups.items()}
    required = options.figures is not None
    figure = drawn(file, lambda: _draw(kinds, counts, file, one, other, options), FIGURES_ELSEWHERE, required=required)
    return {
        "first": first,
        "second": second,
        "of": "factors" if options.factors else "change",
        "layers": layers,
        "kinds": {kind: {side: matrix.tolist() for side, matrix in found.items()} for kind, found in kinds.items()},
        "totals": together,
        "only_in_first": sorted(set(one.saved.changes) - set(other.saved.changes)),
        "only_in_second": sorted(set(other.saved.changes) - set(one.saved.changes)),
        "figures": [] if figure is None else [figure],
    }


def _names(one: Inspected, other: Inspected) -> list[str]:
    return names_told_apart([one.saved.folder, other.saved.folder])


def _common(one: Inspected, other: Inspected, options: InspectOptions) -> list[str]:
    """The selected layers that both adapters change."""
    theirs = other.saved.changes
    shared = [name for name in one.saved.changes if name in theirs]
    if not shared:
        of_each = zip(_names(one, other), (one, other), strict=True)
        examples = " and ".join(f"{name} changes {next(iter(item.saved.changes))}" for name, item in of_each)
        raise RunError(f"these adapters have no layer in common: {examples}")
    for name in shared:
        shapes = [(change.left.shape[0], change.right.shape[1]) for change in (one.saved.changes[name], theirs[name])]
        if shapes[0] != shapes[1]:
            first, second = _names(one, other)
            raise RunError(
                f"{name} is {shapes[0]} for {first} and {shapes[1]} for {second}: they have other base models"
            )
    options.check_selection(shared, "both adapters")
    return options.selected(shared)


def _compared(
    name: str, one: Inspected, other: Inspected, *, factors: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The measures of one layer as plain data, and its similarities φ by side, with a random subspace as a third."""
    changes = one.saved.changes[name], other.saved.changes[name]
    found = [decompose(change) for change in changes]
    bases = [_bases(item.trained(name, change)) for item, change in zip((one, other), changes, strict=True)]
    if not factors:
        bases = [{"right": change.right, "left": change.left} for change in found]
    matrices = {side: similarities(bases[0][side], bases[1][side]) for side in SIDES}
    (d_out, d_in), columns = found[0].shape, bases[1]["right"].shape[1]
    by_chance = random_basis(d_in, columns, layer_seed(0, name))
    matrices["random"] = similarities(bases[0]["right"], by_chance)
    measures: dict[str, Any] = {
        "shape": [d_out, d_in],
        "ranks": [change.rank for change in found],
        "norms": [change.norm for change in found],
        "effective_ranks": [change.effective_rank for change in found],
        "cosine": cosine(*changes),
    }
    for side, dimension in zip(SIDES, (d_in, d_out), strict=True):
        matrix = matrices[side]
        of_one, of_other = matrix.shape
        measures[side] = {
            "leading": float(matrix[0, 0]) if matrix.numel() else None,
            "all": float(matrix[-1, -1]) if matrix.numel() else None,
            "by_chance": expected_by_chance(of_one, of_other, dimension),
            "angles": _angles(found, side),
        }
    return measures, matrices


def _bases(change: LowRank) -> dict[str, Tensor]:
    """The right singular vectors of A and the left ones of B, ordered by the singular values of each factor."""
    of_b, of_a = (torch.linalg.svd(factor.double(), full_matrices=False) for factor in (change.left, change.right))
    return {"right": of_a.Vh.T, "left": of_b.U}


def _angles(found: Sequence[Decomposed], side: str) -> list[float]:
    """The principal angles between the two spaces in degrees, ascending."""
    first, second = (getattr(change, side) for change in found)
    return (
        [math.degrees(angle) for angle in principal_angles(first, second).tolist()]
        if min(change.rank for change in found)
        else []
    )


def _averaged(matrices: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of the similarities of several layers, up to the smallest rank of any of them."""
    found = {}
    for side in (*SIDES, "random"):
        rows = min(item[side].shape[0] for item in matrices)
        columns = min(item[side].shape[1] for item in matrices)
        found[side] = torch.stack([item[side][:rows, :columns] for item in matrices]).mean(0)
    return found


def _totals(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Norms and cosine of all changes as one vector, and means of the similarities."""
    norms = [sum(layer["norms"][index] ** 2 for layer in layers.values()) ** 0.5 for index in (0, 1)]
    inner = sum((layer["cosine"] or 0.0) * layer["norms"][0] * layer["norms"][1] for layer in layers.values())
    found: dict[str, Any] = {
        "layers": len(layers),
        "norms": norms,
        "cosine": inner / (norms[0] * norms[1]) if all(norms) else None,
    }
    for side in SIDES:
        for measure in ("leading", "all", "by_chance"):
            known = [layer[side][measure] for layer in layers.values() if layer[side][measure] is not None]
            found[f"{side}_{measure}"] = statistics.mean(known) if known else None
    return found


def _say(one: Inspected, other: Inspected, names: Sequence[str]) -> None:
    step("compared", f"{one.saved.folder} and {other.saved.folder}: {len(names)} layers")
    for name, item in zip(_names(one, other), (one, other), strict=True):
        for note in item.saved.notes:
            step("compared", f"{name}: {note}")
    theirs = set(one.saved.changes) ^ set(other.saved.changes)
    if theirs:
        warn(f"{len(theirs)} layers are changed by one of them only, such as {min(theirs)}")


def _print(
    layers: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]], options: InspectOptions
) -> None:
    columns = ["layer", "‖ΔW‖ 1", "‖ΔW‖ 2", "cosine", "A φ(1,1)", "A φ(r,r)", "B φ(1,1)", "B φ(r,r)"]
    rows = []
    for label, names in groups.items():
        part = _totals({name: layers[name] for name in names})
        rows.append([f"{label} ({len(names)})" if len(names) > 1 else label, *_cells(part)])
    if len(rows) > 1:
        rows.append(["all", *_cells(_totals(layers))])
    print_table(columns, rows, numeric=columns[1:])
    what = "the right (A) and left (B) singular vectors of " + ("the factors" if options.factors else "ΔW")
    say(f"φ(i,j): how far the first i and the first j of {what} span one space, from 0 to 1")
    together = _totals(layers)
    chance = " and ".join(
        f"{together[f'{side}_by_chance']:.3f} ({name})" for side, name in zip(SIDES, "AB", strict=True)
    )
    say(f"random subspaces have φ(r,r) {chance} on average; cosine: between the two ΔW")


def _cells(part: Mapping[str, Any]) -> list[str]:
    values = ("cosine", "right_leading", "right_all", "left_leading", "left_all")
    shown = ["–" if part[name] is None else f"{part[name]:.3f}" for name in values]
    return [*(f"{norm:.3g}" for norm in part["norms"]), *shown]


def _draw(
    kinds: Mapping[str, Mapping[str, Tensor]],
    counts: Mapping[str, int],
    file: Path,
    one: Inspected,
    other: Inspected,
    options: InspectOptions,
) -> None:
    grid = []
    for kind, found in kinds.items():
        mean = f", mean of {counts[kind]}" if counts[kind] > 1 else ""
        grid.append([_heatmap(f"{kind}{mean}\n{HEADINGS[side]}", matrix) for side, matrix in found.items()])
    what = "factors" if options.factors else "ΔW"
    first, second = _names(one, other)
    heatmaps(grid, file, f"φ(i, j) of {what}: i directions of {first} (rows), j of {second} (columns)")


def _heatmap(title: str, matrix: Tensor) -> Heatmap:
    rows, columns = ([str(number + 1) for number in range(count)] for count in matrix.shape)
    return Heatmap(title, matrix.tolist(), rows, columns, ("i", "j"), limits=(0.0, 1.0), form=".2f")
