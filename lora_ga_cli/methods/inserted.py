"""Adapters that are modules put into the model: those that PEFT does not have."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_ga_cli.errors import RunError, TargetError
from lora_ga_cli.files import read_json, write_json
from lora_ga_cli.methods import bottleneck, prefix
from lora_ga_cli.model.targets import new_modules

WEIGHTS_FILE = "inserted.safetensors"
ABOUT_FILE = "inserted.json"
KINDS: dict[str, Callable[..., None]] = {"bottleneck": bottleneck.insert, "prefix_layer": prefix.insert}
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
        RunError: the file is damaged, or of another model or adapter.
    """
    file = folder / WEIGHTS_FILE
    tensors = _read_weights(file)
    parameters = {name: item for name, item in model.named_parameters() if item.requires_grad}
    for name in dict.fromkeys([*parameters, *tensors]):
        there, here = (tuple(found[name].shape) if name in found else None for found in (tensors, parameters))
        if there != here:
            raise RunError(
                f"{file} is of another model or adapter: {name} is {there or 'not'} there, and {here or 'not'} in this "
                f"{type(model).__name__}"
            )
    for name, item in parameters.items():
        item.data.copy_(tensors[name])


def load(model: Model, folder: Path) -> Model:
    """Puts a saved adapter on its base, in place; a classifier's head that was trained with it comes from the file.

    Raises:
        RunError: a file is damaged, or the adapter is of another model.
    """
    file = folder / ABOUT_FILE
    kind, about = _read_about(file)
    trained = _read_weights(folder / WEIGHTS_FILE)
    head = [item for name, item in model.named_parameters() if name in trained]
    try:
        insert(model, kind, about)
    except TargetError as error:
        raise RunError(f"{file}: this {kind} does not go on {type(model).__name__}: {error}") from error
    for item in head:
        item.requires_grad_(True)
    restore(model, folder)
    return model


def _read_about(file: Path) -> tuple[str, dict[str, Any]]:
    """The kind of a saved adapter, and what is needed to build it again."""
    try:
        stored = read_json(file)
        kind, about = stored["kind"], stored["about"]
        inspect.signature(KINDS[kind]).bind(None, **about)
        for name, value in about.items():
            _check_value(name, value)
    except FileNotFoundError:
        raise RunError(f"{file}: there is no such file, which says how the adapter is put in") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file}: not the description of an inserted adapter ({error!r})") from error
    return kind, about


def _check_value(name: str, value: Any) -> None:
    """
    Raises:
        ValueError: it is none that a kind's modules can be built from.
    """
    if name == "modules":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"modules={value!r} is no list of names")
    elif type(value) is not int or value < 1:  # a truth value is an int, too
        raise ValueError(f"{name}={value!r} is no positive number")


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (FileNotFoundError, SafetensorError) as error:
        raise RunError(f"{file}: no whole safetensors file ({error})") from error
