"""Loading a saved adapter of any method onto its base."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from lora_ga_cli.errors import DamagedFile, Fault, InvalidInput, RunError
from lora_ga_cli.json_files import read_json
from lora_ga_cli.lora.description import read_description
from lora_ga_cli.lora.export import CONFIG_FILE, WEIGHTS_FILE
from lora_ga_cli.methods import custom
from lora_ga_cli.methods.base import Method, Model
from lora_ga_cli.model.tensor_files import check_readable
from lora_ga_cli.registry import METHODS

ADAPTER_FILES = ("adapter_config.json", "adapter_model.*", custom.CONFIG_FILE, custom.WEIGHTS_FILE)
"""Patterns of the files that an adapter consists of."""
ADAPTER_DESCRIPTIONS = (CONFIG_FILE, custom.CONFIG_FILE)
"""The files that say what an adapter is, of which it has one."""


def is_custom_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter that PEFT does not load."""
    return (folder / custom.CONFIG_FILE).is_file()


def readable_adapter(folder: Path) -> list[str]:
    """The names of the two files of an adapter in a folder; empty unless both are there and complete."""
    for names in ((CONFIG_FILE, WEIGHTS_FILE), (custom.CONFIG_FILE, custom.WEIGHTS_FILE)):
        if all((folder / name).is_file() for name in names):
            try:
                read_json(folder / names[0])
                check_readable(folder / names[1])
            except DamagedFile:
                return []
            return list(names)
    return []


def load_adapter(base: PreTrainedModel, folder: Path, device: str) -> Model:
    """The original base model with a saved adapter on it, in evaluation mode.

    Raises:
        RunError: the files belong to another model.
        DamagedFile: a file is missing or not complete.
        InvalidInput: no method of this name is registered (`--code FILE` registers those in a user's file).
    """
    return adapter_class(folder).load(base, folder, device)


def adapter_class(folder: Path) -> type[Method]:
    """The class that loads a saved adapter.

    Raises:
        RunError, InvalidInput: as `load_adapter`.
    """
    if is_custom_adapter(folder):
        return _custom_class(folder)
    config = read_description(folder)
    if not (folder / "adapter_model.bin").exists():
        check_readable(folder / WEIGHTS_FILE)
    kind = str(getattr(config.peft_type, "value", ""))
    classes = (METHODS[name] for name in METHODS.names())
    return next((method for method in classes if method.peft_type == kind), Method)


def _custom_class(folder: Path) -> type[custom.CustomAdapter]:
    file, name = folder / custom.CONFIG_FILE, custom.read_config(folder)[0]
    found = METHODS.find(name)
    if found is None:
        raise InvalidInput([Fault(str(file), f"no method type {name!r}", METHODS.hint_for(name))])
    if not issubclass(found, custom.CustomAdapter):
        raise RunError(f"{file}: this is not the description of an adapter (PEFT saves adapters of type {name})")
    return found
