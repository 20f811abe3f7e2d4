"""Methods as papers define them: what trains, how it starts, how it is scaled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lora_ga_cli.methods.build import Trainable, build, build_empty, count_trained
from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments

from lora_ga_cli import GradientArtifact, estimate_gradients
from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import TargetError
from lora_ga_cli.lora.offset import lora_layers
from lora_ga_cli.model.targets import find_targets
from lora_ga_cli.training.trainer import LoragaTrainer
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


def classifying(method: str, *overrides: str) -> Config:
    rows = ["model=classifier", "dataset=classification", "dataset.train_file=x", "model.path=x"]
    return compose([*rows, f"method={method}", "rank=4", *overrides])


def built(method: str, *overrides: str):  # type: ignore[no-untyped-def]
    model = build_model("llama")
    gradient = lambda: estimate_gradients(model, [build_batch("llama")])  # noqa: E731
    return build(model, configured(method, *overrides), steps=100, artifact=gradient, stored=None)


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


SHAPES = [target.shape for target in find_targets(build_model("llama")).values()]
D_MODEL, LAYERS, RANK, LENGTH = 48, 2, 4, 5
PAIRS = sum(RANK * (d_out + d_in) for d_out, d_in in SHAPES)
COUNTS = {
    "lora": PAIRS,
    "pissa": PAIRS,
    "lora_plus": PAIRS,
    "lora_gaussian": PAIRS,
    "lora_so": PAIRS,
    "lora_ga_unscaled": PAIRS,
    "dora": PAIRS + sum(d_out for d_out, _ in SHAPES),  # a magnitude an output
    "lora_ga_dora": PAIRS + sum(d_out for d_out, _ in SHAPES),
    "adalora": sum(6 * (d_out + d_in + 1) for d_out, d_in in SHAPES),  # P, Λ, Q of rank 1.5 · 4
    "prefix_embedding": LENGTH * D_MODEL,  # d_model · l_p
    "prefix_layer": LAYERS * LENGTH * D_MODEL,  # L · d_model · l_p
    "bottleneck_adapter": 2 * LAYERS * (2 * D_MODEL * RANK + RANK + D_MODEL),  # L̂ · (2 · d_model · r + r + d_model)
}
"""What the papers count: LoRA, section 5.1 and table 5 of its appendix; DoRA; AdaLoRA."""


@pytest.mark.parametrize("method", COUNTS)
def test_parameters_are_counted_as_in_the_papers(method: str) -> None:
    options = ["method.prefix_length=5"] if method.startswith("prefix") else []
    assert built(method, *options).parameters == COUNTS[method]
    empty = build_empty(build_model("llama").to("meta"), configured(method, *options))
    assert count_trained(empty, configured(method, *options)) == COUNTS[method]


def test_bitfit_trains_every_bias_and_the_last_blocks_are_the_last() -> None:
    model = build_model("gpt2")
    biases = sum(item.numel() for name, item in model.named_parameters() if name.endswith(".bias"))
    assert build_with(model, "bitfit").parameters == biases
    model = build_model("llama")
    build_with(model, "full_top_layers", "method.top_layers=1")
    trained = {name for name, item in model.named_parameters() if item.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("model.layers.1.")}


def build_with(model: PreTrainedModel, method: str, *overrides: str) -> Trainable:
    return build(model, configured(method, *overrides), steps=100, artifact=no_gradient, stored=None)


def no_gradient() -> GradientArtifact:
    raise AssertionError("no gradient is needed")


def test_what_a_model_has_not_got_is_said() -> None:
    with pytest.raises(TargetError, match="LlamaForCausalLM has no bias"):
        build_with(build_model("llama"), "bitfit")
    with pytest.raises(TargetError, match=r"method\.top_layers=3, and LlamaForCausalLM has 2 blocks"):
        build_with(build_model("llama"), "full_top_layers", "method.top_layers=3")
    with pytest.raises(TargetError, match=r"rank_pattern: 'q_prj' matches no target .*q_proj"):
        build_with(build_model("llama"), "lora", "rank_pattern={q_prj: 2}")


@pytest.mark.parametrize("steps", [1, 2])
def test_adalora_says_when_steps_are_too_few_to_move_ranks(steps: int) -> None:
    options = ["method.adalora.warmup=0.5"]
    with pytest.raises(TargetError, match=rf"a run of {steps} has .* after the last: more rows"):
        build(build_model("llama"), configured("adalora", *options), steps=steps, artifact=no_gradient, stored=None)


def test_ranks_of_layers_are_honoured_by_every_start() -> None:
    for method in ("lora", "pissa", "lora_ga", "lora_so"):
        for shift in ("weights", "adapter"):
            options = ["rank_pattern={q_proj: 2, down_proj: 6}"]
            options += [f"method.shift={shift}"] if method != "lora" else []
            trainable = built(method, *options)
            twice = 2 if shift == "adapter" and method != "lora" else 1
            for name, layer in lora_layers(trainable.model).items():
                ending = name.rsplit(".", 1)[-1]
                rank = {"q_proj": 2, "down_proj": 6}.get(ending, 4)
                assert layer.lora_A["default"].weight.shape[0] == rank * twice
                scaling = 16 / rank if method in ("lora", "pissa") else 16 / rank**0.5
                assert layer.scaling["default"] == pytest.approx(scaling)


def test_pissa_takes_the_weights_leading_triplets() -> None:
    """Against numpy's decomposition in float64: ``s·B0·A0`` is the best approximation of rank 4."""
    weights = {name: target.weight.detach().double() for name, target in find_targets(build_model("llama")).items()}
    start = built("pissa").start
    for name, (a0, b0) in start.factors.items():
        left, singular, right = np.linalg.svd(weights[name].numpy(), full_matrices=False)
        best = left[:, :4] * singular[:4] @ right[:4]
        found = start.scalings[name] * (b0.double() @ a0.double()).numpy()
        assert np.linalg.norm(found - best) < 3e-4 * np.linalg.norm(best)  # PEFT decomposes in float32
        # the two carry the singular values in equal parts
        assert np.linalg.norm(a0.numpy(), axis=1) == pytest.approx(np.linalg.norm(b0.numpy(), axis=0), rel=1e-4)


