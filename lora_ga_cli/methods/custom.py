"""Adapters that PEFT does not have: modules that a method puts into the model, saved and loaded by loraga."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import RunError, TargetError
from lora_ga_cli.json_files import read_json, write_json
from lora_ga_cli.lora.offset import LoraInit
from lora_ga_cli.methods.base import Link, Method, Model
from lora_ga_cli.model.loading import CUSTOM_ADAPTER_FILE
from lora_ga_cli.model.targets import new_modules

WEIGHTS_FILE = "custom_adapter.safetensors"
CONFIG_FILE = CUSTOM_ADAPTER_FILE


class CustomAdapter(Method):
    """A method that puts new modules into the model. Only these and a new classifier head train.

    A subclass defines the modules: `settings` for a configuration and a model, `insert` from such settings.
    """

    @abstractmethod
    def settings(self, model: PreTrainedModel) -> dict[str, Any]:
        """What `insert` needs, as plain data: it is saved beside the weights.

        Raises:
            TargetError: the model has no place for the modules.
        """

    @classmethod
    @abstractmethod
    def insert(cls, model: nn.Module, settings: Mapping[str, Any]) -> None:
        """Puts the modules into a model, in place.

        Raises:
            TargetError: the model has no place for them.
            KeyError, ValueError, TypeError: the settings are not such as `settings` gives.
        """

    @classmethod
    def type_name(cls) -> str:
        """The method's type, as files of adapters have it."""
        return str(cls.Options.model_fields["type"].default)

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        if config.model.quantization is not None:
            given = f"model.quantization={config.model.quantization}"
            yield f"{given} goes with PEFT's adapters, and method.type={cls.type_name()} is not one"
        if config.model.shard:
            yield f"model.shard=true does not go with method.type={cls.type_name()}"

    def attach(self, model: PreTrainedModel, link: Link) -> PreTrainedModel:
        self._put(model, self.settings(model))
        return model

    def save(self, model: Model, folder: Path, init: LoraInit | None, state: Mapping[str, Any] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        trained = {name: item for name, item in model.named_parameters() if item.requires_grad}
        tensors = {name: item.detach().cpu().contiguous() for name, item in trained.items()}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        settings: Any = model.custom_adapter
        write_json(folder / CONFIG_FILE, {"type": self.type_name(), "settings": json.loads(json.dumps(settings))})

    def restore(self, model: Model, folder: Path, init: LoraInit | None) -> None:
        _restore(model, folder)

    @classmethod
    def load(cls, base: PreTrainedModel, folder: Path, device: str) -> Model:
        """The base with a saved adapter on it, in evaluation mode; a classifier head that was trained with it comes
        from the file too.

        Raises:
            RunError: a file is damaged, or the adapter is of another model.
        """
        file = folder / CONFIG_FILE
        settings = read_config(folder)[1]
        trained = _read_weights(folder / WEIGHTS_FILE)
        head = [item for name, item in base.named_parameters() if name in trained]
        try:
            cls._put(base, settings)
        except TargetError as error:
            raise RunError(f"{file}: this adapter does not go on {type(base).__name__}: {error}") from error
        except (KeyError, ValueError, TypeError) as error:
            raise RunError(f"{file}: these are not the settings of such an adapter ({error!r})") from error
        for item in head:
            item.requires_grad_(True)
        _restore(base, folder)
        return base.eval()

    @classmethod
    def _put(cls, model: nn.Module, settings: Mapping[str, Any]) -> None:
        model.requires_grad_(False)
        cls.insert(model, settings)
        for name in new_modules(model):
            model.get_submodule(name).requires_grad_(True)
        model.custom_adapter = dict(settings)  # type: ignore[assignment]


def read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """The method's type and the settings of a saved adapter.

    Raises:
        RunError: the file is missing or damaged.
    """
    file = folder / CONFIG_FILE
    try:
        stored = read_json(file)
        kind, settings = str(stored["type"]), dict(stored["settings"])
    except FileNotFoundError:
        raise RunError(f"{file}: this file is missing; it describes the type of the adapter") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file}: this is not the description of an adapter ({error!r})") from error
    return kind, settings


def positive(settings: Mapping[str, Any], name: str) -> int:
    """A positive integer of a saved adapter's settings.

    Raises:
        KeyError, ValueError: it is missing, or has another type.
    """
    value = settings[name]
    if type(value) is not int or value < 1:  # bool is a subclass of int
        raise ValueError(f"{name}={value!r} is not a positive integer")
    return value


def names(settings: Mapping[str, Any], name: str) -> list[str]:
    """A list of names of a saved adapter's settings.

    Raises:
        KeyError, ValueError: it is missing, or has another type.
    """
    value = settings[name]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name}={value!r} is not a list of names")
    return value


def _restore(model: nn.Module, folder: Path) -> None:
    file = folder / WEIGHTS_FILE
    tensors = _read_weights(file)
    parameters = {name: item for name, item in model.named_parameters() if item.requires_grad}
    for name in dict.fromkeys([*parameters, *tensors]):
        stored, expected = (tuple(found[name].shape) if name in found else None for found in (tensors, parameters))
        if stored != expected:
            raise RunError(
                f"{file} belongs to another model or adapter: {name} is {stored or 'missing'} there, and "
                f"{expected or 'missing'} in this {type(model).__name__}"
            )
    for name, item in parameters.items():
        item.data.copy_(tensors[name])


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (FileNotFoundError, SafetensorError) as error:
        raise RunError(f"{file}: this is not a complete safetensors file ({error})") from error
