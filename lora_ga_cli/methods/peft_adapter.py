"""Adapters whose files are those of PEFT, without a change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel, set_peft_model_state_dict

from lora_ga_cli.lora.export import WEIGHTS_FILE, save_peft_adapter
from lora_ga_cli.lora.offset import LoraInit
from lora_ga_cli.methods.base import Method, Model
from lora_ga_cli.model.tensor_files import read_tensors


class PeftAdapter(Method):
    """A method that trains an adapter of PEFT, which PEFT saves and restores as it trains."""

    def save(self, model: Model, folder: Path, init: LoraInit | None, state: Mapping[str, Any] | None = None) -> None:
        assert isinstance(model, PeftModel)
        save_peft_adapter(model, folder)

    def restore(self, model: Model, folder: Path, init: LoraInit | None) -> None:
        assert isinstance(model, PeftModel)
        set_peft_model_state_dict(model, read_tensors(folder / WEIGHTS_FILE))
