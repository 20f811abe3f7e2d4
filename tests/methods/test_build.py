"""Methods as papers define them: what trains, how it is initialized, how it is scaled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import InvalidInput, TargetError
from lora_ga_cli.lora.layers import lora_layers, trained_parameters
from lora_ga_cli.methods.base import Link, PreparedModel, method_of
from lora_ga_cli.methods.chain import draw_layers
from lora_ga_cli.model.targets import find_targets
from lora_ga_cli.training.order import Order
from lora_ga_cli.training.passes import Limits
from lora_ga_cli.training.trainer import LoragaTrainer
from tests.conftest import build_model
from tests.helpers import configured, configured_classifier, empty, prepare


def prepared(method: str, *overrides: str) -> PreparedModel:
    return prepare(build_model("llama"), configured(method, *overrides))


@pytest.mark.parametrize("method", ["lora", "rslora", "lora_ga"])
def test_an_adapter_trains_rank_times_both_sides(method: str) -> None:
    shapes = [target.shape for target in find_targets(build_model("llama")).values()]
    parameters = prepared(method).parameters
    assert parameters == sum(4 * (d_out + d_in) for d_out, d_in in shapes)
    assert trained_parameters(empty(build_model("llama"), configured(method))) == parameters


def test_the_same_parameters_train_wherever_the_offset_is() -> None:
    in_adapter, in_base = prepared("lora_ga", "method.offset=adapter"), prepared("lora_ga", "method.offset=base")
    assert in_adapter.parameters == in_base.parameters
    for offset in ("adapter", "base"):
        model = empty(build_model("llama"), configured("lora_ga", f"method.offset={offset}"))
        assert trained_parameters(model) == in_base.parameters


def test_full_fine_tuning_trains_everything() -> None:
    model = prepared("full")
    assert model.parameters == sum(item.numel() for item in build_model("llama").parameters())
    assert not isinstance(model.model, PeftModel)


@pytest.mark.parametrize(("method", "scaling"), [("lora", 16 / 4), ("rslora", 16 / 2), ("lora_ga", 16 / 2)])
def test_scaling_is_the_papers(method: str, scaling: float) -> None:
    layers = lora_layers(prepared(method).model)
    assert {layer.scaling["default"] for layer in layers.values()} == {scaling}


def test_lora_has_zero_b_and_the_same_a_for_a_seed() -> None:
    torch.manual_seed(1)
    one = prepared("lora")
    torch.manual_seed(2)
    other = prepared("lora")
    for name, layer in lora_layers(one.model).items():
        assert not layer.lora_B["default"].weight.any()
        assert torch.equal(layer.lora_A["default"].weight, lora_layers(other.model)[name].lora_A["default"].weight)
    assert one.init is None


def test_the_rank_asked_for_is_the_rank_built() -> None:
    for rank in (1, 3, 8):
        layers = lora_layers(prepared("lora_ga", f"rank={rank}").model)
        assert {layer.lora_A["default"].weight.shape[0] for layer in layers.values()} == {rank}


def test_targets_and_dropout_are_honoured() -> None:
    model = prepared("lora_ga", "target_modules=[q_proj,v_proj]", "adapter_dropout=0.25").model
    layers = lora_layers(model)
    assert {name.rsplit(".", 1)[-1] for name in layers} == {"q_proj", "v_proj"}
    assert {layer.lora_dropout["default"].p for layer in layers.values()} == {0.25}


TARGETS = {name: target.shape for name, target in find_targets(build_model("llama")).items()}
SHAPES = list(TARGETS.values())
D_MODEL, LAYERS, RANK, LENGTH = 48, 2, 4, 5
PAIRS = sum(RANK * (d_out + d_in) for d_out, d_in in SHAPES)
DRAWN = draw_layers(list(TARGETS), 8, configured("xgb_lora").seed, 0)
COUNTS = {
    "full_linear": sum(d_out * d_in for d_out, d_in in SHAPES),
    "lora": PAIRS,
    "pissa": PAIRS,
    "lora_plus": PAIRS,
    "lora_gaussian": PAIRS,
    "lora_so": PAIRS,
    "lora_ga_unscaled": PAIRS,
    "lora_allocated": PAIRS,  # at the parameters of a uniform rank, which it reaches on this model
    "hetero_lora": PAIRS // 2,
    "sora": PAIRS + RANK * len(SHAPES),  # a gate for each rank
    "lora_pro": PAIRS,
    "lora_rite": PAIRS,
    "lora_muon": PAIRS,
    "scaled_adamw": PAIRS,
    "lora_fa": sum(RANK * d_out for d_out, _ in SHAPES),  # B alone
    "dora": PAIRS + sum(d_out for d_out, _ in SHAPES),  # a magnitude an output
    "lora_ga_dora": PAIRS + sum(d_out for d_out, _ in SHAPES),
    "glora": 2 * PAIRS,  # the factors of A, and those of B
    "qa_lora": sum(RANK * (d_out + d_in // 8) for d_out, d_in in SHAPES),  # in groups of 8 inputs
    "adalora": sum(6 * (d_out + d_in + 1) for d_out, d_in in SHAPES),  # P, Λ, Q of rank 1.5 · 4
    "prefix_embedding": LENGTH * D_MODEL,  # d_model · l_p
    "prefix_layer": LAYERS * LENGTH * D_MODEL,  # L · d_model · l_p
    "cola": PAIRS,
    "relora": PAIRS,
    "asymmetric_lora": sum(RANK * d_out for d_out, _ in SHAPES),
    "rac_lora": sum(RANK * d_out for d_out, _ in SHAPES),
    "galore_chain": sum(RANK * d_out for d_out, _ in SHAPES),
    "xgb_lora": sum(sum(TARGETS[name]) for name in DRAWN),  # rank 1 in eight layers
    "bottleneck_adapter": 2 * LAYERS * (2 * D_MODEL * RANK + RANK + D_MODEL),  # L̂ · (2 · d_model · r + r + d_model)
}
"""What the papers count: LoRA, section 5.1 and table 5 of its appendix; DoRA; AdaLoRA."""


@pytest.mark.parametrize("method", COUNTS)
def test_parameters_are_counted_as_in_the_papers(method: str) -> None:
    options = ["method.prefix_length=5"] if method.startswith("prefix") else []
    options += ["method.group_size=8"] if method == "qa_lora" else []
    assert prepared(method, *options).parameters == COUNTS[method]
    model = empty(build_model("llama"), configured(method, *options))
    assert trained_parameters(model) == COUNTS[method]


def test_bitfit_trains_every_bias_and_the_last_blocks_are_the_last() -> None:
    model = build_model("gpt2")
    biases = sum(item.numel() for name, item in model.named_parameters() if name.endswith(".bias"))
    assert prepare(model, configured("bitfit")).parameters == biases
    model = build_model("llama")
    prepare(model, configured("full_top_layers", "method.top_layers=1"))
    trained = {name for name, item in model.named_parameters() if item.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("model.layers.1.")}


def test_full_training_of_linear_layers_trains_the_weights_that_an_adapter_would_change() -> None:
    model = build_model("gpt2")
    prepare(model, configured("full_linear", "target_modules=[c_attn]"))
    trained = {name for name, item in model.named_parameters() if item.requires_grad}
    assert trained == {f"{name}.weight" for name in find_targets(model, ["c_attn"])}
    assert "target_modules" in configured("full_linear").shared_uses
    assert "target_modules" not in configured("full").shared_uses


def test_what_a_model_does_not_have_is_named() -> None:
    with pytest.raises(TargetError, match="LlamaForCausalLM has no bias"):
        prepare(build_model("llama"), configured("bitfit"))
    with pytest.raises(TargetError, match=r"method\.top_layers=3, and LlamaForCausalLM has 2 blocks"):
        prepare(build_model("llama"), configured("full_top_layers", "method.top_layers=3"))
    with pytest.raises(TargetError, match=r"rank_pattern: 'q_prj' matches no target .*q_proj"):
        prepare(build_model("llama"), configured("lora", "rank_pattern={q_prj: 2}"))


@pytest.mark.parametrize("steps", [1, 2])
def test_adalora_says_when_steps_are_too_few_to_move_ranks(steps: int) -> None:
    config = configured("adalora", "method.warmup=0.5")
    with pytest.raises(TargetError, match=rf"of the {steps} steps of this run, .* after the last one: use more rows"):
        prepare(build_model("llama"), config, steps=steps)


def test_ranks_of_layers_are_honoured_by_every_initialization() -> None:
    for method in ("lora", "pissa", "lora_ga", "lora_so"):
        for offset in ("base", "adapter"):
            options = ["rank_pattern={q_proj: 2, down_proj: 6}"]
            options += [f"method.offset={offset}"] if method != "lora" else []
            model = prepared(method, *options).model
            for name, layer in lora_layers(model).items():
                rank = {"q_proj": 2, "down_proj": 6}.get(name.rsplit(".", 1)[-1], 4)
                assert layer.lora_A["default"].weight.shape[0] == rank
                scaling = 16 / rank if method in ("lora", "pissa") else 16 / rank**0.5
                assert layer.scaling["default"] == pytest.approx(scaling)


def test_pissa_takes_the_weights_leading_triplets() -> None:
    """Against numpy's decomposition in float64: ``s·B0·A0`` is the best approximation of rank 4."""
    weights = {name: target.weight.detach().double() for name, target in find_targets(build_model("llama")).items()}
    init = prepared("pissa").init
    assert init is not None
    for name, (a0, b0) in init.factors.items():
        left, singular, right = np.linalg.svd(weights[name].numpy(), full_matrices=False)
        best = left[:, :4] * singular[:4] @ right[:4]
        found = init.scalings[name] * (b0.double() @ a0.double()).numpy()
        assert np.linalg.norm(found - best) < 3e-4 * np.linalg.norm(best)  # PEFT decomposes in float32
        # the singular values are divided equally between the two
        assert np.linalg.norm(a0.numpy(), axis=1) == pytest.approx(np.linalg.norm(b0.numpy(), axis=0), rel=1e-4)


