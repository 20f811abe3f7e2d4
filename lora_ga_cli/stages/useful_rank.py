"""The warning about a rank that is larger than the layers can use."""

from __future__ import annotations

from torch import nn

from lora_ga_cli.lora.layers import trained_parameters
from lora_ga_cli.methods.base import Method
from lora_ga_cli.report.console import number, warn
from lora_ga_cli.stages.left_out import listed


def warn_of_unused_rank(method: Method, model: nn.Module) -> None:
    """Names the layers whose rank is larger than their smaller side, that side, and how many parameters it costs.

    Args:
        model: with the adapter, with or without weights.
    """
    found = method.products(model)
    wide = {name: item for name, item in found.items() if item.rank > item.largest}
    if not wide:
        return
    limits = sorted({item.largest for item in wide.values()}, reverse=True)
    every = len(wide) == len(found)
    parts = [f"{limit} in {listed([name for name in wide if wide[name].largest == limit])}" for limit in limits]
    if every and len(limits) == 1:
        parts = [f"{limits[0]} in all {number(len(wide))} of them"]
    ranks = sorted({item.rank for item in wide.values()})
    given = f"rank {ranks[0]}" if len(ranks) == 1 else f"a rank of {ranks[0]} to {ranks[-1]}"
    unused, trained = sum(item.unused for item in wide.values()), trained_parameters(model)
    pattern = "rank_pattern" in method.config.shared_uses
    if every:
        hint = f"rank={limits[0]} is the largest that any layer uses"
    else:
        hint = "rank_pattern gives single layers a lower rank" if pattern else "a lower rank costs less"
    warn(
        f"{given} is more than the layers can use: the largest useful rank is {'; '.join(parts)}. {number(unused)} "
        f"of {number(trained)} trained parameters add nothing ({hint})"
    )