def test_random_starts_have_the_papers_variance_and_scale() -> None:
    for method, size in (("lora_gaussian", lambda d_out: 1.0), ("lora_so", lambda d_out: d_out**0.25 / 16**0.5)):
        start = built(method, "rank=24").start
        for a0, b0 in start.factors.values():
            d_out, d_in = len(b0), a0.shape[1]
            assert float(a0.std()) == pytest.approx(size(d_out) / d_out**0.5, rel=0.15)
            assert float(b0.std()) == pytest.approx(size(d_out) / d_in**0.5, rel=0.15)


def settings_of_parameters(trainable: Trainable, folder: Path, setting: str) -> dict[str, float]:
    """What an optimizer of LoRA+ with weight decay has for each parameter, by name."""
    arguments = TrainingArguments(str(folder), learning_rate=1e-3, weight_decay=0.1, use_cpu=True, report_to="none")
    trainer = LoragaTrainer(model=trainable.model, args=arguments, loraplus_lr_ratio=16.0)
    names = {id(item): name for name, item in trainable.model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    return {names[id(item)]: group[setting] for group in groups for item in group["params"]}


@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_lora_plus_gives_b_alone_its_own_rate(tmp_path: Path, family: str, adapter: str) -> None:
    """Not DoRA's magnitudes, nor the weight and bias of a new head."""
    model, options = build_model(family), ["method.loraplus_lr_ratio=16", f"method.adapter={adapter}"]
    config = configured("lora_plus", *options)
    if family == "bert":
        model.newly_initialized = ["classifier"]
        config = classifying("lora_plus", *options)
    trainable = build(model, config, steps=100, artifact=no_gradient, stored=None)
    rates = settings_of_parameters(trainable, tmp_path, "lr")
    assert {name for name, rate in rates.items() if rate == 1.6e-2} == {name for name in rates if ".lora_B." in name}
    assert {rate for name, rate in rates.items() if ".lora_B." not in name} == {1e-3}
    assert set(rates) == {name for name, item in trainable.model.named_parameters() if item.requires_grad}
    decays = settings_of_parameters(trainable, tmp_path, "weight_decay")
    assert {decay for name, decay in decays.items() if not name.endswith("bias")} == {0.1}


def test_a_shipped_method_file_says_its_own_name() -> None:
    for file in (Path(__file__).parents[2] / "conf" / "method").glob("*.yaml"):
        assert configured(file.stem).method.name == file.stem
