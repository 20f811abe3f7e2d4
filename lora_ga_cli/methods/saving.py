"""Writing what a method trained, and reading it back: by what the model is, the form that suits it."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

from peft import PeftModel, PeftType, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from lora_ga_cli.lora.export import WEIGHTS_FILE, export_adapter, restore_adapter
from lora_ga_cli.lora.offset import ADAPTER, Start
from lora_ga_cli.methods import adalora, inserted


def save_trained(
    model: PreTrainedModel | PeftModel, folder: Path, start: Start | None, *, state: dict[str, Any] | None = None
) -> None:
    """Writes what was trained: an adapter for the pristine base, or the whole model.

    Args:
        start: what a start did to the model; None if nothing.
        state: weights of the whole model, where they are gathered already.
    """
    if isinstance(model, PeftModel):
        if model.peft_config[ADAPTER].peft_type == PeftType.LORA:
            export_adapter(model, folder, start)
        else:
            _save_by_peft(model, folder)
    elif inserted.is_inserted(model):
        inserted.save(model, folder)
    else:
        model.save_pretrained(folder, state_dict=state)


def holds_adapter(folder: Path) -> bool:
    """Whether a folder holds what `save_trained` writes of an adapter, and not a whole model."""
    return (folder / WEIGHTS_FILE).exists() or (folder / inserted.WEIGHTS_FILE).exists()


def restore_trained(model: PreTrainedModel | PeftModel, folder: Path, start: Start | None) -> None:
    """Reads an adapter back into the model that trains it.

    Raises:
        RunError: it is another model's.
    """
    if not isinstance(model, PeftModel):
        inserted.restore(model, folder)
    elif model.peft_config[ADAPTER].peft_type == PeftType.LORA:
        restore_adapter(model, folder, start)
    else:
        # what was saved of AdaLoRA is whole, and PEFT would cut the layers to the ranks of the moment
        with adalora.whole(model) if adalora.is_adalora(model) else contextlib.nullcontext():
            set_peft_model_state_dict(model, load_file(folder / WEIGHTS_FILE))


def load_adapted(base: PreTrainedModel, folder: Path, device: str) -> PreTrainedModel | PeftModel:
    """The pristine base with a saved adapter on it, in evaluation mode."""
    if (folder / inserted.WEIGHTS_FILE).exists():
        return inserted.load(base, folder).eval()
    model = PeftModel.from_pretrained(base, str(folder), torch_device=device).eval()
    if adalora.is_adalora(model):
        adalora.penalize_in_training_only(model)
    return model


def _save_by_peft(model: PeftModel, folder: Path) -> None:
    """Weights first: a folder with a configuration is taken for a whole adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.peft_config[ADAPTER])
    config.inference_mode = True
    if adalora.is_adalora(model):
        with adalora.whole(model):
            state = get_peft_model_state_dict(model, save_embedding_layers=False)
        config.rank_pattern = None  # type: ignore[attr-defined]
    else:
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
