"""Methods as papers define them: what trains, how it starts, how it is scaled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from lora_ga_cli import estimate_gradients
from lora_ga_cli.adapter.install import lora_layers
from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.schema import Config
from lora_ga_cli.methods.build import build, build_empty
from lora_ga_cli.model.targets import find_targets
from tests.conftest import build_batch, build_model


def configured(method: str, *overrides: str) -> Config:
    return compose(
        [
            "model=causal_lm",
            "model.path=x",
            "model.dtype=float32",
            "dataset=jsonl",
            "dataset.train_file=x",
            f"method={method}",
            "rank=4",
            *overrides,
        ]
    )


def built(method: str, *overrides: str):  # type: ignore[no-untyped-def]
    model = build_model("llama")
    gradient = lambda: estimate_gradients(model, [build_batch("llama")])  # noqa: E731
    return build(model, configured(method, *overrides), artifact=gradient, stored=None)


@pytest.mark.parametrize("method", ["lora", "rslora", "lora_ga"])
def test_an_adapter_trains_rank_times_both_sides(method: str) -> None:
    shapes = [target.shape for target in find_targets(build_model("llama")).values()]
    trainable = built(method)
    assert trainable.parameters == sum(4 * (d_out + d_in) for d_out, d_in in shapes)
    empty = build_empty(build_model("llama").to("meta"), configured(method))
    assert sum(item.numel() for item in empty.parameters() if item.requires_grad) == trainable.parameters


def test_a_carried_start_does_not_count_as_trained() -> None:
    """The frozen half doubles the adapter and not what trains."""
    carried, shifted = built("lora_ga", "method.shift=adapter"), built("lora_ga", "method.shift=weights")
    assert carried.parameters == shifted.parameters
    empty = build_empty(build_model("llama").to("meta"), configured("lora_ga", "method.shift=adapter"))
    assert sum(item.numel() for item in empty.parameters() if item.requires_grad) == 2 * shifted.parameters


def test_full_fine_tuning_trains_everything() -> None:
    trainable = built("full")
    assert trainable.parameters == sum(item.numel() for item in build_model("llama").parameters())
    assert not isinstance(trainable.model, PeftModel)


@pytest.mark.parametrize(("method", "scaling"), [("lora", 16 / 4), ("rslora", 16 / 2), ("lora_ga", 16 / 2)])
def test_scaling_is_the_papers(method: str, scaling: float) -> None:
    layers = lora_layers(built(method).model)
    assert {layer.scaling["default"] for layer in layers.values()} == {scaling}


def test_lora_starts_at_zero_and_the_same_for_a_seed() -> None:
    torch.manual_seed(1)
    one = built("lora")
    torch.manual_seed(2)
    other = built("lora")
    for name, layer in lora_layers(one.model).items():
        assert not layer.lora_B["default"].weight.any()
        assert torch.equal(layer.lora_A["default"].weight, lora_layers(other.model)[name].lora_A["default"].weight)
    assert one.start is None


def test_the_rank_asked_for_is_the_rank_built() -> None:
    for rank in (1, 3, 8):
        layers = lora_layers(built("lora_ga", f"rank={rank}").model)
        assert {layer.lora_A["default"].weight.shape[0] for layer in layers.values()} == {rank}


def test_targets_and_dropout_are_honoured() -> None:
    trainable = built("lora_ga", "target_modules=[q_proj,v_proj]", "adapter_dropout=0.25")
    layers = lora_layers(trainable.model)
    assert {name.rsplit(".", 1)[-1] for name in layers} == {"q_proj", "v_proj"}
    assert {layer.lora_dropout["default"].p for layer in layers.values()} == {0.25}


def test_a_shipped_method_file_says_its_own_name() -> None:
    for file in (Path(__file__).parents[2] / "conf" / "method").glob("*.yaml"):
        assert configured(file.stem).method.name == file.stem
