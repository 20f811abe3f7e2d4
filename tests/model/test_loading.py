"""Loading bases, and saying clearly why one cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, ModernBertConfig, ModernBertModel, T5Config, XLNetConfig

from lora_ga_cli.config.schema import ModelConfig
from lora_ga_cli.errors import ModelError
from lora_ga_cli.model.identity import hub_identity, local_identity, stored_names
from lora_ga_cli.model.loading import empty_model, find_source, identify, load_model, max_positions, pick_device
from lora_ga_cli.model.targets import new_modules
from tests.conftest import FAMILIES, TASKS, build_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_task_loads(family: str, saved_bases: dict[str, Path]) -> None:
    config = ModelConfig(path=str(saved_bases[family]), task=TASKS[family], dtype="bfloat16")
    model = load_model(config, CPU, num_labels=3 if family == "bert" else None)
    assert model.dtype == torch.bfloat16
    assert not model.training
    empty = empty_model(config, 3 if family == "bert" else None)
    assert {name: item.shape for name, item in empty.named_parameters()} == {
        name: item.shape for name, item in model.named_parameters()
    }
    assert {item.device.type for item in empty.parameters()} == {"meta"}


def test_a_folder_that_is_not_there_names_the_nearest(saved_bases: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"no such folder \(did you mean llama\?\)"):
        find_source(ModelConfig(path=str(saved_bases["llama"].parent / "lama")))


def test_a_hub_name_is_not_taken_for_a_folder() -> None:
    assert not find_source(ModelConfig(path="org/name")).local


def test_weights_that_are_not_in_the_files_are_refused(saved_bases: dict[str, Path]) -> None:
    """A classifier's files hold no language model head: it would be random."""
    config = ModelConfig(path=str(saved_bases["bert"]), task="causal_lm")
    with pytest.raises(ModelError, match="not in its files"):
        load_model(config, CPU)


def test_a_broken_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot load the config") as error:
        load_model(ModelConfig(path=str(tmp_path)), CPU)
    assert "\n" not in str(error.value)


def test_damaged_files_are_named(saved_bases: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(saved_bases["llama"], folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ModelError, match=f"cannot load the model of {folder}"):
        load_model(ModelConfig(path=str(folder)), CPU)
    (folder / "config.json").write_text('{"a": ')
    with pytest.raises(ModelError, match=r"config\.json is damaged"):
        local_identity(folder, tmp_path / "memo.json")


def test_the_identity_depends_on_content_and_not_on_the_folder(saved_bases: dict[str, Path], tmp_path: Path) -> None:
    build_model("llama").save_pretrained(tmp_path / "copy")
    build_model("llama", seed=1).save_pretrained(tmp_path / "other")
    memo = tmp_path / "digests.json"
    same, copy, other = (
        local_identity(folder, memo) for folder in (saved_bases["llama"], tmp_path / "copy", tmp_path / "other")
    )
    assert same["weights_sha256"] == copy["weights_sha256"] != other["weights_sha256"]
    assert identify(ModelConfig(path=str(saved_bases["llama"])), memo) == same


def test_a_changed_file_is_hashed_again(tmp_path: Path) -> None:
    build_model("llama").save_pretrained(tmp_path / "base")
    first = local_identity(tmp_path / "base", tmp_path / "memo.json")
    build_model("llama", seed=1).save_pretrained(tmp_path / "base")
    assert local_identity(tmp_path / "base", tmp_path / "memo.json") != first


def test_a_damaged_memo_is_only_forgotten(saved_bases: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "memo.json").write_text("{")
    assert local_identity(saved_bases["llama"], tmp_path / "memo.json")["weights_sha256"]


def test_a_hub_model_without_commit_has_no_identity() -> None:
    assert hub_identity("org/name", "abc") == {"hub": "org/name", "commit": "abc"}
    with pytest.raises(ModelError, match=r"model\.revision"):
        hub_identity("org/name", None)


def test_positions() -> None:
    assert max_positions(build_model("llama").config) == 256
    assert max_positions(build_model("gpt2").config) == 256
    assert max_positions(T5Config()) is None
    assert max_positions(XLNetConfig()) is None  # which states -1


def test_transformers_chooses_the_attention_unless_the_user_does(saved_bases: dict[str, Path], tmp_path: Path) -> None:
    BloomForCausalLM(BloomConfig(vocab_size=259, hidden_size=32, n_layer=1, n_head=4)).save_pretrained(tmp_path)
    llama, bloom = str(saved_bases["llama"]), str(tmp_path)

    def chosen(path: str, attention: Any) -> str:
        return str(load_model(ModelConfig(path=path, attention=attention), CPU).config._attn_implementation)

    assert [chosen(llama, None), chosen(llama, "eager"), chosen(bloom, None)] == ["sdpa", "eager", "eager"]
    with pytest.raises(ModelError, match=r"BloomForCausalLM has no attention of this kind; leave model\.attention out"):
        chosen(bloom, "sdpa")


def test_a_head_of_several_modules_may_be_new(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = ModernBertConfig(**sizes, num_attention_heads=4, pad_token_id=0, cls_token_id=1, sep_token_id=2)
    ModernBertModel(config).save_pretrained(tmp_path)
    options = ModelConfig(path=str(tmp_path), task="sequence_classification")
    expected = ["classifier", "head"]
    assert new_modules(load_model(options, CPU, 3)) == new_modules(empty_model(options, 3)) == expected


def test_a_device_that_is_not_there() -> None:
    assert pick_device("cpu") == CPU
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="device=cuda"):
            pick_device("cuda")


def test_names_of_weights_are_read_if_no_file_is_damaged(saved_bases: dict[str, Path], tmp_path: Path) -> None:
    assert "encoder.layer.0.output.dense.weight" in (stored_names(saved_bases["bert"]) or ())
    assert stored_names(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    assert stored_names(tmp_path) is None


def test_an_adapter_as_the_base_is_told_apart(tmp_path: Path) -> None:
    """With the way to a model of it, which a run has and a bare adapter has not."""
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    config = ModelConfig(path=str(tmp_path))
    with pytest.raises(ModelError, match="holds an adapter for org/base, and no model: merge it into its base first"):
        find_source(config)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match=f"loraga merge {tmp_path} --output DIR, then model.path=DIR"):
        find_source(config)
    (tmp_path / "config.json").write_text("{}")
    assert find_source(config).local
