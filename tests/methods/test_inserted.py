"""Adapters that are modules put into a model: saving them, loading them, and what is wrong with either."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lora_ga_cli.errors import RunError
from lora_ga_cli.methods import inserted
from tests.conftest import build_batch, build_model
from tests.methods.test_build import build_with


def changed(model: PreTrainedModel) -> PreTrainedModel:
    """A model whose trained numbers are others than at their start."""
    with torch.no_grad():
        for item in model.parameters():
            if item.requires_grad:
                item.normal_(std=0.1)
    return model.eval()


@pytest.fixture
def bottlenecks(tmp_path: Path) -> Path:
    """Of a llama, saved."""
    inserted.save(changed(build_with(build_model("llama"), "bottleneck_adapter").model), tmp_path / "saved")
    return tmp_path / "saved"


def test_a_classifiers_plain_base_takes_its_head_from_the_file(tmp_path: Path) -> None:
    trained = build_model("bert")
    trained.newly_initialized = ["classifier"]
    inserted.insert(trained, "bottleneck", {"modules": ["bert.encoder.layer.0.output.dense"], "width": 3})
    inserted.save(changed(trained), tmp_path)
    other = build_model("bert")
    other.classifier.reset_parameters()
    loaded = inserted.load(other, tmp_path).eval()
    batch = build_batch("bert")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, trained(**batch).logits)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not the description"),
        ("[]", "not the description"),
        ('{"kind": "other", "about": {}}', "not the description .*other"),
        ('{"kind": "bottleneck", "about": {"modules": []}}', "not the description .*width"),
        ('{"kind": "bottleneck", "about": {"modules": 3, "width": 2}}', "not the description .*modules=3"),
        ('{"kind": "bottleneck", "about": {"modules": ["x", 3], "width": 2}}', "not the description .*modules="),
        ('{"kind": "bottleneck", "about": {"modules": [], "width": "2"}}', "not the description .*width='2'"),
        ('{"kind": "prefix_layer", "about": {"length": 0}}', "not the description .*length=0"),
        ('{"kind": "bottleneck", "about": {"modules": ["x"], "width": 2}}', "this bottleneck does not go on Llama"),
        (None, "there is no such file"),
    ],
)
def test_a_malformed_description_is_named(bottlenecks: Path, text: str | None, said: str) -> None:
    file = bottlenecks / inserted.ABOUT_FILE
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(RunError, match=f"{re.escape(str(file))}: {said}"):
        inserted.load(build_model("llama"), bottlenecks)


def test_a_fault_of_our_own_is_not_taken_for_a_wrong_file(bottlenecks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: PreTrainedModel, modules: list[str], width: int) -> None:
        raise AttributeError("a bug")

    monkeypatch.setitem(inserted.KINDS, "bottleneck", broken)
    with pytest.raises(AttributeError, match="a bug"):
        inserted.load(build_model("llama"), bottlenecks)


def test_damaged_weights_are_named(bottlenecks: Path) -> None:
    file = bottlenecks / inserted.WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match=f"{re.escape(str(file))}: no whole safetensors file"):
        inserted.load(build_model("llama"), bottlenecks)


def test_another_base_is_named(bottlenecks: Path) -> None:
    with pytest.raises(RunError, match=r"this bottleneck does not go on GPT2LMHeadModel: .*o_proj"):
        inserted.load(build_model("gpt2"), bottlenecks)
    file = bottlenecks / inserted.ABOUT_FILE
    stored = json.loads(file.read_text())
    stored["about"]["width"] += 1
    file.write_text(json.dumps(stored))
    with pytest.raises(RunError, match=r"bottleneck\.down\.weight is \(4, 48\) there, and \(5, 48\) in this Llama"):
        inserted.load(build_model("llama"), bottlenecks)


def test_a_prefix_of_a_decoder_does_not_go_on_an_encoder_and_decoder(tmp_path: Path) -> None:
    inserted.save(build_with(build_model("llama"), "prefix_layer").model, tmp_path)
    with pytest.raises(RunError, match=r"inserted\.json: this prefix_layer does not go on T5.*has an encoder"):
        inserted.load(build_model("t5"), tmp_path)
