"""Adapters that are modules put into the model: those that PEFT does not have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import nn

from lora_ga_cli.errors import RunError
from lora_ga_cli.files import read_json, write_json
from lora_ga_cli.methods import bottleneck, prefix_layer
from lora_ga_cli.model.targets import new_modules

WEIGHTS_FILE = "inserted.safetensors"
ABOUT_FILE = "inserted.json"
KINDS: dict[str, Callable[..., None]] = {"bottleneck": bottleneck.insert, "prefix_layer": prefix_layer.insert}
"""By `MethodConfig.adapter`: puts the modules into a model, in place, from their description as plain data."""
Model = TypeVar("Model", bound=nn.Module)


def insert(model: Model, kind: str, about: dict[str, Any]) -> Model:
    """Puts an adapter's modules into a model, in place; they train, and a new classifier head does, and nothing else.

    Args:
        about: what the kind needs to be built again.
    """
    model.requires_grad_(False)
    KINDS[kind](model, **about)
    for name in new_modules(model):
        model.get_submodule(name).requires_grad_(True)
    model.inserted = {"kind": kind, "about": about}  # type: ignore[assignment]
    return model


def is_inserted(model: nn.Module) -> bool:
    return hasattr(model, "inserted")


def save(model: nn.Module, folder: Path) -> None:
    """Writes what trains, and how it was put in."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: item.detach().cpu().contiguous() for name, item in model.named_parameters() if item.requires_grad}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(folder / ABOUT_FILE, json.loads(json.dumps(model.inserted)))


def restore(model: nn.Module, folder: Path) -> None:
    """Reads what `save` wrote into a model that has the modules.

    Raises:
        RunError: the file is of another model or adapter.
    """
    tensors = load_file(folder / WEIGHTS_FILE)
    parameters = {name: item for name, item in model.named_parameters() if item.requires_grad}
    if {name: item.shape for name, item in parameters.items()} != {name: item.shape for name, item in tensors.items()}:
        raise RunError(f"{folder}: its adapter is of another model, or of other modules of this one")
    for name, item in parameters.items():
        item.data.copy_(tensors[name])


def load(model: Model, folder: Path) -> Model:
    """Puts a saved adapter on its base, in place."""
    stored = read_json(folder / ABOUT_FILE)
    insert(model, stored["kind"], stored["about"])
    restore(model, folder)
    return model
