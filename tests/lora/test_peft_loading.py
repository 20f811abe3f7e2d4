"""Saved adapters onto a base: PEFT alone uses what matches, and here whatever does not match is an error."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from lora_ga_cli.errors import RunError
from lora_ga_cli.lora.peft_loading import add_peft, load_peft
from tests.conftest import build_model
from tests.helpers import save_random_factors

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
Loader = Callable[[PreTrainedModel, Path], PeftModel]


def load_first(base: PreTrainedModel, folder: Path) -> PeftModel:
    return load_peft(base, folder, "cpu")


def load_second(base: PreTrainedModel, folder: Path) -> PeftModel:
    other = folder.parent / "other"
    save(other)
    model = load_peft(base, other, "cpu", "adapter0")
    add_peft(model, folder, "cpu", "adapter1")
    model.set_adapter("adapter1")
    return model


@pytest.fixture(params=[load_first, load_second])
def load(request: pytest.FixtureRequest) -> Loader:
    return request.param  # type: ignore[no-any-return]


def save(folder: Path) -> None:
    """PEFT alone writes an adapter with random factors."""
    wrapped = get_peft_model(build_model("llama"), LoraConfig(target_modules=["q_proj", "down_proj"]))
    save_random_factors(wrapped, folder)


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_a_complete_adapter_computes_what_peft_computes_and_says_nothing(tmp_path: Path, load: Loader) -> None:
    save(tmp_path / "mine")
    inputs = torch.arange(8)[None]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", UserWarning)
        found = load(build_model("llama"), tmp_path / "mine")(inputs).logits
    expected = PeftModel.from_pretrained(build_model("llama"), str(tmp_path / "mine")).eval()
    with torch.no_grad():
        torch.testing.assert_close(found, expected(inputs).logits, rtol=0, atol=0)


def test_a_missing_tensor_is_an_error(tmp_path: Path, load: Loader) -> None:
    save(tmp_path / "mine")
    change(tmp_path / "mine", lambda tensors: tensors.pop(f"{LAYER}.lora_B.weight"))
    with pytest.raises(RunError, match=rf"adapter_model.safetensors has no {LAYER}.lora_B.weight: it was made for"):
        load(build_model("llama"), tmp_path / "mine")


def test_tensors_that_the_base_has_no_place_for_are_an_error(tmp_path: Path, load: Loader) -> None:
    save(tmp_path / "mine")

    def add(tensors: dict[str, Tensor]) -> None:
        for factor in ("lora_A", "lora_B"):
            name = f"{LAYER}.{factor}.weight"
            tensors[name.replace("layers.0", "layers.7")] = tensors[name].clone()

    change(tmp_path / "mine", add)
    with pytest.raises(RunError, match=r"no place for base_model\S+layers\.7\.\S+lora_A.weight \(and 1 more\)"):
        load(build_model("llama"), tmp_path / "mine")
