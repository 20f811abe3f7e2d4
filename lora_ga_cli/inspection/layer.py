"""All measures of what an adapter changes in a layer, and in all of them together, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lora_ga_cli.inspection.changes import Decomposed, Shares, cut_errors
from lora_ga_cli.inspection.intruders import intruders
from lora_ga_cli.inspection.singular import SingularVectors
from lora_ga_cli.inspection.spectrum import SHOWN_VALUES, shown_ranks
from lora_ga_cli.inspection.subspaces import amplification

OF_BASE = ("weight_norm", "relative_norm", "amplification", "table_7", "intruders")
"""The measures that need the base's weight."""
SHARES = ("within_start", "within_gradient")


def measured(change: Decomposed, start: Shares | None, gradient: Shares | None) -> dict[str, Any]:
    """What is known of a layer's change without the base's weight; the measures `OF_BASE` are None.

    Args:
        start: how much of it lies in the spaces of the initial factors.
        gradient: how much lies in those of the gradient's directions that initialized it.
    """
    return {
        "shape": list(change.shape),
        "rank": change.rank,
        "norm": change.norm,
        "singular": change.singular[:SHOWN_VALUES].tolist(),
        "stable_rank": change.stable_rank,
        "effective_rank": change.effective_rank,
        "within_start": None if start is None else dataclasses.asdict(start),
        "within_gradient": None if gradient is None else dataclasses.asdict(gradient),
        "cut": cut_errors(change, shown_ranks(change.rank)),
        **dict.fromkeys(OF_BASE),
    }


def against_weight(change: Decomposed, weight: Tensor, magnitude: Tensor | None = None) -> dict[str, Any]:
    """The measures `OF_BASE` of a layer.

    Args:
        change: ΔW, on the CPU.
        weight: W (d_out, d_in), float64, on any device.
        magnitude: DoRA's magnitudes m (d_out,), with which the tuned weight is ``m (W + ΔW) / ‖W + ΔW‖`` by row.
    """
    here = Decomposed(*(part.to(weight.device) for part in (change.left, change.singular, change.right)))
    base = SingularVectors(weight)
    table_7 = amplification(here, weight, base.singular)
    found = intruders(base, here, magnitude)
    return {
        "weight_norm": table_7.weight,
        "relative_norm": table_7.change / table_7.weight if table_7.weight else None,
        "amplification": table_7.factor,
        "table_7": {
            "along_change": table_7.along_change,
            "along_weight": table_7.along_weight,
            "along_random": table_7.along_random,
        },
        "intruders": {"count": found.count, "of": found.of, "threshold": found.threshold},
    }


def totals(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The same of all layers together: norms and errors of all their changes as one, means of ranks, shares weighted by
    ``‖ΔW‖²``, and sums of intruders."""
    norms = {name: layer["norm"] for name, layer in layers.items()}
    squares = {name: norm**2 for name, norm in norms.items()}
    whole = sum(squares.values())

    def weighted(values: Mapping[str, float]) -> float | None:
        return sum(squares[name] * value for name, value in values.items()) / whole if whole else None

    largest = max((layer["rank"] for layer in layers.values()), default=0)
    cut = {
        str(rank): (weighted({name: _cut(layer, rank) ** 2 for name, layer in layers.items()}) or 0.0) ** 0.5
        for rank in shown_ranks(largest)
    }
    found: dict[str, Any] = {
        "layers": len(layers),
        "norm": whole**0.5,
        "largest_rank": largest,
        "effective_rank": _mean([layer["effective_rank"] for layer in layers.values()]),
        "stable_rank": _mean([layer["stable_rank"] for layer in layers.values()]),
        "cut": cut,
    }
    for kind in SHARES:
        parts = {name: layer[kind] for name, layer in layers.items() if layer[kind] is not None}
        inside = sum(squares[name] for name in parts)
        found[kind] = (
            {
                side: sum(squares[name] * part[side] for name, part in parts.items()) / inside
                for side in ("left", "right", "both", "either")
            }
            if inside
            else None
        )
    with_base = [layer for layer in layers.values() if layer["intruders"] is not None]
    found["relative_norm"] = found["intruders"] = None
    if with_base:
        known = [layer for layer in with_base if layer["weight_norm"] is not None]
        of_weights = sum(layer["weight_norm"] ** 2 for layer in known) ** 0.5
        changed = sum(layer["norm"] ** 2 for layer in known) ** 0.5
        found["relative_norm"] = changed / of_weights if of_weights else None
        found["intruders"] = {
            "count": sum(layer["intruders"]["count"] for layer in with_base),
            "of": sum(layer["intruders"]["of"] for layer in with_base),
            "threshold": with_base[0]["intruders"]["threshold"],
        }
    return found


def _cut(layer: Mapping[str, Any], rank: int) -> float:
    """The error of a cut to a rank that is below the layer's and a power of two, or not below it."""
    return 0.0 if rank >= layer["rank"] else float(layer["cut"][str(rank)])


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
