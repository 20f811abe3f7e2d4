"""Initializations of LoRA's factors as their papers define them, against numpy and closed forms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lora_ga_cli import estimate_gradients
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.lora.layers import lora_layers, trained_parameters
from lora_ga_cli.lora.offset import LoraInit
from lora_ga_cli.methods.base import InitData, Link, PreparedModel, method_of
from lora_ga_cli.methods.lora_one import one_step_factors
from lora_ga_cli.model.targets import find_targets
from lora_ga_cli.training.run_folder import run_name
from tests.conftest import build_batch, build_model
from tests.helpers import configured, prepare


def prepared(method: str, *overrides: str) -> PreparedModel:
    return prepare(build_model("llama"), configured(method, *overrides))


def init_of(method: str, *overrides: str) -> LoraInit:
    init = prepared(method, *overrides).init
    assert init is not None
    return init


def inputs_of_layers(model: nn.Module, batch: Mapping[str, Tensor], positions: Tensor) -> dict[str, Tensor]:
    """What each target reads at the chosen positions (tokens, d_in), in float64."""
    found: dict[str, Tensor] = {}
    handles = [
        target.module.register_forward_pre_hook(
            lambda _, given, name=name: found.__setitem__(name, given[0][positions].double())
        )
        for name, target in find_targets(model).items()
    ]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return found


def test_lora_one_begins_one_step_along_the_gradient() -> None:
    """``s·B0 A0 = -(s/γ)·G_r/σ_1``, with the gradient of autograd and numpy's decomposition in float64."""
    torch.manual_seed(0)
    grad = torch.randn(24, 16, dtype=torch.float64)
    u, singular, vh = torch.linalg.svd(grad, full_matrices=False)
    a0, b0 = one_step_factors(Factors(u.float(), singular.float(), vh.T.float(), float(grad.norm())), 4, gamma=128.0)
    left, values, right = np.linalg.svd(grad.numpy())
    expected = -(left[:, :4] * values[:4] @ right[:4]) / values[0] / 128
    assert np.abs((b0.double() @ a0.double()).numpy() - expected).max() < 1e-8
    assert torch.allclose((a0 @ a0.T).diagonal(), (b0.T @ b0).diagonal())  # shared equally between the two


def test_lora_one_changes_the_model_and_subtracts_nothing() -> None:
    base = build_model("llama").state_dict()
    model = prepared("lora_one").model
    for name, layer in lora_layers(model).items():
        assert torch.equal(layer.get_base_layer().weight, base[f"{name}.weight"])
        assert layer.lora_A["default"].weight.any()
        assert layer.lora_B["default"].weight.any()


def test_olora_takes_the_weights_qr_decomposition() -> None:
    weights = {name: target.weight.detach().double() for name, target in find_targets(build_model("llama")).items()}
    for name, (a0, b0) in init_of("olora").factors.items():
        q, r = np.linalg.qr(weights[name].numpy())
        expected = q[:, :4] @ r[:4]
        assert np.abs((b0.double() @ a0.double()).numpy() - expected).max() < 1e-5
        assert torch.allclose(b0.T @ b0, torch.eye(4), atol=1e-5)


@pytest.mark.parametrize("use_label_mask", [True, False])
def test_eva_takes_the_leading_directions_of_the_inputs(use_label_mask: bool) -> None:
    """Against an SVD of all inputs, where one batch makes the incremental SVD exact."""
    model, batch = build_model("llama").eval(), build_batch("llama")
    mask = batch["attention_mask"].bool()
    mask = mask & (batch["labels"] != -100) if use_label_mask else mask
    expected = inputs_of_layers(model, batch, mask)
    init = init_of("eva", f"method.use_label_mask={use_label_mask}", "method.rho=1")
    for name, (a0, b0) in init.factors.items():
        assert not b0.any()
        x = expected[name] - expected[name].mean(dim=0)  # as PEFT does
        right = torch.linalg.svd(x, full_matrices=False).Vh[:4]
        captured, best = (x @ a0.double().T).norm(), (x @ right.T).norm()
        # it stops as soon as the vectors of two batches agree within tau
        assert float(captured / best) > 0.99, name
        assert torch.allclose(a0 @ a0.T, torch.eye(4), atol=1e-4)


