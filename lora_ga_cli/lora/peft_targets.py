"""What PEFT's configuration calls the weights that get an adapter: ``target_modules`` and ``target_parameters``."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn

from lora_ga_cli.model.targets import Target, shortest_names

WRAPPED = ".base_layer"
"""What PEFT puts into the name of a module around which it puts its own."""


def peft_targets(model: nn.Module, targets: Mapping[str, Target]) -> dict[str, Any]:
    """The arguments of `LoraConfig` that select exactly these targets.

    PEFT reads some names of linear layers as those of experts that are parameters today: in models such as Qwen2-MoE
    and DeepSeek-V3, ``gate_proj`` in ``target_modules`` adapts the experts, and not the dense layers of that name. The
    weight of such a layer is therefore selected as a parameter, which PEFT adapts with the same factors and names.

    Args:
        model: the base model, or the one inside a PEFT model.
    """
    parameters = by_parameter(model, targets)
    modules = {name: target for name, target in targets.items() if name not in parameters}
    selected: dict[str, Any] = {"target_modules": shortest_names(model, modules) if modules else []}
    if parameters:
        selected["target_parameters"] = _shortest_parameter_names(model, parameters)
    return selected


def by_parameter(model: nn.Module, targets: Mapping[str, Target]) -> dict[str, Target]:
    """The targets that PEFT has to adapt as parameters: experts, other parameters, and linear layers with a name that
    it reads as that of experts."""
    endings = {name.rsplit(".", 1)[-1] for name, target in targets.items() if target.is_module}
    misread = {ending for ending in endings if _is_misread(model, ending)}
    return {
        name: target for name, target in targets.items() if not target.is_module or name.rsplit(".", 1)[-1] in misread
    }


def peft_names(model: nn.Module, targets: Mapping[str, Target]) -> dict[str, str]:
    """What PEFT matches a configuration's ``rank_pattern`` and ``alpha_pattern`` against, by the target's name."""
    parameters = by_parameter(model, targets)
    return {name: target.parameter_name if name in parameters else name for name, target in targets.items()}


@contextlib.contextmanager
def without_false_warnings() -> Iterator[None]:
    """Hides a warning of PEFT's inside the ``with`` block: that ranks by parameter match no module and are ignored.

    They match parameters, and PEFT uses them (0.21).
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys did not match any targeted")
        yield


def plain_name(name: str) -> str:
    """The name that a module or parameter of a PEFT model has in the base model."""
    return name.replace(WRAPPED, "")


def _is_misread(model: nn.Module, ending: str) -> bool:
    config = LoraConfig(target_modules=[ending])
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
    except ValueError:  # it belongs to several parts of an expert, of which this is one
        return True
    return config.target_modules is None or ending not in config.target_modules


def _shortest_parameter_names(model: nn.Module, targets: Mapping[str, Target]) -> list[str]:
    """The last two parts of the parameters' names, if they select exactly these, else their full names."""
    wanted = {target.parameter_name for target in targets.values()}
    present = [plain_name(name) for name, _ in model.named_parameters()]
    endings = {".".join(name.split(".")[-2:]) for name in wanted}
    selected = {name for name in present if ".".join(name.split(".")[-2:]) in endings}
    return sorted(endings if selected == wanted else wanted)
