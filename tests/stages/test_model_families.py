"""Tiny models of families go through a run as docs/models.md says, and what is special about one is on the screen."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DistilBertConfig, DistilBertForSequenceClassification

from lora_ga_cli.lora.offset import LoraInit
from tests.conftest import byte_tokenizer
from tests.helpers import Arguments, Loraga, only_run

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CHEAP = ("Qwen2-MoE", "T5", "DistilBERT")


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module(name)


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {family.name: family for family in script("tiny_models", monkeypatch).FAMILIES}


@pytest.fixture
def check_models(monkeypatch: pytest.MonkeyPatch) -> Any:
    return script("check_models", monkeypatch)


@pytest.mark.parametrize("name", CHEAP)
def test_a_family_trains_loads_in_peft_and_merges(
    name: str, families: dict[str, Any], check_models: Any, tmp_path: Path
) -> None:
    row = check_models.check_family(families[name], tmp_path, methods=["lora_ga"])
    assert (row.estimate, row.lora_ga, row.peft, row.merge) == ("ok",) * 4, row.notes


@pytest.mark.slow
def test_the_table_of_families_is_true(
    families: dict[str, Any], check_models: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stored = check_models.stored_lines(check_models.PAGE.read_text(encoding="utf-8"))
    rows = [check_models.check_family(family, tmp_path_factory.mktemp("family")) for family in families.values()]
    assert {row.family: row.line for row in rows} == stored


def test_the_table_has_every_family_and_no_fault(families: dict[str, Any], check_models: Any) -> None:
    stored = check_models.stored_lines(check_models.PAGE.read_text(encoding="utf-8"))
    assert list(stored) == list(families)
    assert not any(check_models.FAULT in line for line in stored.values())


def test_other_logits_and_errors_that_are_not_the_users_are_faults(
    families: dict[str, Any], check_models: Any, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="PEFT alone computes other logits than the trained model, by 2e-05"):
        check_models.refuse_difference(2e-5, "PEFT alone")
    broken = dataclasses.replace(families["Llama"], config="NoSuchConfig")
    row = check_models.check_family(broken, tmp_path)
    assert row.has_fault
    assert "AttributeError" in row.notes


def test_a_gate_of_one_output_begins_as_peft_alone_begins_it(
    loraga: Loraga, families: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sums_file: Path
) -> None:
    base = tmp_path / "base"
    script("tiny_models", monkeypatch).save_tiny(families["Qwen2-MoE"], base)
    options = ["model=causal_lm", f"model.path={base}", "model.dtype=float32", "dataset=jsonl", "method=lora_ga"]
    options += [f"dataset.train_file={sums_file}", "dataset.max_length=64", "gradient.samples=8", "seed=0"]
    out = loraga("init", *options, "rank=4", "alpha=8")
    assert "shared_expert_gate (2 layers): too small for the rank's directions, so they begin as LoRA does" in out
    init = LoraInit.load(next(only_run().rglob("init.safetensors")))
    plain = {name for name, (_, b0) in init.factors.items() if not b0.any()}
    assert plain == {f"model.layers.{number}.mlp.shared_expert_gate" for number in range(2)}
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=sorted(init.factors), task_type="CAUSAL_LM")
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name in plain:
        drawn = peft.get_submodule(f"base_model.model.{name}").lora_A["default"].weight
        assert torch.equal(init.factors[name][0], drawn)
    out = loraga("init", *options, "rank=40", code=2)
    assert "rank=40 needs 80 singular vectors" in out
    out = loraga("init", *options, "rank=4", "target_modules=[q_proj,shared_expert_gate]", code=2)
    assert "shared_expert_gate (d_out 1, d_in 64) has 1; 2 layers are too small" in out


def test_layers_that_are_left_out_are_on_the_screen(
    loraga: Loraga, families: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sums_file: Path
) -> None:
    script("tiny_models", monkeypatch).save_tiny(families["Jamba"], tmp_path / "base")
    options = ["model=causal_lm", f"model.path={tmp_path / 'base'}", "model.dtype=float32", "dataset=jsonl"]
    options += [f"dataset.train_file={sums_file}", "dataset.max_length=64", "method=lora", "trainer.max_steps=1"]
    expected = (
        "not adapted, because Mamba's kernels read its weight without calling it, and would ignore an adapter: "
        "model.layers.*.mamba.dt_proj (1 layer)"
    )
    assert expected in loraga("init", *options)
    assert expected in loraga("init", "--dry-run", *options)
    out = loraga("init", *options, "target_modules=[dt_proj]", code=2)
    assert "leave dt_proj out of target_modules" in out


def test_a_stored_head_of_several_layers_trains_in_full(loraga: Loraga, arguments: Arguments, tmp_path: Path) -> None:
    """PEFT alone would put an adapter on a layer of the head, and train the rest of it."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 259, "dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 4, "num_labels": 3}
    DistilBertForSequenceClassification(DistilBertConfig(**sizes)).save_pretrained(tmp_path / "distilbert")
    byte_tokenizer().save_pretrained(tmp_path / "distilbert")
    out = loraga("train", *arguments("bert", f"model.path={tmp_path / 'distilbert'}"))
    assert "reloaded, its logits equal" in out
    saved = json.loads((only_run() / "adapter_config.json").read_text())
    assert set(saved["modules_to_save"]) >= {"classifier", "pre_classifier"}
    heads = [name for name in load_file(only_run() / "adapter_model.safetensors") if "classifier" in name]
    assert not any("lora" in name for name in heads)


def test_a_model_that_does_not_run_without_weights_has_no_forecast(
    loraga: Loraga, families: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sums_file: Path
) -> None:
    script("tiny_models", monkeypatch).save_tiny(families["BART"], tmp_path / "base")
    options = ["model=seq2seq_lm", f"model.path={tmp_path / 'base'}", "dataset=jsonl", "method=lora"]
    options += [f"dataset.train_file={sums_file}", "dataset.max_length=64", "trainer.max_steps=1"]
    out = loraga("train", "--dry-run", *options)
    assert "memory and time are not known: the model does not run without weights" in out
    assert "parameters train" in out
    out = loraga("train", *options, "trainer.max_tokens=auto", code=2)
    assert "trainer.max_tokens=auto does not work here" in out
