"""Tables and figure of a gradient by layer and rank, and of the ranks that would follow a share of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.inspection.kinds import block_name, by_kind
from lora_ga_cli.report.console import number, say, size, step
from lora_ga_cli.report.drawn import drawn
from lora_ga_cli.report.energy_figure import energy_heatmaps
from lora_ga_cli.report.tables import print_table

ENERGY_FILE = "energy.png"
FIGURES_ELSEWHERE = "--figures FOLDER draws it elsewhere"
MEANINGS = {
    2: (
        "r=N: the share of ‖G‖² in the first 2·N singular directions of each layer, which the first step of LoRA-GA at "
        "rank N follows"
    ),
    1: (
        "r=N: the share of ‖G‖² in the first N singular directions of each layer, the most that a matrix of rank N can "
        "have. LoRA begins without them: B is zero and A at random, and its first step follows about N / d_in of ‖G‖²"
    ),
}
"""What the figures are, by singular directions for each rank."""
LIMITS = "energy is that of the first step, and does not tell which rank a training needs: see docs/inspect.md"
"""What the advice does not know."""
TENSORS_ONLY = "memory counts the tensors on the device: the process, with its libraries, takes more"
"""What a forecast of memory leaves out."""
Layers = Mapping[str, Mapping[str, Any]]


def show_energy(
    artifact: GradientArtifact, found: Mapping[str, Any], file: Path, *, every_layer: bool, required: bool = False
) -> Path | None:
    """Prints the energy of a gradient by kind of layer and by block, or by layer, and draws it.

    Args:
        found: the part ``gradient`` of an inspection.
        file: the PNG file to write.
        required: whether the user has given its place.

    Returns:
        The file; None if it could not be written.
    """
    layers: Layers = found["layers"]
    info, shown = artifact.info, list(next(iter(layers.values()))["energy"])
    how = "estimated from a sketch" if info.get("estimator") == "sketch" else "exact"
    rows = f"{info['rows']} rows, " if "rows" in info else ""
    what = "layer" if len(layers) == 1 else "layers"
    step(
        "gradient",
        f"{artifact.key or 'gradient'}: {rows}{number(len(layers))} {what}, {artifact.capacity} singular vectors of "
        f"each are kept ({how})",
    )
    ranks = _ranks(found)
    if every_layer:
        _table("layer", {name: [name] for name in layers}, layers, shown, ranks)
    else:
        _table("kind of layer", by_kind(layers), layers, shown, ranks)
        _table("block", _grouped(layers, lambda name: block_name(name) or "no block"), layers, shown, ranks)
    say(MEANINGS[found["directions_per_rank"]])
    kinds = {
        kind: {block: _followed(of_block, layers, shown) for block, of_block in _grouped(names, block_name).items()}
        for kind, names in by_kind(layers).items()
    }
    title = f"{info.get('model', '')} {artifact.key}".strip()
    ranks_shown = [int(rank) for rank in shown]
    return drawn(file, lambda: energy_heatmaps(kinds, ranks_shown, file, title), FIGURES_ELSEWHERE, required=required)


def show_advice(found: Mapping[str, Any], *, forecast_needs_recipe: bool) -> None:
    """Prints which ranks follow the wanted share of the gradient, and what that tells."""
    advice = found["advice"]
    share = f"{100 * advice['share']:g}% of ‖G‖²"
    if advice["uniform"] is None:
        step("advice", advice["note"])
    else:
        _show_ranks(advice, share, len(found["layers"]))
        if advice["memory_bytes"] is not None:
            step("advice", TENSORS_ONLY)
        if forecast_needs_recipe:
            step("advice", "with a recipe and no key, the memory of training is forecast too: loraga inspect recipe=…")
    step("advice", LIMITS)


def _show_ranks(advice: Mapping[str, Any], share: str, count: int) -> None:
    uniform = advice["uniform"]
    step("advice", f"{share} in {_these(count)} together: rank={uniform['rank']}{_cost(uniform)}")
    less = 1 - advice["parameters"] / uniform["parameters"]
    line = (advice if less > 0 else uniform)["override"]
    if less > 0:
        step("advice", f"as much with ranks by layer{_cost(advice)}, {less:.1%} fewer parameters")
    if advice["note"]:
        step("advice", advice["note"])
    elif line != f"rank={uniform['rank']}":
        only = "an adapter on these layers alone, " if "target_modules=" in line else ""
        step("advice", f"{only}to paste behind loraga train with the other options of the recipe:")
        say()
        say(line)
        say()


def _these(count: int) -> str:
    return f"these {count} layers" if count > 1 else "this layer"


def _cost(part: Mapping[str, Any]) -> str:
    memory = "" if part["memory_bytes"] is None else f", peak memory of training {size(part['memory_bytes'])}"
    return f" ({number(part['parameters'])} parameters{memory})"


def _ranks(found: Mapping[str, Any]) -> dict[str, int]:
    """The advised rank of every layer; empty without advice."""
    advice = found["advice"]
    if advice["rank"] is None:
        return {}
    names = dict.fromkeys(found["layers"])
    ranks = dict.fromkeys(names, advice["rank"])
    for name in names:
        for entry in sorted(advice["rank_pattern"], key=len):
            # experts have the rank of their parameter, whose name is theirs without the number
            if any(one == entry or one.endswith(f".{entry}") for one in (name, name.rpartition(".")[0])):
                ranks[name] = advice["rank_pattern"][entry]
    return ranks


def _grouped(names: Iterable[str], group: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(group(name), []).append(name)
    return groups


def _table(
    heading: str, groups: Mapping[str, Sequence[str]], layers: Layers, shown: Sequence[str], ranks: Mapping[str, int]
) -> None:
    """One line for each group: its share of ``Σ ‖G‖²``, and the share of its own that each rank follows."""
    whole = sum(layer["norm"] ** 2 for layer in layers.values()) or 1.0
    several = any(len(names) > 1 for names in groups.values())
    columns = [heading, *(["layers"] if several else ["shape"]), "of ‖G‖²", *(f"r={rank}" for rank in shown)]
    columns += ["advised"] if ranks else []
    rows = []
    for group, names in groups.items():
        own = sum(layers[name]["norm"] ** 2 for name in names)
        d_out, d_in = layers[names[0]]["shape"]
        line = [group, str(len(names)) if several else f"{d_out}×{d_in}", f"{own / whole:.1%}"]
        line += [f"{share:.1%}" if own else "–" for share in _followed(names, layers, shown).values()]
        rows.append(line + ([_range([ranks[name] for name in names])] if ranks else []))
    print_table(columns, rows, numeric=columns[1:])


def _followed(names: Sequence[str], layers: Layers, shown: Sequence[str]) -> dict[str, float]:
    """By rank, the share of some layers' ``Σ ‖G‖²`` that it follows; 0 for gradients of zero."""
    squares = {name: layers[name]["norm"] ** 2 for name in names}
    own = sum(squares.values()) or 1.0
    return {
        rank: sum(square * layers[name]["energy"][rank] for name, square in squares.items()) / own for rank in shown
    }


def _range(ranks: Sequence[int]) -> str:
    """``4``, or the smallest one, the median and the largest one: ``1–4–9``."""
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low}–{statistics.median_low(ranks)}–{high}"
