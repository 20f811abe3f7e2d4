"""Adapters that PEFT does not have: saving them, loading them, and what is wrong with either."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lora_ga_cli.errors import InvalidInput, RunError
from lora_ga_cli.methods import bottleneck, custom
from lora_ga_cli.methods.base import Model, method_of
from lora_ga_cli.methods.loading import load_adapter
from tests.conftest import build_batch, build_model
from tests.helpers import configured, configured_classifier, prepare


def trained(method: str, *overrides: str) -> PreTrainedModel:
    """A llama with a method, whose parameters moved away from their initial values."""
    return moved(prepare(build_model("llama"), configured(method, *overrides)).model)


def moved(model: Model) -> PreTrainedModel:
    with torch.no_grad():
        for item in model.parameters():
            if item.requires_grad:
                item.normal_(std=0.1)
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def load(base: PreTrainedModel, folder: Path) -> Model:
    return load_adapter(base, folder, "cpu")


@pytest.fixture
def bottlenecks(tmp_path: Path) -> Path:
    """Bottleneck adapters of a llama, saved."""
    config = configured("bottleneck_adapter")
    method_of(config).save(trained("bottleneck_adapter"), tmp_path / "saved", None)
    return tmp_path / "saved"


def test_a_classifiers_plain_base_takes_its_head_from_the_file(tmp_path: Path) -> None:
    config = configured_classifier("bottleneck_adapter", "target_modules=[layer.0.output.dense]")
    base = build_model("bert")
    base.newly_initialized = ["classifier"]
    model = moved(prepare(base, config).model)
    method_of(config).save(model, tmp_path, None)
    other = build_model("bert")
    other.classifier.reset_parameters()
    loaded, batch = load(other, tmp_path), build_batch("bert")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not the description"),
        ("[]", "not the description"),
        ('{"type": "bottleneck"}', "not the description .*settings"),
        ('{"type": "bottleneck", "settings": {"modules": []}}', "not the settings .*width"),
        ('{"type": "bottleneck", "settings": {"modules": 3, "width": 2}}', "not the settings .*modules=3"),
        ('{"type": "bottleneck", "settings": {"modules": ["x", 3], "width": 2}}', "not the settings .*modules="),
        ('{"type": "bottleneck", "settings": {"modules": [], "width": "2"}}', "not the settings .*width='2'"),
        ('{"type": "prefix_layer", "settings": {"length": 0}}', "not the settings .*length=0"),
        ('{"type": "bottleneck", "settings": {"modules": ["x"], "width": 2}}', "this adapter does not go on Llama"),
        ('{"type": "lora", "settings": {}}', "not the description .*lora"),
    ],
)
def test_a_malformed_description_is_named(bottlenecks: Path, text: str, message: str) -> None:
    file = bottlenecks / custom.CONFIG_FILE
    file.write_text(text)
    with pytest.raises(RunError, match=f"{re.escape(str(file))}: .*{message}"):
        load(build_model("llama"), bottlenecks)


def test_a_missing_description_is_named(bottlenecks: Path) -> None:
    (bottlenecks / custom.CONFIG_FILE).unlink()
    with pytest.raises(RunError, match=rf"{custom.CONFIG_FILE}: this file is missing"):
        custom.read_config(bottlenecks)


def test_an_adapter_of_a_method_that_is_not_registered_says_how_to_register_it(bottlenecks: Path) -> None:
    (bottlenecks / custom.CONFIG_FILE).write_text('{"type": "other", "settings": {}}')
    with pytest.raises(InvalidInput, match=r"no method type 'other'.*--code FILE"):
        load(build_model("llama"), bottlenecks)


def test_a_bug_is_not_taken_for_a_wrong_file(bottlenecks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: PreTrainedModel, modules: list[str], width: int) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr(bottleneck, "insert", broken)
    with pytest.raises(AttributeError, match="a bug"):
        load(build_model("llama"), bottlenecks)


def test_damaged_weights_are_named(bottlenecks: Path) -> None:
    file = bottlenecks / custom.WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match=f"{re.escape(str(file))}: this is not a complete safetensors file"):
        load(build_model("llama"), bottlenecks)


def test_another_base_is_named(bottlenecks: Path) -> None:
    with pytest.raises(RunError, match=r"this adapter does not go on GPT2LMHeadModel: .*o_proj"):
        load(build_model("gpt2"), bottlenecks)
    file = bottlenecks / custom.CONFIG_FILE
    stored = json.loads(file.read_text())
    stored["settings"]["width"] += 1
    file.write_text(json.dumps(stored))
    with pytest.raises(RunError, match=r"bottleneck\.down\.weight is \(4, 48\) there, and \(5, 48\) in this Llama"):
        load(build_model("llama"), bottlenecks)


def test_a_prefix_of_a_decoder_does_not_go_on_an_encoder_and_decoder(tmp_path: Path) -> None:
    method_of(configured("prefix_layer")).save(trained("prefix_layer"), tmp_path, None)
    with pytest.raises(RunError, match=rf"{custom.CONFIG_FILE}: this adapter does not go on T5.*has an encoder"):
        load(build_model("t5"), tmp_path)