def test_eva_moves_ranks_and_keeps_their_sum_and_scaling() -> None:
    model = prepared("eva").model
    layers = lora_layers(model)
    ranks = {name: layer.r["default"] for name, layer in layers.items()}
    assert len(set(ranks.values())) > 1
    targets = find_targets(build_model("llama"))
    assert sum(ranks.values()) <= 4 * len(targets)
    assert max(ranks.values()) <= 8
    assert {layer.scaling["default"] for layer in layers.values()} == {16 / 4}
    assert trained_parameters(model) == sum(rank * sum(targets[name].shape) for name, rank in ranks.items())


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_decomposes_the_weight_times_the_covariance(mode: str) -> None:
    """``s·B0 A0`` is the part of W with the leading (last) triplets of W C, whose C is undone again."""
    model, batch = build_model("llama").eval(), build_batch("llama")
    weights = {name: target.weight.detach().double() for name, target in find_targets(model).items()}
    covariances: dict[str, Tensor] = dict.fromkeys(weights, torch.zeros(()))
    mask = batch["attention_mask"].bool()
    for number in range(len(mask)):
        row = {"input_ids": batch["input_ids"][number : number + 1, mask[number]]}
        for name, x in inputs_of_layers(model, row, torch.ones_like(row["input_ids"]).bool()).items():
            scaled = x / x.max().abs()
            covariances[name] = covariances[name] + scaled.T @ scaled / len(mask)
    init = init_of("corda", f"method.mode={mode}")
    for name, (a0, b0) in init.factors.items():
        u, singular, vh = torch.linalg.svd(weights[name] @ covariances[name], full_matrices=False)
        chosen = slice(0, 4) if mode == "ipm" else slice(len(singular) - 4, None)
        product = init.scalings[name] * (b0.double() @ a0.double())
        if mode == "ipm":
            # undone by C itself, whose inverse is too large for float32 where inputs span few directions
            found, expected = product @ covariances[name], u[:, chosen] * singular[chosen] @ vh[chosen]
            assert float((found - expected).norm() / expected.norm()) < 5e-2, name
        assert torch.isfinite(product).all()


@pytest.mark.parametrize("frozen", ["A", "B"])
@pytest.mark.parametrize("init", ["gaussian", "orthonormal", "gradient"])
def test_one_factor_is_drawn_and_frozen_and_the_other_is_zero(init: str, frozen: str) -> None:
    model = build_model("llama")
    artifact = estimate_gradients(build_model("llama"), [build_batch("llama")])
    found = prepare(model, configured("lora", f"method.init={init}", f"method.frozen_factor={frozen}"))
    for name, layer in lora_layers(found.model).items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        fixed, trained = (a, b) if frozen == "A" else (b, a)
        assert (fixed.requires_grad, trained.requires_grad) == (False, True)
        assert not trained.any()
        rows = a if frozen == "A" else b.T
        if init == "orthonormal":
            assert torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-5)
        if init == "gradient":
            factors = artifact.factors[name]
            assert torch.equal(rows, (factors.right if frozen == "A" else factors.left)[:, :4].T.float())
    shapes = [target.shape for target in find_targets(build_model("llama")).values()]
    assert found.parameters == sum(4 * (d_out if frozen == "A" else d_in) for d_out, d_in in shapes)


def test_a_frozen_factor_that_is_drawn_differs_by_seed() -> None:
    sides = set()
    for seed in range(8):
        model = prepared("lora", "method.frozen_factor=random", f"seed={seed}").model
        sides.add(next(iter(lora_layers(model).values())).lora_A["default"].weight.requires_grad)
    assert sides == {True, False}


@pytest.mark.parametrize("init", ["init=gaussian", "direction=random"])
def test_each_link_of_a_chain_draws_anew_and_unlike_the_run_of_another_seed(init: str) -> None:
    """The first link draws what a run without links draws."""
    artifact = estimate_gradients(build_model("llama"), [build_batch("llama")])
    drawn = {}
    for seed, index in [(42, 0), (42, 1), (43, 0)]:
        method = method_of(configured("chain_lora_ga", f"method.{init}", f"seed={seed}"))
        data = InitData(lambda: artifact, lambda: iter([]))
        found = method.prepare(build_model("llama"), link=Link(index, 2, 4 * index, 4, 8), data=data, stored=None).init
        assert found is not None
        drawn[seed, index] = next(iter(found.factors.values()))[0]
    assert not torch.equal(drawn[42, 0], drawn[42, 1])
    assert not torch.equal(drawn[42, 1], drawn[43, 0])


def test_a_method_that_looks_at_rows_depends_on_how_many() -> None:
    for method in ("eva", "corda"):
        names = {run_name(configured(method, f"gradient.samples={samples}")) for samples in (16, 32)}
        assert len(names) == 2
    assert len({run_name(configured("pissa", f"gradient.samples={samples}")) for samples in (16, 32)}) == 1
