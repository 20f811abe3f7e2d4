"""Where models differ: which blocks are the last, where sublayers end, heads of several layers, what cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from lora_ga_cli.errors import TargetError
from lora_ga_cli.methods import bottleneck, prefix
from lora_ga_cli.model.blocks import blocks
from tests.conftest import build_batch, build_model, byte_tokenizer
from tests.helpers import Arguments, Loraga, configured, only_run, prepare


def test_the_last_blocks_of_an_encoder_and_a_decoder_are_the_decoders() -> None:
    config = T5Config(vocab_size=259, d_model=32, d_kv=8, d_ff=64, num_heads=4, num_layers=6, num_decoder_layers=4)
    model = T5ForConditionalGeneration(config)
    assert blocks(model) is model.decoder.block


@pytest.mark.parametrize(
    "model",
    [
        BloomForCausalLM(BloomConfig(vocab_size=259, hidden_size=32, n_layer=2, n_head=4)),
        build_model("gpt2"),
        build_model("llama"),
    ],
    ids=["bloom", "gpt2", "llama"],
)
def test_every_block_gets_two_bottlenecks(model: torch.nn.Module) -> None:
    assert len(bottleneck.places(model, "all-linear")) == 4


def test_a_model_whose_sublayers_are_not_all_known_is_refused() -> None:
    model = GPTJForCausalLM(GPTJConfig(vocab_size=259, n_embd=32, n_layer=2, n_head=4, rotary_dim=8))
    for block in model.transformer.h:
        block.mlp.other = block.mlp.fc_out
        del block.mlp.fc_out
    with pytest.raises(TargetError, match="attention and feed-forward layers end is not known"):
        bottleneck.places(model, "all-linear")


def test_a_trained_prefix_of_every_layer_takes_its_input_however_it_is_given() -> None:
    batch = build_batch("llama")
    model = build_model("llama").eval()
    prefix.insert(model, 3)
    with torch.no_grad():
        named = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        placed = model(batch["input_ids"], batch["attention_mask"]).logits
        alone = model(batch["input_ids"][:1, :5]).logits
    torch.testing.assert_close(placed, named)
    torch.testing.assert_close(alone, named[:1, :5])


def test_a_prefix_and_a_class_at_the_last_token_do_not_go_together(
    loraga: Loraga, arguments: Arguments, saved_bases: dict[str, Path]
) -> None:
    options = ["method=prefix_embedding", f"model.path={saved_bases['llama']}"]
    out = loraga("train", *arguments("bert", *options), code=2)
    assert "cannot find behind a trained prefix" in out


@pytest.mark.parametrize("method", ["lora", "adalora", "prefix_embedding"])
def test_a_head_of_several_layers_trains_and_is_saved_completely(
    loraga: Loraga, arguments: Arguments, tmp_path: Path, method: str
) -> None:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=259, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80, pad_token_id=2
    )
    RobertaModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "roberta")
    byte_tokenizer().save_pretrained(tmp_path / "roberta")
    options = [f"model.path={tmp_path / 'roberta'}", f"method={method}"]
    options += ["method.prefix_length=3"] if method == "prefix_embedding" else []
    out = loraga("train", *arguments("bert", *options))
    assert "reloaded, its logits equal" in out


def test_the_best_checkpoint_of_adalora_is_read_back(loraga: Loraga, arguments: Arguments) -> None:
    options = [
        "method=adalora",
        "trainer.load_best=true",
        "method.interval=1",
        "dataset.validation_fraction=0.1",
    ]
    loraga("train", *arguments("llama", *options, "trainer.max_steps=10"))
    assert json.loads((only_run() / "manifest.json").read_text())["adapter_rank"] == 6  # every triplet is kept


def test_adalora_takes_ranks_away_however_short_the_run() -> None:
    model = prepare(build_model("llama"), configured("adalora", "method.final=0")).model
    config = model.peft_config["default"]
    assert (config.tfinal, config.total_step) == (1, 100)


@pytest.mark.parametrize("method", ["prefix_layer", "prefix_embedding", "adalora", "dora", "bottleneck_adapter"])
def test_a_dry_run_forecasts_it(loraga: Loraga, arguments: Arguments, method: str) -> None:
    out = loraga("train", "--dry-run", *arguments("llama", f"method={method}"))
    assert "parameters train" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["method=bottleneck_adapter", "model.quantization=nf4"], "goes with PEFT's adapters"),
        (["method=adalora", "trainer.precision=fp16"], "fp16's scaling"),
        (["method=adalora", "method.use_rslora=true"], "no option method.use_rslora for method adalora"),
        (["method=prefix_layer", "method.prefix_length=250"], "positions"),
        (["method=adalora", "trainer.max_steps=2", "method.warmup=0.5"], "of the 2 steps of this run"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_what_does_not_go_together_is_refused_at_once(
    loraga: Loraga,
    arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    options: list[str],
    message: str,
) -> None:
    """Before weights are loaded, and without a run too."""
    monkeypatch.setattr("lora_ga_cli.stages.inputs.load_model", lambda *_, **__: pytest.fail("it was loaded"))
    assert message in loraga("train", *flags, *arguments("llama", *options), code=2)
