"""The saved adapter, read by PEFT alone in a process without loraga, computes what was trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from lora_ga_cli import LoraInit, estimate_gradients, export_adapter, initialize
from lora_ga_cli.errors import EqualityError, RunError
from lora_ga_cli.lora.export import restore_adapter
from tests.conftest import FAMILIES, TASKS, build_batch, build_model

PEFT_ALONE = """
import json, sys, torch, transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
sys.modules["lora_ga_cli"] = None  # importing it would fail
for auto, base, folder in json.loads(sys.argv[1]):
    batch = load_file(f"{folder}/batch.safetensors")
    options = {"num_labels": 3} if "labels" in batch and batch["labels"].dim() == 1 else {}
    base = getattr(transformers, auto).from_pretrained(base, **options)
    model = PeftModel.from_pretrained(base, f"{folder}/adapter").eval()
    with torch.no_grad():
        logits = {"adapter": model(**batch).logits, "merged": model.merge_and_unload()(**batch).logits}
    save_file(logits, f"{folder}/logits.safetensors")
"""
AUTO = {
    "causal_lm": "AutoModelForCausalLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "sequence_classification": "AutoModelForSequenceClassification",
}


def trained(
    family: str, *, gradient: bool = True, offset: str = "base", decay: float = 0.0
) -> tuple[PeftModel, LoraInit | None]:
    """A model after a few steps of plain gradient descent from LoRA-GA's initialization, or from LoRA's."""
    model, batch = build_model(family).eval(), build_batch(family)
    artifact = estimate_gradients(model, [batch])
    task = {"task_type": "SEQ_CLS"} if family == "bert" else {}
    peft = get_peft_model(
        model,
        LoraConfig(
            r=4, use_rslora=True, target_modules=artifact.target_modules, fan_in_fan_out=family == "gpt2", **task
        ),
    )
    init = initialize(peft, artifact, offset=offset) if gradient else None
    trained = [item for item in peft.parameters() if item.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=decay)
    for _ in range(3):
        peft(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return peft, init


def test_peft_alone_computes_what_was_trained(tmp_path: Path, saved_bases: dict[str, Path]) -> None:
    """Of every family, in one process, whose start takes longer than all that it does."""
    models, jobs = {}, []
    for family, offset in [*((family, "base") for family in FAMILIES), ("gpt2", "adapter")]:
        folder = tmp_path / f"{family}-{offset}"
        models[family, folder], init = trained(family, offset=offset)
        export_adapter(models[family, folder], folder / "adapter", init)
        save_file(build_batch(family), folder / "batch.safetensors")
        jobs.append((AUTO[TASKS[family]], str(saved_bases[family]), str(folder)))
    subprocess.run([sys.executable, "-c", PEFT_ALONE, json.dumps(jobs)], check=True, capture_output=True)
    for (family, folder), model in models.items():
        batch = build_batch(family)
        with torch.no_grad():
            expected, untrained = model(**batch).logits, build_model(family).eval()(**batch).logits
        for form, found in load_file(folder / "logits.safetensors").items():
            assert float((found - expected).norm() / expected.norm()) < 1e-5, (folder.name, form)
        if family != "bert":  # whose head is random until it is trained
            assert float((untrained - expected).norm() / expected.norm()) > 0.05, folder.name  # the steps did something


@pytest.mark.parametrize("offset", ["base", "adapter"])
def test_the_adapter_is_a_standard_lora_of_twice_the_rank(tmp_path: Path, offset: str) -> None:
    model, init = trained("llama", offset=offset)
    export_adapter(model, tmp_path, init)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == 8
    assert not config["use_rslora"]
    assert config["lora_alpha"] / config["r"] == pytest.approx(8 / 4**0.5)  # PEFT's default alpha is 8
    assert set(config["target_modules"]) == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    shapes = {
        tuple(tensor.shape)
        for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()
        if "q_proj" in name
    }
    assert shapes == {(8, 48), (48, 8)}


def test_a_lora_without_initial_factors_is_saved_as_it_is(tmp_path: Path) -> None:
    model, _ = trained("llama", gradient=False)
    export_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 8, True)


@pytest.mark.parametrize("offset", ["base", "adapter"])
def test_what_is_saved_is_restored_to_the_bit(tmp_path: Path, offset: str) -> None:
    model, init = trained("llama", offset=offset)
    export_adapter(model, tmp_path, init)
    kept = {name: item.clone() for name, item in model.named_parameters() if item.requires_grad}
    with torch.no_grad():
        for item in model.parameters():
            if item.requires_grad:
                item.zero_()
    restore_adapter(model, tmp_path, init)
    assert all(torch.equal(item, kept[name]) for name, item in model.named_parameters() if item.requires_grad)


def test_a_checkpoint_with_another_initialization_is_refused(tmp_path: Path) -> None:
    model, init = trained("llama")
    export_adapter(model, tmp_path, init)
    assert init is not None
    other = LoraInit({name: (2 * a0, b0) for name, (a0, b0) in init.factors.items()}, init.scalings)
    with pytest.raises(RunError, match="another initialization"):
        restore_adapter(model, tmp_path, other)


def test_weight_decay_does_not_touch_the_initial_factors(tmp_path: Path) -> None:
    model, init = trained("llama", offset="adapter", decay=0.1)
    assert init is not None
    export_adapter(model, tmp_path, init)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for name, (_, b0) in init.factors.items():
        assert torch.equal(tensors[f"base_model.model.{name}.lora_B.weight"][:, 4:], b0)


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    model, init = trained("llama")
    with torch.no_grad():
        next(item for name, item in model.named_parameters() if "lora_B" in name)[0, 0] = float("nan")
    with pytest.raises(EqualityError, match="nothing was written"):
        export_adapter(model, tmp_path / "adapter", init)
    assert not list((tmp_path / "adapter").glob("*"))
