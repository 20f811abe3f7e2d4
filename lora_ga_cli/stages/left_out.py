"""Saying which linear layers ``target_modules=all-linear`` leaves out, because they cannot be adapted."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from lora_ga_cli.config.schema import Config
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.report.console import step


def say_left_out(model: nn.Module, config: Config) -> None:
    """Names the layers that are left out, with the reason.

    Args:
        model: before it has an adapter, with or without weights.
    """
    method = method_of(config)
    if "target_modules" not in method.uses:
        return
    reasons = method.left_out(model)
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name in reasons if reasons[name] == reason]
        step("init", f"not adapted, because {reason}: {listed(names)}")


def listed(names: Sequence[str]) -> str:
    """Names of layers, those that differ in the number of their block as one: ``h.*.mlp.gate (12 layers)``."""
    counts: dict[str, int] = {}
    for name in names:
        pattern = re.sub(r"\.\d+\.", ".*.", name)
        counts[pattern] = counts.get(pattern, 0) + 1
    layers = {1: "1 layer"}
    return ", ".join(f"{name} ({layers.get(count, f'{count} layers')})" for name, count in counts.items())
