"""Saved adapters onto a base, with PEFT: every factor of the file finds its place, and no tensor is missing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from lora_ga_cli.errors import RunError
from lora_ga_cli.lora.description import NOT_LOADED, check_expressions, read_description, refused
from lora_ga_cli.lora.export import WEIGHTS_FILE
from lora_ga_cli.lora.peft_targets import without_false_warnings

MADE_FOR = "it was made for another base model, or is not complete"


def load_peft(base: PreTrainedModel, folder: Path, device: str, name: str = "default") -> PeftModel:
    """A base with a saved adapter on it, in evaluation mode.

    Args:
        name: what PEFT calls the adapter.

    Raises:
        RunError, DamagedFile: as `read_description`; or PEFT cannot load it onto this base, or would load a part of it.
        InvalidInput: as `check_expressions`.
    """
    check_expressions(read_description(folder), folder, [module for module, _ in base.named_modules()])
    with refused(folder, NOT_LOADED), without_false_warnings(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # `_load` has an error in its place
        model = PeftModel.from_pretrained(base, str(folder), adapter_name=name, torch_device=device)
    _load(model, folder, device, name)  # once more, for the names of tensors that did not match
    return model.eval()


def add_peft(model: PeftModel, folder: Path, device: str, name: str) -> None:
    """Loads one more adapter.

    Args:
        name: what PEFT calls it.

    Raises:
        RunError, DamagedFile, InvalidInput: as `load_peft`.
    """
    names = [module for module, _ in model.get_base_model().named_modules()]
    check_expressions(read_description(folder), folder, names)
    _load(model, folder, device, name)


def _load(model: PeftModel, folder: Path, device: str, name: str) -> None:
    """Lets PEFT load an adapter, and refuses one of which tensors are missing, or factors have no place in the model.

    PEFT uses what matches, and returns the names of the rest.
    """
    with refused(folder, NOT_LOADED), without_false_warnings():
        result: Any = model.load_adapter(str(folder), name, torch_device=device)
    missing = list(result.missing_keys)
    # other kinds of adapters, and methods, have tensors beside these that are loaded in another way
    unexpected = [key for key in result.unexpected_keys if ".lora_" in key]
    if missing:
        raise RunError(f"{folder / WEIGHTS_FILE} has no {_listed(missing, name)}: {MADE_FOR}")
    if unexpected:
        raise RunError(f"{folder / WEIGHTS_FILE}: the base has no place for {_listed(unexpected, name)}: {MADE_FOR}")


def _listed(keys: Sequence[str], name: str) -> str:
    """The first of the keys as the file has it, and how many there are beside it."""
    first = keys[0].replace(f".{name}.", ".").removesuffix(f".{name}")
    return first + (f" (and {len(keys) - 1} more)" if len(keys) > 1 else "")
