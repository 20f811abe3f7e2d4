"""Advised ranks as options of `loraga train`, which give exactly these ranks to exactly these layers."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lora_ga_cli.errors import TargetError
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.inspection.advice import as_pattern


@dataclass(frozen=True)
class Only:
    """Some layers of a gradient, as ``target_modules`` and ``target_parameters`` name them.

    Args:
        modules: full names of linear layers.
        parameters: full names of parameters; None where the gradient has none.
        obstacle: why no options name these layers; empty if some do.
    """

    modules: list[str]
    parameters: list[str] | None
    obstacle: str = ""


def parameters_of_experts(artifact: GradientArtifact) -> dict[str, str]:
    """For each layer that is one of several experts, the name of their parameter: they have one rank together."""
    modules = artifact.target_modules
    experts = [
        name for name in artifact.factors if not any(name == item or name.endswith(f".{item}") for item in modules)
    ]
    return {name: name.rpartition(".")[0] for name in experts if name.rpartition(".")[2].isdigit()}


def only_these(selected: Collection[str], layers: Collection[str], experts: Mapping[str, str]) -> Only:
    """Some layers of a gradient as options.

    Args:
        layers: all layers of the gradient.
        experts: see `parameters_of_experts`.
    """
    modules = [name for name in selected if name not in experts]
    parameters = list(dict.fromkeys(experts[name] for name in selected if name in experts))
    missing = next((name for name in layers if experts.get(name) in parameters and name not in selected), None)
    obstacle = ""
    if missing is not None:
        obstacle = f"the experts of {experts[missing]} get an adapter together, and {missing} is not selected"
    return Only(modules, parameters if experts else None, obstacle)


def as_options(
    uniform: int, ranks: Mapping[str, int], before: Mapping[str, int], only: Only | None, largest: Mapping[str, int]
) -> dict[str, Any]:
    """Ranks as plain data: ``rank`` and ``rank_pattern`` by layer, ``uniform`` for one rank, and with both of them
    ``override``: what is pasted, null where there is nothing to paste; ``note`` says why there is not.

    Args:
        uniform: one rank for all.
        ranks: by layer, or parameter of experts.
        before: entries of ``rank_pattern`` that the configuration has already.
        only: the layers that get an adapter; None for those of the configuration.
        largest: the ranks that layers can have at most. Layers that are named one by one must not be too small.
    """
    rank, pattern = as_pattern(ranks)
    found: dict[str, Any] = {"rank": rank, "rank_pattern": pattern, "override": None, "note": ""}
    found["uniform"] = {"rank": uniform, "override": None}
    if only is not None and only.obstacle:
        return found | {"note": f"no options of a training give these ranks: {only.obstacle}"}
    same = {name: uniform if only is None else min(uniform, largest.get(name, uniform)) for name in ranks}
    try:
        rank, pattern = as_pattern(ranks, before)
        found["uniform"]["override"] = _line(*as_pattern(same, before), only)
    except TargetError:
        entries = ", ".join(before)
        return found | {"note": f"no options give these ranks while rank_pattern has other layers ({entries})"}
    return found | {"rank_pattern": pattern, "override": _line(rank, pattern, only)}


def _line(rank: int, pattern: Mapping[str, int], only: Only | None) -> str:
    words = [f"rank={rank}"]
    if pattern:
        words.append(f"rank_pattern={{{', '.join(f'{name}: {value}' for name, value in pattern.items())}}}")
    if only is not None:
        words.append(f"target_modules=[{','.join(only.modules)}]")
        if only.parameters is not None:
            words.append(f"target_parameters=[{','.join(only.parameters)}]")
    return shlex.join(words)
