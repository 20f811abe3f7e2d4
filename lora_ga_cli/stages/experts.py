"""The line about experts that stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lora_ga_cli.methods.base import Method
from lora_ga_cli.model.experts import expert_weights
from lora_ga_cli.model.quantization import count_parameters
from lora_ga_cli.model.targets import ALL_LINEAR
from lora_ga_cli.report.console import step, warn


def say_frozen_experts(method: Method, model: nn.Module) -> None:
    """Says which weights of experts do not train, though linear layers do, and their share of the parameters.

    It is a warning where the options do not say so, because ``target_modules=all-linear`` may be read as all experts
    too.

    Args:
        model: the base model, with or without weights.
    """
    config = method.config
    if "target_modules" not in config.shared_uses:
        return
    adapted = {target.parameter_name for target in method.targets(model).values()}
    frozen = {name: weight for name, weight in expert_weights(model).items() if name not in adapted}
    if not frozen:
        return
    share = sum(weight.numel() for weight in frozen.values()) / count_parameters(model)
    text = f"experts stay as they are: {_endings(list(frozen))}, {share:.1%} of the model's parameters"
    if config.target_modules == ALL_LINEAR and config.target_parameters is None:
        warn(f"{text}, because {method.expert_obstacle(config)}; target_parameters=[] says that this is meant")
    else:
        step("init", text)


def _endings(names: Sequence[str]) -> str:
    return ", ".join(sorted({".".join(name.split(".")[-2:]) for name in names}))
