"""Several saved adapters on one base in memory, of which one is active at a time, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from lora_ga_cli.lora.description import read_description
from lora_ga_cli.lora.peft_loading import add_peft, load_peft
from lora_ga_cli.methods.base import Method, Model
from lora_ga_cli.methods.loading import adapter_class, is_custom_adapter

STARTS_THAT_KEEP_THE_BASE = (True, False, "gaussian", "orthogonal", "eva")
"""Values of PEFT's ``init_lora_weights`` with which loading an adapter leaves the weights of the base as they are."""
OTHER_FORMS = ("layer_replication", "alora_invocation_tokens", "arrow_config", "kasa_config")
"""Options of PEFT's LoRA that change more than single linear layers."""


def switching_obstacle(folder: Path) -> str:
    """Why a saved adapter cannot share a base in memory with others, in a few words; empty if it can.

    Raises:
        RunError, InvalidInput: as `adapter_class`.
    """
    if is_custom_adapter(folder):
        return "an adapter that PEFT does not load"
    config = read_description(folder)
    if not isinstance(config, LoraConfig) or adapter_class(folder).load.__func__ is not Method.load.__func__:  # type: ignore[attr-defined]
        return f"PEFT's {getattr(config.peft_type, 'value', 'adapter')} is not switched with LoRA"
    if config.modules_to_save:
        return f"{', '.join(config.modules_to_save)} was trained with it (modules_to_save)"
    if config.trainable_token_indices:
        return "rows of the embeddings were trained with it"
    if config.target_parameters:
        return "it adapts weights that are no linear layers, such as those of experts"
    if config.bias != "none":
        return f"biases of the base were trained with it (bias={config.bias})"
    if config.init_lora_weights not in STARTS_THAT_KEEP_THE_BASE:
        return f"PEFT changes the base's weights when it loads it (init_lora_weights={config.init_lora_weights})"
    for name in OTHER_FORMS:
        if getattr(config, name, None):
            return f"it was made with {name}"
    return ""


def takes_mixed_batches(folder: Path) -> bool:
    """Whether a batch may have rows for this adapter and rows for others; PEFT does not mix those with DoRA."""
    config: Any = read_description(folder)
    return not config.use_dora


class Switched:
    """A base with adapters for which `switching_obstacle` is empty.

    Args:
        base: in evaluation mode, without adapters. They are put into it.
        device: where adapters are loaded.
    """

    def __init__(self, base: PreTrainedModel, device: str):
        self.base = base
        self.device = device
        self.model: PeftModel | None = None
        """The base with its adapters; None before the first one."""
        self._names: dict[Path, str] = {}

    def add(self, folder: Path) -> str:
        """Loads an adapter, once. Returns the name that PEFT has for it.

        Raises:
            RunError, DamagedFile, InvalidInput: its files are damaged, or of another model.
        """
        if folder in self._names:
            return self._names[folder]
        name = f"adapter{len(self._names)}"
        if self.model is None:
            self.model = load_peft(self.base, folder, self.device, name)
        else:
            add_peft(self.model, folder, self.device, name)
        self.model.eval()
        self._names[folder] = name
        return name

    def use(self, folder: Path | None) -> Model:
        """The model with one adapter active, or none for None.

        Raises:
            RunError, DamagedFile, InvalidInput: as `add`.
        """
        if folder is None:
            if self.model is not None:
                self._tuner.disable_adapter_layers()
            return self.base
        name = self.add(folder)
        assert self.model is not None
        self._tuner.enable_adapter_layers()
        self.model.set_adapter(name, inference_mode=True)
        return self.model

    @property
    def _tuner(self) -> Any:
        """PEFT's part of the model that has the adapters."""
        assert self.model is not None
        return self.model.base_model
