"""Methods that leave out what they do not need: no initial factors, no size, no adapter of PEFT's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import MethodOptions
from lora_ga_cli.lora.layers import lora_ranks
from lora_ga_cli.methods.base import AdapterOutput, InitData, Link, Method, PreparedModel
from lora_ga_cli.methods.custom import CustomAdapter
from lora_ga_cli.methods.lora import Lora, LoraOptions
from lora_ga_cli.registry import METHODS
from tests.helpers import Arguments, Loraga, only_run


class OutputBias(CustomAdapter):
    """One trained vector added to the logits. It has neither rank nor layers."""

    class Options(MethodOptions):
        type: Literal["output_bias"] = "output_bias"

    @property
    def output(self) -> AdapterOutput:
        return AdapterOutput("a bias of the logits", "loraga", mergeable=False)

    def settings(self, model: PreTrainedModel) -> dict[str, Any]:
        return {"size": model.config.vocab_size}

    @classmethod
    def insert(cls, model: nn.Module, settings: Mapping[str, Any]) -> None:
        head: Any = model.lm_head
        head.output_bias = nn.Parameter(torch.zeros(settings["size"]))

        def add(module: Any, _: Any, output: Tensor) -> Tensor:
            return output + module.output_bias

        head.register_forward_hook(add)


class GradientLora(Lora):
    """Needs a gradient, keeps none of it, and returns no initialization."""

    class Options(LoraOptions):
        type: Literal["gradient_lora"] = "gradient_lora"

    @property
    def needs_gradient(self) -> bool:
        return True

    def prepare(self, model: PreTrainedModel, *, link: Link, data: InitData, stored: Any) -> PreparedModel:
        artifact = data.gradient()
        prepared = super().prepare(model, link=link, data=data, stored=stored)
        assert set(artifact.factors)
        return prepared


class HalfSized(Lora):
    """Says its size in a unit of its own, the number of pairs of a layer."""

    class Options(LoraOptions):
        type: Literal["half_sized"] = "half_sized"

    @property
    def output(self) -> AdapterOutput:
        return AdapterOutput("pairs", "PEFT", size="pairs")

    def built_size(self, model: nn.Module) -> list[int]:
        return [rank // 2 for rank in lora_ranks(model)]


class Head(Method):
    """Trains the last normalization of the model itself, and describes nothing."""

    class Options(MethodOptions):
        type: Literal["last_norm"] = "last_norm"

    @property
    def output(self) -> AdapterOutput:
        return AdapterOutput("the complete model", "transformers", is_adapter=False)

    def attach(self, model: PreTrainedModel, link: Link) -> PreTrainedModel:
        model.requires_grad_(False)
        model.model.norm.weight.requires_grad_(True)
        return model


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The methods above, each with its file in a folder of the user's."""
    classes = {item.Options().type: item for item in (OutputBias, GradientLora, HalfSized, Head)}
    monkeypatch.setattr(METHODS, "_classes", {name: METHODS[name] for name in METHODS.names()} | classes)
    folder = tmp_path / "mine" / "method"
    folder.mkdir(parents=True)
    for name in classes:
        (folder / f"{name}.yaml").write_text(f"# A method of a test.\nname: {name}\ntype: {name}\n")
    return tmp_path / "mine"


@pytest.mark.parametrize(
    ("method", "size", "described"),
    [
        ("output_bias", None, "a bias of the logits for"),
        ("gradient_lora", 4, "a standard LoRA adapter of rank 4"),
        ("half_sized", 2, "pairs of pairs 2"),
        ("last_norm", None, "the complete model"),
    ],
)
def test_a_method_that_leaves_things_out_trains_reloads_and_is_scored(
    loraga: Loraga, arguments: Arguments, registered: Path, method: str, size: int | None, described: str
) -> None:
    command = ["--config-dir", str(registered), *arguments("llama", f"method={method}")]
    assert "parameters train" in loraga("train", "--dry-run", *command)
    loraga("init", *command)
    out = loraga("train", *command)
    run = only_run()
    assert described in " ".join(out.split())
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["adapter_rank"] == size
    assert not (run / "init.safetensors").exists()
    loraga("eval", str(run))
    scored = json.loads((run / "eval.json").read_text())["values"]["loss"]
    assert scored == pytest.approx(manifest["validation_loss"], rel=1e-4)


def test_a_gradient_is_estimated_once_where_no_initialization_is_stored(
    loraga: Loraga, arguments: Arguments, registered: Path
) -> None:
    command = ["--config-dir", str(registered), *arguments("llama", "method=gradient_lora")]
    assert "gradient  estimated" in loraga("init", *command)
    assert "gradient  reused" in loraga("train", *command)
