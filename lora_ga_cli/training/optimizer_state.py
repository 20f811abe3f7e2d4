"""An optimizer's state by the names of parameters, in one safetensors file: what the next link of a chain begins with.

(torch numbers parameters by their order, and its files can run code when they are read.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from lora_ga_cli.errors import RunError
from lora_ga_cli.files import atomic_file
from lora_ga_cli.model.tensor_files import read_tensors

OptimizerState = Mapping[str, Mapping[str, Tensor]]
"""What an optimizer keeps, by the name of the parameter and that of the entry: ``step``, ``exp_avg``, …"""
SEPARATOR = "|"
"""Between the two names in the file; neither contains it."""


def state_of(optimizer: Optimizer, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The state of an optimizer by name, on the CPU.

    Args:
        model: the model whose parameters the optimizer trains.
    """
    names = {id(item): name for name, item in model.named_parameters()}
    return {
        names[id(item)]: {key: torch.as_tensor(value).detach().cpu() for key, value in entries.items()}
        for item, entries in optimizer.state.items()
    }


def save_state(state: OptimizerState, file: Path) -> None:
    """Writes a state, atomically."""
    tensors = {
        f"{name}{SEPARATOR}{key}": value.contiguous()
        for name, entries in state.items()
        for key, value in entries.items()
    }
    with atomic_file(file) as temporary:
        save_file(tensors, temporary)


def load_state(file: Path) -> dict[str, dict[str, Tensor]]:
    """Reads what `save_state` wrote.

    Raises:
        RunError: the file is not there.
    """
    if not file.exists():
        raise RunError(f"{file} is missing, and the next link begins with it: start again with overwrite=true")
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in read_tensors(file).items():
        parameter, _, key = name.partition(SEPARATOR)
        state.setdefault(parameter, {})[key] = value
    return state


def install_state(optimizer: Optimizer, model: nn.Module, state: OptimizerState) -> None:
    """Gives a new optimizer a state. A parameter that the state does not name begins without one.

    ``step`` stays on the CPU, where torch's optimizers count if their steps are not fused; anything else goes to the
    parameter's device.
    """
    parameters = dict(model.named_parameters())
    fused = {id(item) for group in optimizer.param_groups if group.get("fused") for item in group["params"]}
    for name, entries in state.items():
        item = parameters[name]
        optimizer.state[item] = {
            key: value.clone() if key == "step" and id(item) not in fused else value.to(item.device, copy=True)
            for key, value in entries.items()
        }