def test_olora_takes_the_weights_qr_decomposition() -> None:
    """Against numpy's in float64: ``B0·A0`` is the product of the first 4 columns of Q and rows of R."""
    weights = {name: target.weight.detach().double() for name, target in find_targets(build_model("llama")).items()}
    init = prepared("olora").init
    assert init is not None
    for name, (a0, b0) in init.factors.items():
        q, r = np.linalg.qr(weights[name].numpy())
        found, right = (b0.double() @ a0.double()).numpy(), q[:, :4] @ r[:4]
        assert np.linalg.norm(found - right) < 1e-5 * np.linalg.norm(right)  # PEFT decomposes in float32


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_what_decomposes_complete_weights_refuses_sharded_ones(method: str) -> None:
    with pytest.raises(InvalidInput, match=rf"method\.type={method}, which decomposes complete weights"):
        configured(method, "model.shard=true", "method.offset=adapter")


def test_random_factors_have_the_papers_variance_and_scale() -> None:
    for method, size in (("lora_gaussian", lambda d_out: 1.0), ("lora_so", lambda d_out: d_out**0.25 / 16**0.5)):
        init = prepared(method, "rank=24").init
        assert init is not None
        for a0, b0 in init.factors.values():
            d_out, d_in = len(b0), a0.shape[1]
            assert float(a0.std()) == pytest.approx(size(d_out) / d_out**0.5, rel=0.15)
            assert float(b0.std()) == pytest.approx(size(d_out) / d_in**0.5, rel=0.15)


