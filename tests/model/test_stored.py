"""Bases whose files hold quantized weights: trained as they are, dequantized, or refused by name."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    FineGrainedFP8Config,
    GptOssConfig,
    GptOssForCausalLM,
)

from lora_ga_cli.config.schema import ModelConfig
from lora_ga_cli.model.loading import load_model
from tests.conftest import build_model, byte_tokenizer
from tests.helpers import Arguments, Loraga, only_run

CPU = torch.device("cpu")
HAS_TORCHAO = importlib.util.find_spec("torchao") is not None
HAS_COMPRESSED = importlib.util.find_spec("compressed_tensors") is not None
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""The numbers of four bits that MXFP4 has (OCP Microscaling specification, E2M1)."""


def rewrite(folder: Path, tensors: Mapping[str, Tensor], quantization: Mapping[str, Any]) -> None:
    """Replaces the weights of a saved model, and names how they are quantized."""
    save_file(
        {name: item.contiguous() for name, item in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": dict(quantization)}))


def saved(folder: Path, model: Any = None) -> dict[str, Tensor]:
    """Saves a model with its tokenizer, and gives what the file holds."""
    (build_model("llama") if model is None else model).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.fixture
def fp8_base(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A base whose linear layers are in FP8 with a scale for every block of 8 × 8, and its weights in float64."""
    folder = tmp_path / "fp8"
    stored, meant = {}, {}
    for name, weight in saved(folder).items():
        stored[name] = meant[name] = weight
        if "proj" in name:
            blocks = weight.unflatten(0, (-1, 8)).unflatten(2, (-1, 8))  # (rows, 8, columns, 8)
            scale = blocks.abs().amax(dim=(1, 3)) / 448
            stored[name] = (blocks / scale[:, None, :, None]).flatten(2).flatten(0, 1).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale
            meant[name] = stored[name].double() * scale.double().repeat_interleave(8, 0).repeat_interleave(8, 1)
    rewrite(folder, stored, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [8, 8]})
    return folder, meant


def test_an_fp8_base_is_dequantized_trained_on_and_merged(
    loraga: Loraga, arguments: Arguments, fp8_base: tuple[Path, dict[str, Tensor]]
) -> None:
    base, meant = fp8_base
    out = loraga("train", *arguments("llama", "method=lora_ga", f"model.path={base}"))
    assert "the weights in fp8 of its files are dequantized to float32" in out
    assert "FineGrainedFP8Config(dequantize=True)" in (only_run() / "README.md").read_text()
    loraga("merge", str(only_run()))
    merged = load_file(only_run() / "merged" / "model.safetensors")
    assert {item.dtype for item in merged.values()} == {torch.float32}
    assert set(merged) == set(meant)
    assert "quantization_config" not in json.loads((only_run() / "merged" / "config.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(base, quantization_config=FineGrainedFP8Config(dequantize=True))
    alone = PeftModel.from_pretrained(plain, only_run())
    for name, layer in alone.named_modules():
        key = name.removeprefix("base_model.model.") + ".weight"
        if hasattr(layer, "get_delta_weight"):
            change = layer.get_delta_weight("default").double()
            torch.testing.assert_close(merged[key].double(), meant[key] + change, atol=1e-6, rtol=1e-5)


def test_an_mxfp4_base_is_dequantized(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    folder = tmp_path / "mxfp4"
    stored, meant = {}, {}
    for name, weight in saved(folder, GptOssForCausalLM(config)).items():
        stored[name] = weight
        if name.endswith(("gate_up_proj", "down_proj")):
            del stored[name]
            blocks = weight.transpose(1, 2).unflatten(2, (-1, 32))  # (experts, d_out, d_in / 32, 32)
            exponent = torch.floor(torch.log2(blocks.abs().amax(-1, keepdim=True))) - 2
            codes = ((blocks / 2**exponent)[..., None] - FP4).abs().argmin(-1).to(torch.uint8)
            stored[f"{name}_blocks"] = codes[..., 0::2] | (codes[..., 1::2] << 4)
            stored[f"{name}_scales"] = (exponent[..., 0] + 127).to(torch.uint8)
            meant[name] = (FP4[codes.long()] * 2**exponent).flatten(2).transpose(1, 2)
    rewrite(folder, stored, {"quant_method": "mxfp4"})
    options = ModelConfig(path=str(folder), attention="eager")
    model = load_model(options, CPU)
    for name, weight in meant.items():
        assert torch.equal(model.get_parameter(name), weight)
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in meant.items())


@pytest.mark.skipif(not HAS_COMPRESSED, reason="compressed-tensors is not installed")
def test_a_base_of_compressed_tensors_is_dequantized(tmp_path: Path) -> None:
    folder = tmp_path / "compressed"
    stored, meant = {}, {}
    for name, weight in saved(folder).items():
        stored[name] = weight
        if "proj" in name:
            scale = weight.abs().amax(1, keepdim=True) / 127
            stored[name] = (weight / scale).round().to(torch.int8)
            stored[f"{name}_scale"] = scale
            meant[name] = stored[name] * scale
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    described = {"quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed"}
    rewrite(folder, stored, {**described, "ignore": ["lm_head"], "config_groups": {"group_0": group}})
    model = load_model(ModelConfig(path=str(folder)), CPU)
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in meant.items())


def four_bits(folder: Path, plain: Path) -> None:
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(plain, quantization_config=how, device_map={"": "cpu"}).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def eight_bits_of_torchao(folder: Path, plain: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    how = TorchAoConfig(quant_type=Int8WeightOnlyConfig())
    AutoModelForCausalLM.from_pretrained(plain, quantization_config=how).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


NEEDS_TORCHAO = pytest.mark.skipif(not HAS_TORCHAO, reason="torchao is not installed")


@pytest.mark.parametrize(
    "make", [four_bits, pytest.param(eight_bits_of_torchao, marks=NEEDS_TORCHAO)], ids=["bitsandbytes", "torchao"]
)
@pytest.mark.parametrize("method", ["lora", "lora_ga"])
def test_weights_that_are_quantized_in_the_files_train_as_they_are(
    loraga: Loraga, arguments: Arguments, tmp_path: Path, wide_base: Path, make: Any, method: str
) -> None:
    base = tmp_path / "quantized"
    make(base, wide_base)
    options = [f"model.path={base}", f"method={method}"]
    out = loraga("train", *arguments("llama", *options), code=2)
    assert "model.quantization=stored" in out
    out = loraga("train", *arguments("llama", *options, "model.quantization=stored"))
    assert "reloaded, its logits equal" in out
    assert "cannot be merged: the files of its base hold quantized weights" in loraga("merge", str(only_run()), code=2)
    tokens = torch.arange(5, 20)[None]
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        before = plain.eval()(tokens).logits
        after = PeftModel.from_pretrained(plain, only_run()).eval()(tokens).logits
    assert (after - before).abs().max() > 1e-2
    assert loraga("train", "--dry-run", *arguments("llama", *options, "model.quantization=stored"))


@pytest.mark.parametrize(
    ("stored", "options", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, [], "quantized by gptq, on which loraga does not train"),
        ({"quant_method": "awq", "bits": 4}, [], "quantized by awq, on which loraga does not train"),
        ({"quant_method": "hqq"}, ["model.quantization=int8"], "with model.quantization=int8"),
        ({"quant_method": "made_up"}, [], "quantized by made_up"),
        ({"quant_method": "fp8"}, ["model.quantization=nf4"], "leave model.quantization out"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, [], "=stored trains on"),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            ["model.quantization=int8"],
            "would quantize them again",
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
            ["model.quantization=stored"],
            "as fp4, through which PEFT does not train",
        ),
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
            ["model.quantization=stored"],
            "as Int4WeightOnlyConfig, through which PEFT does not train",
        ),
        ({}, ["model.quantization=stored"], "its files hold no quantized weights"),
    ],
    ids=lambda item: str(item.get("quant_method", "none")) if isinstance(item, dict) else None,
)
@pytest.mark.parametrize("command", [["train"], ["train", "--dry-run"]], ids=["train", "dry run"])
def test_what_does_not_train_is_refused_before_any_weight_is_read(
    loraga: Loraga,
    arguments: Arguments,
    tmp_path: Path,
    command: list[str],
    stored: dict[str, Any],
    options: list[str],
    message: str,
) -> None:
    build_model("llama").config.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    config = json.loads(file.read_text()) | ({"quantization_config": stored} if stored else {})
    file.write_text(json.dumps(config))
    out = loraga(*command, *arguments("llama", "method=lora", f"model.path={tmp_path / 'base'}", *options), code=2)
    assert message in " ".join(out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["method=full"], "quantized weights cannot be trained"),
        (["method=lora_ga", "method.offset=base"], "use method.offset=adapter"),
        (["method=lora_ga", "gradient=exact"], "use gradient=sketch"),
    ],
)
def test_what_quantized_weights_rule_out_is_refused(
    loraga: Loraga, arguments: Arguments, options: list[str], message: str
) -> None:
    assert message in loraga("train", *arguments("llama", *options, "model.quantization=stored"), code=2)
