"""An adapter as a server runs it: its factors rounded to bfloat16, on the bundled base, after real training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_ga_cli.paths import resolve_path
from tests.helpers import Loraga, only_run

BASE = str(resolve_path("bundled:tiny_base"))
Tensors = dict[str, torch.Tensor]


def previous_form(run: Path) -> Tensors:
    """The saved adapter as ``s·[B, -B0] [A; A0]``, the form that it had before: the same product in exact numbers."""
    init, saved = load_file(run / "init.safetensors"), load_file(run / "adapter_model.safetensors")
    form = {}
    for key, tensor in saved.items():
        name = key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
        a0, b0 = init[f"{name}.A0"], init[f"{name}.B0"]
        rank = len(a0)
        if ".lora_A." in key:
            form[key] = torch.cat([tensor[:rank], a0])  # [A; A0]
        else:
            form[key] = torch.cat([b0 + tensor[:, :rank], -b0], dim=1)  # [B, -B0]
    return form


def in_float64(run: Path, tensors: Tensors) -> torch.Tensor:
    """Logits of a few validation rows, in float64, on the bundled base with these factors."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    lines = resolve_path("bundled:quickstart/validation.jsonl").read_text().splitlines()[:4]
    rows = [json.loads(line) for line in lines]
    ids = [tokenizer(f"Question: {row['question']}\nAnswer: {row['answer']}", return_tensors="pt") for row in rows]
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float64)
    model = PeftModel.from_pretrained(base, run, autocast_adapter_dtype=False).double().eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key, tensor in tensors.items():
            parameters[key.replace(".weight", ".default.weight")].copy_(tensor)
        return torch.cat([model(**row).logits[0] for row in ids])


def loss_by_rounding(run: Path, tensors: Tensors, base: torch.Tensor, trained: torch.Tensor) -> float:
    """How far logits move when the factors are rounded to bfloat16, relative to what training changed."""
    rounded = {key: tensor.to(torch.bfloat16).double() for key, tensor in tensors.items()}
    return float((in_float64(run, rounded) - trained).norm() / (trained - base).norm())


@pytest.mark.parametrize(
    "options",
    [
        [
            *("trainer.learning_rate=2e-5", "trainer.max_steps=8", "gradient.samples=16"),
            *("trainer.batch_size=8", "trainer.micro_batch_size=8"),
        ],
        pytest.param([], marks=pytest.mark.slow, id="quickstart"),
    ],
)
@pytest.mark.parametrize("offset", [pytest.param("base", marks=pytest.mark.slow), "adapter"])
def test_an_adapter_in_bfloat16_is_what_was_trained(loraga: Loraga, options: list[str], offset: str) -> None:
    """Within 0.3 % of what training changed, in both forms of training; the form of before loses far more."""
    loraga(
        "train",
        "recipe=quickstart",
        "device=cpu",
        f"method.offset={offset}",
        "eval=loss",
        "trainer.micro_batch_size=8",
        *options,
    )
    run = only_run()
    saved = load_file(run / "adapter_model.safetensors")
    trained = in_float64(run, saved)
    base = in_float64(run, {key: torch.zeros_like(tensor) for key, tensor in saved.items()})
    assert float((in_float64(run, previous_form(run)) - trained).norm() / (trained - base).norm()) < 1e-4  # one product
    assert loss_by_rounding(run, saved, base, trained) < 0.003
    assert loss_by_rounding(run, previous_form(run), base, trained) > 0.003