def settings_of_parameters(model: PreTrainedModel, config: Config, folder: Path, setting: str) -> dict[str, float]:
    """What an optimizer with weight decay has for each parameter, by name."""
    arguments = TrainingArguments(str(folder), learning_rate=1e-3, weight_decay=0.1, use_cpu=True, report_to="none")
    trainer = LoragaTrainer(
        model=model,
        args=arguments,
        method=method_of(config),
        link=Link(0, 1, 0, 1, 1),
        order=Order([1], 1, seed=0),
        limits=Limits(None, None, padded=True),
    )
    names = {id(item): name for name, item in model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    return {names[id(item)]: group[setting] for group in groups for item in group["params"]}


@pytest.mark.parametrize("use_dora", ["false", "true"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_lora_plus_gives_b_alone_its_own_rate(tmp_path: Path, family: str, use_dora: str) -> None:
    """Not DoRA's magnitudes, nor the weight and bias of a new head."""
    model, options = build_model(family), ["method.loraplus_lr_ratio=16", f"method.use_dora={use_dora}"]
    config = configured("lora_plus", *options)
    if family == "bert":
        model.newly_initialized = ["classifier"]
        config = configured_classifier("lora_plus", *options)
    trained = prepare(model, config).model
    rates = settings_of_parameters(trained, config, tmp_path, "lr")
    assert {name for name, rate in rates.items() if rate == 1.6e-2} == {name for name in rates if ".lora_B." in name}
    assert {rate for name, rate in rates.items() if ".lora_B." not in name} == {1e-3}
    assert set(rates) == {name for name, item in trained.named_parameters() if item.requires_grad}
    decays = settings_of_parameters(trained, config, tmp_path, "weight_decay")
    assert {decay for name, decay in decays.items() if not name.endswith("bias")} == {0.1}


def test_a_shipped_method_file_says_its_own_name() -> None:
    for file in (Path(__file__).parents[2] / "conf" / "method").glob("*.yaml"):
        assert configured(file.stem).method.name == file.stem
